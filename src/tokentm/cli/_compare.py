"""``tokentm compare PHOTO…``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tokentm.cli._app import DebugOption, command, err, out, tell
from tokentm.cli._explain import DEFAULT_MODEL, LISTED, load, said_of
from tokentm.cli._options import (
    PrecisionOption,
    SetOption,
    TargetOption,
    TopOption,
    options_of_each,
    wanted_target,
    whole_number,
)
from tokentm.cli._places import find_photos, output_folder
from tokentm.errors import InputError

if TYPE_CHECKING:
    from rich.status import Status

    from tokentm.comparison import Comparison

__all__ = ["compare"]

_EVERY = 20.0  # seconds between lines of progress where there is no terminal


@command("compare")
def compare(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO|FOLDER", help="Images, or folders of images.")],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "tokentm,gae,rollout",
    settings: SetOption = None,
    target: TargetOption = None,
    top: TopOption = None,
    targets: Annotated[list[str] | None, typer.Option("--targets", hidden=True)] = None,  # the name before --target
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
    wanted = wanted_target([*(target or []), *(targets or [])], top)
    with err.status("Starting…"):
        import tokentm
        from tokentm.explanation import Source
        from tokentm.progress import watched

        chosen = _chosen(methods, backward)
        options = options_of_each(chosen, settings or [])
        sources = find_photos(photos, to, ("compare",))
    with output_folder(to):
        with err.status(f"Loading {escape(model)}…"):
            vision = load(model, arch, device, precision)
        _warn(chosen, targeted=wanted is not None)
        with err.status("Reading…") as status:
            opened = [Source.read(path, name) for name, path in sources.items()]
            turn = _Turn(status, len(sources))
            with watched(turn):
                found = tokentm.compare(vision, opened, options, wanted, batch_size=batch_size)
            status.update("Drawing…")
            found.save(to)
    _summarise(found, to, len(sources))


class _Turn:
    """Says whose turn it is: beside the spinner, or now and then in a line where there is no terminal."""

    def __init__(self, status: "Status", photos: int) -> None:
        self._status = status
        self._what = f"{photos} photo{'s' * (photos != 1)}"
        self._method = ""
        self._said = time.perf_counter()

    def begin(self, name: str) -> None:
        """Take the name of the method that begins."""
        self._method = name
        self._tell(name)

    def step(self, done: int, of: int) -> None:
        """Take how many steps of it are through."""
        self._tell(f"{self._method}, {done / of:.0%}")

    def _tell(self, method: str) -> None:
        self._status.update(f"Explaining {self._what}: {method}…")
        now = time.perf_counter()
        if not err.is_terminal and now - self._said > _EVERY:
            self._said = now
            tell(f"Explaining {self._what}: {method}…", "default")


def _warn(chosen: Sequence[str], *, targeted: bool) -> None:
    """Say beforehand which methods do not answer the question, and which take long."""
    from tokentm.methods import METHODS

    kinds = {name: METHODS[name.split("/")[0]] for name in chosen}
    blind = [name for name, method in kinds.items() if not method.class_specific]
    if targeted and blind:
        tell(f"Note: {', '.join(blind)}: blind to the class, so the map is the same for every target.", "yellow")
    slow = [name for name, method in kinds.items() if method.probe]
    if slow:
        rest = ",".join(name for name in chosen if name not in slow)
        leave = f"; --methods {rest} leaves them out" if rest else ""
        tell(f"Note: {', '.join(slow)}: tens to thousands of forward passes per photo and class{leave}.", "yellow")


def _summarise(found: "Comparison", folder: Path, photos: int) -> None:
    from tokentm.photos import rows_of

    rows = list(rows_of(next(iter(found.values()))))
    if len(rows) <= LISTED:
        for row in rows:
            out.print(f"{said_of(row)}  ({row.stem})", markup=False, soft_wrap=True)
    plural = "s" * (photos != 1)
    out.print(f"Compared {', '.join(found)} on {photos} image{plural}.", markup=False, soft_wrap=True)
    out.print(f"Figure: {folder / 'compare.png'}; numbers and manifest are beside it.", markup=False, soft_wrap=True)


def _chosen(methods: str, backward: str | None) -> list[str]:
    """Every method asked for, under every rule that applies to it; misspelt names are told before a model is loaded."""
    from tokentm.backward import BACKWARD
    from tokentm.methods import METHODS
    from tokentm.session import Request

    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError(f"--methods {methods!r} names no method; give names separated by commas, or all.")
    rules = [] if backward is None else [rule.strip() for rule in backward.split(",")]
    chosen = []
    for name in names:
        method = METHODS[name.split("/")[0]]
        if not rules or "/" in name or not method.composes:
            chosen.append(name)
            continue
        chosen += [name if rule == method.backward else f"{name}/{rule}" for rule in rules]
    for name in chosen:
        Request.parse(name)
    for rule in rules:
        _ = BACKWARD[rule]  # where no method takes one, it would be misspelt in silence
    return chosen
