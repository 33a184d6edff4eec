"""``tokentm methods``, ``models``, ``datasets`` and ``protocols``: what there is."""

import dataclasses
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tokentm.cli._app import DebugOption, command, err, out, show, tell
from tokentm.cli._options import option_lines
from tokentm.errors import InputError

__all__ = ["datasets", "methods", "models", "protocols"]

_NAMED = 5  # classes that --check names


@command("methods")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Say what this method is and takes.")] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """List the explanation methods and the backward rules, or describe one method."""
    from tokentm.backward import BACKWARD
    from tokentm.methods import METHODS
    from tokentm.methods.bibliography import PAPERS

    if name is not None:
        _describe(name)
        return
    table = Table("name", "class", "signed", "rules", "passes", "source", box=None, pad_edge=False)
    for method in METHODS.values():
        rules = "any" if method.composes else "none" if method.backward == "plain" else method.backward
        passes = "many" if method.probe else "2" if method.signals.needs_backward else "1"
        source = "; ".join(f"{PAPERS[key].venue} {PAPERS[key].year}" for key in method.papers)
        asked, signed = ("yes" if answer else "no" for answer in (method.class_specific, method.signed))
        table.add_row(f"[bold]{method.name}[/bold]", asked, signed, rules, passes, escape(source))
    table.columns[0].no_wrap = True
    show(table)
    out.print(
        "\nclass: whether the map depends on the class. passes: forward alone, forward and backward, or many."
        "\n`tokentm methods NAME` describes one, `tokentm cite NAME` gives its papers."
        "\n\nBackward rules for those that take any, as in tokentm/libra:",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    for rule in BACKWARD.values():
        if not rule.relevance:
            table.add_row(f"[bold]{rule.name}[/bold]", escape(rule.summary))
    show(table)


def _describe(name: str) -> None:
    from tokentm.methods import METHODS
    from tokentm.methods.bibliography import PAPERS
    from tokentm.session import rules_of

    method = METHODS[name]
    rules = ", ".join(f"{method.name}/{rule}" for rule in rules_of(method) if rule != method.backward)
    passes = "many" if method.probe else "forward and backward" if method.signals.needs_backward else "forward"
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in (
        ("method", method.name),
        ("summary", method.summary),
        *(("paper", str(PAPERS[key])) for key in method.papers),
        ("map", f"{'of the class' if method.class_specific else 'blind to the class'}{', signed' * method.signed}"),
        ("passes", passes),
        ("backward rule", method.backward if method.signals.needs_backward else "reads no gradients"),
        ("other rules", rules or "none"),
        *(("option", line) for line in option_lines(method)),
    ):
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    show(table)
    if dataclasses.fields(method.options):
        out.print(
            f"\nSet one by --set NAME=VALUE; in compare and evaluate by --set {method.name}.NAME=VALUE.", soft_wrap=True
        )


@command("models")
def models(
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say what this model is and whether it can be explained.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME", help="List index and name of every class of this model.")
    ] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """List what --model takes and which model families work."""
    if check is not None and classes is not None:
        raise InputError("--check and --classes exclude each other; give one.")
    if check is not None:
        _check(check)
        return
    if classes is not None:
        _classes(classes)
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
    show(table)
    out.print(f"\nFamilies: {', '.join(FAMILIES)}.", soft_wrap=True)


def _classes(name: str) -> None:
    with err.status(f"Loading {escape(name)}…"):
        from tokentm.models import load_model

        model = load_model(name)
    count = model.anatomy.num_classes
    if model.class_names is None:
        raise InputError(f"The model {model.name} knows no class names; give an index from 0 to {count - 1}.")
    for index, text in enumerate(model.class_names):
        out.print(f"{index:{len(str(count - 1))}}  {text}", markup=False, soft_wrap=True)


def _first_classes(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names)}: {', '.join(names[:_NAMED])}{more}"


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
        ("classes", _first_classes(found.class_names)),
        ("readout", found.readout),
        ("methods", f"{len(found.methods)}: {', '.join(found.methods)}"),
        ("output unchanged", "yes" if found.unchanged else "no"),
    ):
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    show(table)
    for method, reason in found.failed.items():
        tell(f"{method} does not work here: {reason}", "yellow")


@command("datasets")
def datasets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one alone.")] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """List the data sets that `tokentm evaluate` takes."""
    from tokentm.datasets.registry import DATASETS

    if name is not None:
        kind = DATASETS[name]
        for line in (kind.name, kind.summary, kind.source):
            out.print(line, markup=False, soft_wrap=True)
        return
    table = Table("DATA", "what it is", "where it comes from", box=None, pad_edge=False)
    for kind in DATASETS.values():
        table.add_row(f"[bold]{kind.name}[/bold]", escape(kind.summary), escape(kind.source))
    table.columns[0].no_wrap = True
    show(table)
    out.print(
        "\nWrite KIND:PLACE, or a path alone where its kind can be seen; `tokentm datasets NAME` shows one.",
        soft_wrap=True,
    )


@command("protocols")
def protocols(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List the evaluation protocols and presets."""
    from tokentm.evaluate.presets import PRESETS
    from tokentm.evaluate.registry import PROTOCOLS

    table = Table("protocol", "what it measures", "needs", "source", box=None, pad_edge=False)
    for kind in PROTOCOLS.values():
        needs = " and ".join(["labels"] * kind.needs_labels + ["masks"] * kind.needs_masks)
        table.add_row(f"[bold]{kind.name}[/bold]", kind.summary, needs, kind.paper)
    show(table)
    out.print()
    table = Table("preset", "protocols", "explains", "source", box=None, pad_edge=False)
    for preset in PRESETS.values():
        names = ", ".join(name for name, _ in preset.configs)
        table.add_row(f"[bold]{preset.name}[/bold]", names, preset.explained, preset.paper)
    show(table)
