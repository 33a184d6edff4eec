"""``tokentm demo``: the bundled models on scenes and photos, one picture."""

import io
from pathlib import Path
from typing import Annotated

import typer

from tokentm.cli._app import DebugOption, command, err, out
from tokentm.cli._options import whole_number
from tokentm.cli._places import output_folder

__all__ = ["demo"]


@command("demo")
def demo(
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write.")] = Path(
        "tokentm-demo.png"
    ),
    seed: Annotated[
        int, typer.Option(parser=whole_number(0, 2**32 - 1), metavar="N", help="Another seed draws other scenes.")
    ] = 12,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Show TokenTM beside the truth, on scenes and photos that the bundled models never saw; needs no network."""
    with output_folder(to.parent), err.status("Explaining scenes and photos…"):
        from tokentm.files import write_atomically
        from tokentm.report.demo import make_demo

        shown = make_demo(seed)
        content = io.BytesIO()
        shown.picture.save(content, "PNG")
        with write_atomically(to) as temporary:
            temporary.write_bytes(content.getvalue())
    for line in shown.lines:
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"Picture: {to}", markup=False, soft_wrap=True)
