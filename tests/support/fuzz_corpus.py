"""Good files of every kind that the command line reads, and the command that reads each."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.command import save_classifier
from tests.support.data_files import write_ids, write_photo

__all__ = ["Specimen", "corpus"]

_CHEAP = ("--model", "MODEL", "--protocols", "saco", "--methods", "center", "--limit", "2", "--out", "results")


@dataclass(frozen=True)
class Specimen:
    """One kind of input.

    Attributes:
        name: Of the kind.
        folder: A folder with good files.
        typed: The command, run in a copy of the folder; ``MODEL`` stands for a good model.
        files: Which of them are damaged, relative to the folder.
    """

    name: str
    folder: Path
    typed: tuple[str, ...]
    files: tuple[str, ...]


def corpus(root: Path) -> list[Specimen]:
    """Write all kinds below ``root``."""
    found: list[Specimen] = []
    for write in (_photos, _timm, _transformers, _weights, *_DATA_SETS, _run):
        for name, typed, files in write(root):
            found.append(Specimen(name, root / name, tuple(typed), tuple(files)))
    return found


Kinds = Iterator[tuple[str, list[str], list[str]]]


def _photos(root: Path) -> Kinds:
    gradient = Image.merge("RGB", [Image.linear_gradient("L").rotate(turn).resize((41, 30)) for turn in (0, 90, 180)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, picture, options in (
        ("png", gradient.convert("RGBA"), {"exif": exif}),
        ("jpg", gradient, {"exif": exif}),
        ("gif", gradient.quantize(16), {"save_all": True, "append_images": [gradient.rotate(9).quantize(16)]}),
        ("tif", gradient, {"compression": "tiff_lzw"}),
        ("bmp", gradient, {}),
        ("webp", gradient, {}),
        ("ppm", gradient, {}),
    ):
        folder = root / suffix
        folder.mkdir(parents=True)
        picture.save(folder / f"photo.{suffix}", **options)
        yield suffix, ["explain", f"photo.{suffix}", "--model", "MODEL", "--out", "results"], [f"photo.{suffix}"]
    (root / "deep").mkdir()
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(root / "deep" / "photo.png")
    yield "deep", ["explain", "photo.png", "--model", "MODEL", "--full", "--out", "results"], ["photo.png"]


def _timm(root: Path) -> Kinds:
    save_classifier(root / "timm" / "m")
    write_photo(root / "timm" / "photo.png", (40, 30))
    files = ["m/config.json", "m/config.json", "m/config.json", "m/model.safetensors"]
    yield "timm", ["explain", "photo.png", "--model", "m", "--out", "results"], files


def _transformers(root: Path) -> Kinds:
    from tests.support.model_files import named, transformers_folder

    (root / "transformers").mkdir(parents=True)
    transformers_folder(root / "transformers" / "m", named("transformers-vit"))
    write_photo(root / "transformers" / "photo.png", (40, 30))
    files = ["m/config.json", "m/config.json", "m/preprocessor_config.json", "m/preprocessor_config.json"]
    yield (
        "transformers",
        ["explain", "photo.png", "--model", "m", "--out", "results"],
        [*files, "m/model.safetensors"],
    )


def _weights(root: Path) -> Kinds:
    import timm
    import torch
    from safetensors.torch import save_file

    state = timm.create_model("test_vit", num_classes=3).state_dict()
    for suffix in ("pth", "safetensors"):
        folder = root / suffix
        write_photo(folder / "photo.png", (40, 30))
        if suffix == "pth":
            torch.save(state, folder / "w.pth")
        else:
            save_file(state, folder / "w.safetensors")
        typed = ["explain", "photo.png", "--model", f"w.{suffix}", "--arch", "test_vit", "--out", "results"]
        yield suffix, typed, [f"w.{suffix}"]


def _evaluate(place: str) -> list[str]:
    return ["evaluate", place, *_CHEAP]


def _folder(root: Path) -> Kinds:
    for suffix in ("json", "csv"):
        folder = root / f"labels-{suffix}"
        for name in ("a.png", "b.png"):
            write_photo(folder / name, (40, 30))
        labels = {"a.png": "robin", "b.png": "tabby"}
        text = json.dumps(labels) if suffix == "json" else "file,label\na.png,robin\nb.png,tabby\n"
        (folder / f"labels.{suffix}").write_text(text)
        yield folder.name, _evaluate("folder:."), [f"labels.{suffix}", f"labels.{suffix}", "a.png"]


def _cifar(root: Path) -> Kinds:
    from tests.support.cifar import batches, packed, tree

    batches(root / "cifar" / "cifar-10-batches-py")
    files = [f"cifar-10-batches-py/{name}" for name in ("batches.meta", "test_batch")]
    yield "cifar", _evaluate("cifar10:cifar-10-batches-py"), files
    (root / "cifar-packed").mkdir()
    packed(root / "cifar" / "cifar-10-batches-py", root / "cifar-packed" / "cifar-10-python.tar.gz")
    yield "cifar-packed", _evaluate("cifar10:cifar-10-python.tar.gz"), ["cifar-10-python.tar.gz"]
    (root / "cifar-tree").mkdir()
    tree(root / "cifar-tree" / "cifar10_jpeg.tar.xz")
    yield "cifar-tree", _evaluate("cifar10:cifar10_jpeg.tar.xz"), ["cifar10_jpeg.tar.xz"]


def _coco(root: Path) -> Kinds:
    from tests.test_datasets_masks import LEFT_COLUMN, RECTANGLE, annotation, write_coco

    file = write_coco(
        root / "coco",
        [annotation(9, 18, RECTANGLE), annotation(9, 18, LEFT_COLUMN, iscrowd=1), annotation(5, 1, RECTANGLE)],
    )
    yield "coco", _evaluate("coco:."), [str(file.relative_to(root / "coco"))]


def _voc(root: Path) -> Kinds:
    folder = root / "voc" / "VOC2012"
    write_photo(folder / "JPEGImages" / "a.jpg")
    write_ids(folder / "SegmentationClass" / "a.png", [[0, 5, 5, 255, 0, 0]] * 4)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    files = ["VOC2012/SegmentationClass/a.png", "VOC2012/ImageSets/Segmentation/val.txt", "VOC2012/JPEGImages/a.jpg"]
    yield "voc", _evaluate("voc:VOC2012"), files


def _gtsegs(root: Path) -> Kinds:
    from tests.test_datasets_archives import write_gtsegs

    (root / "gtsegs").mkdir()
    write_gtsegs(root / "gtsegs" / "gtsegs_ijcv.mat")
    yield "gtsegs", _evaluate("gtsegs:gtsegs_ijcv.mat"), ["gtsegs_ijcv.mat"]


def _imagenet(root: Path) -> Kinds:
    from tests.test_datasets_imagenet import PHOTOS, write_caffe, write_devkit, write_kaggle, write_synsets

    writers: dict[str, tuple[Callable[[Path], None], str]] = {
        "devkit": (write_devkit, "ILSVRC2012_devkit_t12/data/meta.mat"),
        "kaggle": (write_kaggle, "LOC_val_solution.csv"),
        "caffe": (write_caffe, "val/val.txt"),
        "synsets": (write_synsets, "imagenet_2012_validation_synset_labels.txt"),
    }
    for name, (write, file) in writers.items():
        for photo in PHOTOS:
            write_photo(root / f"imagenet-{name}" / "val" / photo)
        write(root / f"imagenet-{name}")
        yield f"imagenet-{name}", _evaluate("imagenet:."), [file]


def _huggingface(root: Path) -> Kinds:
    import datasets

    from tests.test_datasets_huggingface import table

    made = table(datasets, masks=True)
    (root / "parquet").mkdir()
    made.to_parquet(str(root / "parquet" / "table.parquet"))
    yield "parquet", _evaluate("hf-dataset:."), ["table.parquet"]
    made.save_to_disk(str(root / "arrow" / "saved"))
    files = sorted(str(path.relative_to(root / "arrow")) for path in (root / "arrow").rglob("*") if path.is_file())
    yield "arrow", _evaluate("hf-dataset:saved"), files


def _run(root: Path) -> Kinds:
    """Finished runs, whose files another program touched."""
    from tests.support.scenes import METHODS
    from tokentm.evaluate.runner import evaluate

    for name in ("run-report", "run-again"):
        (root / name).mkdir()
    run = root / "run-report" / "run"
    evaluate("shapes", "shapes:3", METHODS, ("saco",), limit=3, out=run)
    shutil.copytree(run, root / "run-again" / "run")
    files = ["run/manifest.json", "run/manifest.json", "run/manifest.json", "run/results.parquet"]
    yield "run-report", ["report", "run"], files
    again = ["evaluate", "shapes:3", "--model", "shapes", "--methods", ",".join(METHODS), "--protocols", "saco"]
    yield (
        "run-again",
        [*again, "--limit", "3", "--out", "run"],
        ["run/manifest.json", "run/parts/part-00000.parquet", "run/results.parquet"],
    )


_DATA_SETS = (_folder, _cifar, _coco, _voc, _gtsegs, _imagenet, _huggingface)
