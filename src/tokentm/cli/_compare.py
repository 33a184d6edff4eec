"""``tokentm compare PHOTO…``."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tokentm.cli._app import DebugOption, command, err, out, tell
from tokentm.cli._explain import DEFAULT_MODEL, load
from tokentm.cli._options import PrecisionOption, SetOption, options_of_each, whole_number
from tokentm.cli._places import find_photos, output_folder
from tokentm.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from tokentm.explanation import Explanation

__all__ = ["compare"]


@command("compare")
def compare(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO|FOLDER", help="Images, or folders of images.")],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "tokentm,gae,rollout",
    settings: SetOption = None,
    targets: Annotated[
        str | None, typer.Option(help="Class name or index, or top2; the predicted class without it.")
    ] = None,
    backward: Annotated[
        str | None, typer.Option(metavar="RULE,…", help="Backward rules for every method that takes one.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")] = Path("out"),
    arch: Annotated[str | None, typer.Option(help="timm architecture of a weight file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: PrecisionOption = None,
    batch_size: Annotated[int, typer.Option(parser=whole_number(1), metavar="N", help="Photos at once.")] = 8,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Explain the same photos by several methods: one figure (PNG), the numbers (NPZ) and a manifest (JSON)."""
    with err.status("Starting…"):
        import tokentm
        from tokentm.explanation import Source
        from tokentm.methods import METHODS
        from tokentm.report.comparison import draw_comparison

        chosen = _chosen(methods, backward)
        options = options_of_each(chosen, settings or [])
        sources = find_photos(photos, to, ("compare",))
    with output_folder(to):
        with err.status(f"Loading {escape(model)}…"):
            vision = load(model, arch, device, precision)
        blind = [name for name in chosen if not METHODS[name.split("/")[0]].class_specific]
        if targets is not None and blind:
            tell(f"Note: {', '.join(blind)}: blind to the class, so the map is the same for every target.", "yellow")
        probing = [name for name in chosen if METHODS[name.split("/")[0]].probe]
        if probing:
            tell(f"Note: {', '.join(probing)}: tens to thousands of forward passes per photo and class.", "yellow")
        with err.status(f"Explaining {len(sources)} × {len(chosen)}…"):
            opened = [Source.read(path, name) for name, path in sources.items()]
            found = tokentm.compare(vision, opened, options, targets, batch_size=batch_size)
            _save(found, to, draw_comparison(found))
    plural = "s" * (len(sources) != 1)
    out.print(f"Compared {', '.join(found)} on {len(sources)} image{plural}.", markup=False, soft_wrap=True)
    out.print(f"Figure: {to / 'compare.png'}; numbers and manifest are beside it.", markup=False, soft_wrap=True)


def _chosen(methods: str, backward: str | None) -> list[str]:
    """Every method asked for, under every rule that applies to it."""
    from tokentm.backward import BACKWARD
    from tokentm.methods import METHODS
    from tokentm.session import Request

    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        Request.parse(name)  # unknown names and rules are told before the model is loaded
    if not names:
        raise InputError(f"--methods {methods!r} names no method; give names separated by commas, or all.")
    if backward is None:
        return names
    rules = [BACKWARD[rule.strip()] for rule in backward.split(",")]
    chosen = []
    for name in names:
        method = METHODS[name.split("/")[0]]
        if "/" in name or not method.composes:
            chosen.append(name)
        else:
            chosen += [name if rule.name == method.backward else f"{name}/{rule.name}" for rule in rules]
    return chosen


def _save(found: "dict[str, Explanation]", folder: Path, picture: "Image.Image") -> None:
    import numpy as np

    from tokentm.files import write_atomically

    png, npz = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG")
    arrays: dict[str, Any] = {name: explanation.relevance.numpy() for name, explanation in found.items()}
    np.savez_compressed(npz, **arrays)
    rows = {name: [explanation.manifest(row) for row in range(len(explanation))] for name, explanation in found.items()}
    manifest = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    for suffix, content in (
        (".png", png.getvalue()),
        (".npz", npz.getvalue()),
        (".json", manifest.encode(errors="backslashreplace")),
    ):
        with write_atomically(folder / f"compare{suffix}") as temporary:
            temporary.write_bytes(content)
