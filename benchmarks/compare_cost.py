"""What ten methods in one ``compare`` call cost beside one method alone.

    python benchmarks/compare_cost.py [--batch 8] [--rounds 7]

ViT-S/16 with random weights at 224 px. Both run in turn in one process, so that the ratio holds when the machine's
speed drifts; the ratio is taken round by round and its median is printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch

import tokentm
from _contenders import TEN

LIMIT = 1.6
ALONE = "tokentm"


def main() -> None:
    """Measure and print; exits 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = tokentm.load_model(timm.create_model("vit_small_patch16_224").eval())
    images = torch.randn(options.batch, 3, 224, 224)

    def forward() -> None:
        with torch.no_grad():
            model.module(images)

    runs: dict[str, Callable[[], object]] = {
        "forward only": forward,
        f"{ALONE} alone": lambda: tokentm.compare(model, images, [ALONE], batch_size=options.batch),
        "ten methods, one compare": lambda: tokentm.compare(model, images, TEN, batch_size=options.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"ViT-S/16, 224 px, batch {options.batch}, float32, CPU, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        spread = f"median of {len(values)}; {min(values):.3f} to {max(values):.3f}"
        print(f"{name:26}{statistics.median(values):8.3f} s ({spread})")
    ratios = [ten / one for one, ten in zip(*list(seconds.values())[1:], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} (limit {LIMIT})")
    sys.exit(statistics.median(ratios) > LIMIT)


if __name__ == "__main__":
    main()
