"""``tokentm methods`` and ``tokentm models``: what there is."""

from rich.table import Table

from tokentm.cli._app import DebugOption, command, out

__all__ = ["methods", "models"]


@command("methods")
def methods(debug: DebugOption = False) -> None:  # noqa: ARG001  (read by the command wrapper)
    """List the explanation methods."""
    from tokentm.methods import METHODS
    from tokentm.methods.bibliography import PAPERS

    table = Table("method", "what it is", "class-specific", "signed", "source", box=None, pad_edge=False)
    for method in METHODS.values():
        table.add_row(
            f"[bold]{method.name}[/bold]",
            method.summary,
            "yes" if method.class_specific else "no",
            "yes" if method.signed else "no",
            f"{PAPERS[method.paper].venue} {PAPERS[method.paper].year}" if method.paper else "",
        )
    out.print(table)


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
