"""``tokentm methods`` and ``tokentm models``: what there is."""

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from tokentm.cli._app import DebugOption, command, out

__all__ = ["methods", "models"]


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
def models(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List what --model takes and which model families work."""
    from tokentm.models import BUNDLED
    from tokentm.models.anatomy import FAMILIES

    table = Table("--model", "what it loads", box=None, pad_edge=False)
    for name, what in BUNDLED.items():
        table.add_row(f"[bold]{name}[/bold]", what)
    for name, what in (
        ("vit_base_patch16_224", "any timm ViT by name, weights from the hub"),
        ("hf:org/name", "a timm or transformers classifier on the hub"),
        ("torchvision:vit_b_16", "a torchvision ViT with its default weights"),
        ("path/to/folder", "config.json and weights in timm's or transformers' hub format"),
        ("weights.safetensors", "a state dict, with --arch and a timm name"),
    ):
        table.add_row(f"[bold]{name}[/bold]", what)
    out.print(table)
    out.print(f"\nFamilies: {', '.join(FAMILIES)}.")
