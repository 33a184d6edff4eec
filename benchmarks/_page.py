"""The benchmark's page and picture, from measured rows."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from _contenders import CASES
from tokentm.files import writable_folder, write_atomically

__all__ = ["BASE", "Row", "table", "write_page"]

BASE = "forward + gradient to the input"
Row = Mapping[str, float]
OURS = "tokentm"


def table(case: str, rows: Mapping[str, Row]) -> str:
    """One case as a Markdown table."""
    base = rows[BASE]
    lines = [
        f"### {CASES[case].title}",
        "",
        "| | seconds | × input gradient | rounds | peak MiB | × input gradient |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        memory = f"{row['mib']:,.0f} | {row['mib'] / base['mib']:.2f}" if "mib" in row else " | "
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['ratio']:.2f} | {row['rounds']:.0f} | {memory} |")
    return "\n".join(lines) + "\n"


def write_page(out: Path, measured: Mapping[str, Mapping[str, Row]], command: str) -> None:
    """Write the page and the picture ``images/<name>.png`` beside it."""
    picture = writable_folder(out.parent / "images") / f"{out.stem}.png"
    _draw(picture, measured)
    packages = ["torch", "timm", "torchvision", *(name for name in ("grad-cam", "torchcam", "captum") if _has(name))]
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages)
    prose = f"""# Speed and memory

Made by `{command}`. Random weights, float32, frozen parameters. Everything in a table took turns in one process, and
ratios are medians of ratios round by round, so they hold while the machine's speed drifts; contenders that run for
long have fewer rounds. Memory is the peak above that of the loaded model, each in a process of its own.

{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads; {versions}.

![Time of each contender as a multiple of forward + gradient to the input](images/{picture.name})

"""
    with write_atomically(out) as path:
        path.write_text(prose + "\n".join(table(case, rows) for case, rows in measured.items()), encoding="utf-8")


def _draw(picture: Path, measured: Mapping[str, Mapping[str, Row]]) -> None:
    """One panel per case: bars of the time ratio, on a scale that starts at 1/4 and doubles."""
    columns = min(2, len(measured))
    lines = -(-len(measured) // columns)
    deepest = max(len(rows) for rows in measured.values())
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.4 * columns, lines * (0.3 * deepest + 0.9)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    for axis, (case, rows) in zip(axes.flat, measured.items(), strict=False):
        names = list(rows)[::-1]
        ratios = [rows[name]["ratio"] for name in names]
        bars = axis.barh(names, ratios, color=["#2f6db3" if name == OURS else "#b9c1cc" for name in names])
        axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
        axis.axvline(1, color="#444444", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xlim(0.25, max(4, *ratios) * 2)
        axis.set_xticks([0.25, 1, 4, 16, 64], ["¼", "1", "4", "16", "64"])
        axis.tick_params(labelsize=8, left=False)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(CASES[case].title, fontsize=9, loc="left")
    figure.supxlabel("time / forward + gradient to the input", fontsize=9)
    with write_atomically(picture) as path:
        figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _has(package: str) -> bool:
    return find_spec({"grad-cam": "pytorch_grad_cam"}.get(package, package)) is not None
