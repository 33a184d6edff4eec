"""How fast a folder is explained to files, beside explaining the same photos in memory.

    python benchmarks/explain_folder.py [--photos FOLDER] [--model NAME] [--count 1000] [--rounds 10] [--threads 2]

In memory: photos that were read and brought to the model's input before the clock starts, explained and nothing else.
Folder: what `tokentm explain FOLDER` does from the first photo to the last file (read, explain, draw, write), with the
start and the end of the pipeline. Both in turn, round by round in one process, so that the ratio holds when the
machine's speed drifts; its median over the rounds is printed. Without --photos, pictures of noise and colour are made.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tokentm
from tokentm.engines.local import LocalEngine, spare_threads
from tokentm.models.images import find_images, open_image
from tokentm.photos import PhotoJob, explain_photos
from tokentm.session import Request

LIMIT = 0.85


def main() -> None:
    """Measure and print; exits 1 when the ratio is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="photos to repeat until there are enough")
    parser.add_argument("--model", default="", help="as for `tokentm explain`; ViT-S/16 with random weights without it")
    parser.add_argument("--count", type=int, default=1000, help="photos in all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=spare_threads(), help="beside the one that computes")
    options = parser.parse_args()
    vision = tokentm.load_model(options.model or _untrained())
    with tempfile.TemporaryDirectory() as scratch:
        photos = _photos(options, Path(scratch) / "photos")
        _, *ratios = [_round(vision, share, Path(scratch), options) for share in (photos[0], *photos)]  # one warms up
    print(
        f"{vision.name}, {sum(map(len, photos))} photos, batches of {options.batch_size}, {vision.device}, "
        f"{torch.get_num_threads()} threads compute, {options.threads} read and draw"
    )
    median = statistics.median(ratios)
    print(f"folder / in memory: {median:.3f} (at least {LIMIT}); {min(ratios):.3f} to {max(ratios):.3f} by round")
    sys.exit(median < LIMIT)


def _round(vision: tokentm.VisionModel, photos: list[Path], scratch: Path, options: argparse.Namespace) -> float:
    """Throughput from folder to files over that in memory, of the same photos."""
    inputs = torch.stack([vision.transform(open_image(photo)) for photo in photos])
    start = time.perf_counter()
    for low in range(0, len(photos), options.batch_size):
        tokentm.explain(vision, inputs[low : low + options.batch_size], batch_size=options.batch_size)
    in_memory = time.perf_counter() - start
    job = PhotoJob(
        vision, tuple((path.stem, path) for path in photos), None, Request.parse("tokentm"), {}, options.batch_size
    )
    start = time.perf_counter()
    done = sum(batch.done for batch in explain_photos(job, scratch / "out", LocalEngine(threads=options.threads)))
    to_files = time.perf_counter() - start
    written = len(list((scratch / "out").glob("*.png")))
    if not done == written == len(photos):
        raise SystemExit(f"{done} of {len(photos)} photos were explained, {written} written")
    shutil.rmtree(scratch / "out")
    print(f"in memory {len(photos) / in_memory:7.2f} per second, folder {len(photos) / to_files:7.2f}", flush=True)
    return in_memory / to_files


def _untrained() -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224").eval()


def _photos(options: argparse.Namespace, folder: Path) -> list[list[Path]]:
    """The files of each round; as many copies of each photo as are needed."""
    folder.mkdir()
    if options.photos is None:
        sources = []
        for seed in range(16):
            noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            sources.append(folder / f"made-{seed}.jpg")
            Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(sources[-1], quality=90)
    else:
        sources = find_images(options.photos)
    each = max(1, options.count // options.rounds)
    copies = []
    for index in range(each * options.rounds):
        source = sources[index % len(sources)]
        copies.append(folder / f"{index:05}{source.suffix}")
        shutil.copy(source, copies[-1])
    return [copies[low : low + each] for low in range(0, len(copies), each)]


if __name__ == "__main__":
    main()
