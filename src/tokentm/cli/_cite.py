"""``tokentm cite METHOD…``: what to put into a paper."""

from typing import TYPE_CHECKING, Annotated

import typer

from tokentm.cli._app import DebugOption, command, out

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cite"]


@command("cite")
def cite(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD|METHOD/RULE|RULE…]", help="TokenTM and the software without.")
    ] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Print BibTeX of the papers of methods and backward rules."""
    from tokentm.methods.bibliography import PAPERS, SOFTWARE

    entries = [PAPERS[key].bibtex(key) for key in _papers(methods or ["tokentm"])]
    if not methods:
        entries.append(SOFTWARE)
    out.print("\n\n".join(entries), markup=False, soft_wrap=True)


def _papers(names: "Sequence[str]") -> list[str]:
    """Keys of the papers of every method and rule that is named, each once."""
    from tokentm.backward import BACKWARD
    from tokentm.errors import InputError
    from tokentm.methods import METHODS
    from tokentm.session import Request

    keys: list[str | None] = []
    for name in names:
        if name in BACKWARD and name not in METHODS:
            keys.append(BACKWARD[name].paper)
            continue
        request = Request.parse(name)
        keys += request.method.papers
        rules = [request.backward, request.method.companion]
        keys += [BACKWARD[rule].paper for rule in rules if rule is not None]
    found = list(dict.fromkeys(key for key in keys if key is not None))
    if not found:
        raise InputError(f"{', '.join(names)}: nobody published this, so there is no paper to cite.")
    return found
