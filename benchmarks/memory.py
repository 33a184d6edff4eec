"""Peak memory of TokenTM beside what the model itself needs for the same gradients.

    python benchmarks/memory.py [--size 1024] [--batch 1]

Both run in a process of their own on the same ViT-S/16 with random weights: first the model's own forward pass and
one backward pass to its attention outputs (frozen weights, fused attention, nothing recorded), then TokenTM through
the public API. What is compared is the peak resident memory above that of the loaded model.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

LIMIT = 1.5


def main() -> None:
    """Measure both in turn and print the table; exits 1 when the ratio is above the limit."""
    options = _arguments()
    if options.worker:
        print(json.dumps(_WORKERS[options.worker](options)))
        return
    rows = {name: _measure(name, options) for name in _WORKERS}
    tokens = (options.size // 16) ** 2 + 1
    print(f"ViT-S/16, {options.size} px, {tokens} tokens, batch {options.batch}, float32, CPU")
    print(f"{'':34}{'peak MiB':>10}{'seconds':>10}")
    for name, row in rows.items():
        print(f"{name:34}{row['peak_mib']:10.0f}{row['seconds']:10.2f}")
    own, ours = rows["forward + attention gradients"], rows["tokentm"]
    ratio = ours["peak_mib"] / own["peak_mib"]
    print(f"memory ratio {ratio:.2f} (limit {LIMIT}), time ratio {ours['seconds'] / own['seconds']:.2f}")
    sys.exit(ratio > LIMIT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="pixels a side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--worker", choices=_WORKERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", name, "--size", str(options.size), "--batch", str(options.batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])  # noqa: S603


def _setup(options: argparse.Namespace) -> tuple[Any, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", img_size=options.size).eval()
    images = torch.randn(options.batch, 3, options.size, options.size)
    with torch.no_grad():
        model(images[:, :, : options.size])  # kernels and thread pools are loaded before counting starts
    return model, images


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_mib() -> float:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def _counted(run: Any) -> dict[str, float]:
    before = _resident_mib()
    # The warm-up forward must not hide the peak: it is far below it, which is checked here.
    warmed = _peak_mib()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    peak = _peak_mib()
    if peak <= warmed:
        raise SystemExit("The peak was reached before counting started; choose a larger --size.")
    return {"peak_mib": peak - before, "seconds": seconds}


def _own(options: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    model, images = _setup(options)
    model.requires_grad_(False)
    outputs: list[torch.Tensor] = []

    class Outputs(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is F.scaled_dot_product_attention:
                outputs.append(result if result.requires_grad else result.requires_grad_(True))
            return result

    def run() -> None:
        with Outputs():
            logits = model(images)
        torch.autograd.grad(logits.amax(-1).sum(), outputs)

    return _counted(run)


def _tokentm(options: argparse.Namespace) -> dict[str, float]:
    import tokentm

    model, images = _setup(options)
    return _counted(lambda: tokentm.explain(model, images, batch_size=options.batch))


_WORKERS = {"forward + attention gradients": _own, "tokentm": _tokentm}

if __name__ == "__main__":
    main()
