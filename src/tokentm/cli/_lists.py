"""``tokentm methods``, ``models``, ``datasets`` and ``protocols``: what there is."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from tokentm.cli._app import DebugOption, command, err, out, tell

__all__ = ["datasets", "methods", "models", "protocols"]


@command("methods")
def methods(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List the explanation methods and the backward rules."""
    from tokentm.backward import BACKWARD
    from tokentm.methods import METHODS
    from tokentm.methods.bibliography import PAPERS

    for method in METHODS.values():
        kinds = [
            "class-specific" if method.class_specific else "blind to the class",
            *(["signed"] if method.signed else []),
            *(["takes a backward rule"] if method.composes else []),
            *(["runs the model many times"] if method.probe else []),
        ]
        paper = f"; {PAPERS[method.paper].venue} {PAPERS[method.paper].year}" if method.paper else ""
        out.print(f"[bold]{method.name}[/bold]  {', '.join(kinds)}{escape(paper)}", highlight=False)
        out.print(Padding(f"[dim]{escape(method.summary)}[/dim]", (0, 0, 0, 4)), highlight=False)
    out.print("\nBackward rules, as in tokentm/libra:", highlight=False)
    for rule in BACKWARD.values():
        if not rule.relevance:
            out.print(f"[bold]{rule.name}[/bold]  {escape(rule.summary)}", highlight=False)


@command("models")
def models(
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say what this model is and whether it can be explained.")
    ] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """List what --model takes and which model families work."""
    if check is not None:
        _check(check)
        return
    from tokentm.models import BUNDLED
    from tokentm.models.anatomy import FAMILIES

    table = Table("--model", "what it loads", box=None, pad_edge=False)
    for name, what in BUNDLED.items():
        table.add_row(f"[bold]{name}[/bold]", what)
    for name, what in (
        ("vit_base_patch16_224", "a timm ViT with a classifier, by name, weights from the hub"),
        ("hf:org/name", "a timm or transformers classifier on the hub"),
        ("torchvision:vit_b_16", "a torchvision ViT with its default weights"),
        ("open_clip:ViT-B-32/openai", "an image–text model of open_clip; targets are texts"),
        ("path/to/folder", "config.json and weights in timm's or transformers' hub format"),
        ("weights.safetensors", "a state dict, with --arch and a timm name"),
    ):
        table.add_row(f"[bold]{name}[/bold]", what)
    out.print(table)
    out.print(f"\nFamilies: {', '.join(FAMILIES)}.")


def _check(name: str) -> None:
    from tokentm._check import check

    with err.status(f"Looking at {escape(name)}…"):
        found = check(name)
    table = Table(box=None, pad_edge=False, show_header=False)
    prefix = f"{found.prefix} before the patches" if found.prefix else "patches only"
    for key, value in (
        ("model", found.name),
        ("family", found.family),
        ("blocks", f"{found.blocks}, {found.heads} heads"),
        ("image", f"{found.size[0]}×{found.size[1]}"),
        ("tokens", f"{found.tokens}, {prefix}"),
        ("grid", f"{found.grid[0]}×{found.grid[1]}"),
        ("readout", found.readout),
        ("methods", f"{len(found.methods)}: {', '.join(found.methods)}"),
        ("output unchanged", "yes" if found.unchanged else "no"),
    ):
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    out.print(table)
    for method, reason in found.failed.items():
        tell(f"{method} does not work here: {reason}", "yellow")


@command("datasets")
def datasets(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List the data sets that `tokentm evaluate` takes."""
    from tokentm.datasets.registry import DATASETS

    table = Table("DATA", "what it is", "where it comes from", box=None, pad_edge=False)
    for kind in DATASETS.values():
        table.add_row(f"[bold]{kind.name}[/bold]", kind.summary, kind.source)
    out.print(table)
    out.print("\nWrite KIND:PLACE, or a path alone where its kind can be seen.")


@command("protocols")
def protocols(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List the evaluation protocols and presets."""
    from tokentm.evaluate.presets import PRESETS
    from tokentm.evaluate.registry import PROTOCOLS

    table = Table("protocol", "what it measures", "needs", "source", box=None, pad_edge=False)
    for kind in PROTOCOLS.values():
        needs = " and ".join(["labels"] * kind.needs_labels + ["masks"] * kind.needs_masks)
        table.add_row(f"[bold]{kind.name}[/bold]", kind.summary, needs, kind.paper)
    out.print(table)
    out.print()
    table = Table("preset", "protocols", "explains", "source", box=None, pad_edge=False)
    for preset in PRESETS.values():
        names = ", ".join(name for name, _ in preset.configs)
        table.add_row(f"[bold]{preset.name}[/bold]", names, preset.explained, preset.paper)
    out.print(table)
