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
        _machine(),
        "",
        "| | seconds | × input gradient | rounds | peak MiB | × input gradient |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        peak = max(0.0, row.get("mib", 0.0))  # a forward pass may stay below what loading took
        memory = f"{peak:,.0f} | {peak / base['mib']:.2f}" if "mib" in row else " | "
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['ratio']:.2f} | {row['rounds']:.0f} | {memory} |")
    return "\n".join(lines) + "\n"


def write_page(out: Path, measured: Mapping[str, Mapping[str, Row]], command: str) -> None:
    """Write the page and the picture ``images/<name>.png`` beside it.

    Tables of cases that were not measured stay as they are, each under the machine and the versions that it is of.
    """
    kept = _tables_of(out.read_text(encoding="utf-8")) if out.exists() else {}
    tables = kept | {CASES[case].title: table(case, rows) for case, rows in measured.items()}
    tables = {case.title: tables[case.title] for case in CASES.values() if case.title in tables}
    picture = writable_folder(out.parent / "images") / f"{out.stem}.png"
    _draw(picture, {title: _ratios_of(text) for title, text in tables.items()})
    prose = f"""# Speed and memory

Made by `{command}`. Random weights, float32, frozen parameters. Everything in a table took turns in one process, and
ratios are medians of ratios round by round, so they hold while the machine's speed drifts; contenders that run for
long have fewer rounds. Memory is the peak above that of the loaded model, each in a process of its own.

![Time of each contender as a multiple of forward + gradient to the input](images/{picture.name})

"""
    with write_atomically(out) as path:
        path.write_text(prose + "\n".join(tables.values()), encoding="utf-8")


def _machine() -> str:
    packages = ["torch", "timm", "torchvision", *(name for name in ("grad-cam", "torchcam", "captum") if _has(name))]
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages)
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {capability}), {torch.get_num_threads()} threads; {versions}."
    )


def _tables_of(page: str) -> dict[str, str]:
    """Tables of a page by their titles."""
    parts = page.split("\n### ")[1:]
    return {part.partition("\n")[0]: f"### {part.rstrip()}\n" for part in parts}


def _ratios_of(text: str) -> dict[str, float]:
    """Time ratios of a table as it was printed."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {cells[1]: float(cells[3]) for cells in rows if cells[1]}


def _draw(picture: Path, measured: Mapping[str, Mapping[str, float]]) -> None:
    """One panel per case: bars of the time ratio, on a scale that starts at 1/4 and doubles."""
    columns = min(2, len(measured))
    lines = -(-len(measured) // columns)
    deepest = max(len(rows) for rows in measured.values())
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.4 * columns, lines * (0.3 * deepest + 0.9)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, measured.items(), strict=False):
        names = list(rows)[::-1]
        ratios = [rows[name] for name in names]
        bars = axis.barh(names, ratios, color=["#2f6db3" if name == OURS else "#b9c1cc" for name in names])
        axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
        axis.axvline(1, color="#444444", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xlim(0.25, max(4, *ratios) * 2)
        axis.set_xticks([0.25, 1, 4, 16, 64], ["¼", "1", "4", "16", "64"])
        axis.tick_params(labelsize=8, left=False)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(title, fontsize=9, loc="left")
    figure.supxlabel("time / forward + gradient to the input", fontsize=9)
    with write_atomically(picture) as path:
        figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _has(package: str) -> bool:
    return find_spec({"grad-cam": "pytorch_grad_cam"}.get(package, package)) is not None
