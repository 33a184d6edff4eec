"""``tokentm explain PHOTO… | FOLDER``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokentm.cli._app import EXIT_PARTIAL, DebugOption, command, err, out
from tokentm.errors import ImageError, InputError

if TYPE_CHECKING:
    from tokentm.explanation import Explanation, Source
    from tokentm.models import VisionModel

__all__ = ["explain"]

DEFAULT_MODEL = "vit_base_patch16_224"
_LISTED = 12  # photos up to which each result gets a line of its own


@command("explain")
def explain(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO… | FOLDER", help="Images, or folders of images.")],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    target: Annotated[str | None, typer.Option(help="Class name or index; the predicted class without it.")] = None,
    top: Annotated[int | None, typer.Option(min=1, metavar="K", help="Explain the K best classes.")] = None,
    method: Annotated[str, typer.Option(help="See `tokentm methods`.")] = "tokentm",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the method; repeatable.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")] = Path("out"),
    full: Annotated[bool, typer.Option("--full", help="Draw on the whole photo, not on the crop.")] = False,
    opacity: Annotated[float, typer.Option(help="Of the relevance: 0 to 1.")] = 0.85,
    cmap: Annotated[str, typer.Option(help="A matplotlib colour map.")] = "inferno",
    arch: Annotated[str | None, typer.Option(help="timm architecture of a weight file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Photos at once.")] = 8,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Explain photos: an overlay (PNG), the numbers (NPZ) and a manifest (JSON) for each."""
    if target is not None and top is not None:
        raise InputError("--target and --top exclude each other; give one.")
    with err.status("Starting…"):
        from tokentm.cli._options import parse_options
        from tokentm.files import writable_folder
        from tokentm.methods import METHODS

        chosen = METHODS[method]
        options = parse_options(chosen, settings or [])
        sources = _named(photos)
        writable_folder(to)
    with err.status(f"Loading {model}…"):
        vision = _load(model, arch, device)
    if target is not None and not chosen.class_specific:
        err.print(f"Note: {method} does not depend on the class, so --target changes only the caption.", style="yellow")
    work = _Work(
        vision=vision,
        arguments={"target": target or (f"top{top}" if top else None), "method": method, "options": options},
        drawing={"opacity": opacity, "cmap": cmap, "full": full},
        folder=to,
    )
    work.run(sources, batch_size)
    work.report(len(sources))


class _Work:
    """Streams photos through the model in batches; a photo that cannot be read does not stop the others."""

    def __init__(self, vision: "VisionModel", arguments: dict[str, Any], drawing: dict[str, Any], folder: Path) -> None:
        self._vision = vision
        self._arguments = arguments
        self._drawing = drawing
        self._folder = folder
        self._failed: list[ImageError] = []
        self._lines: list[str] = []
        self._done = 0
        self._started = time.perf_counter()

    def run(self, sources: dict[str, Path], batch_size: int) -> None:
        """Explain and save everything, with a progress bar."""
        with _progress() as progress:
            bar = progress.add_task("Explaining", total=len(sources))
            for batch in _chunks(list(sources.items()), batch_size):
                opened = [source for name, path in batch if (source := self._open(name, path)) is not None]
                if opened:
                    self._explain(opened)
                progress.advance(bar, len(batch))

    def _open(self, name: str, path: Path) -> "Source | None":
        from tokentm.explanation import Source

        try:
            return Source.read(path, name)
        except ImageError as error:
            self._failed.append(error)
            return None

    def _explain(self, opened: "list[Source]") -> None:
        import torch

        import tokentm

        try:
            explanation = tokentm.explain(self._vision, opened, batch_size=len(opened), **self._arguments)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"A batch of {len(opened)} does not fit into the memory of {self._vision.device}; "
                "give a smaller --batch-size, or --device cpu."
            ) from error
        explanation.save(self._folder, **self._drawing)
        self._done += len(opened)
        if len(self._lines) <= _LISTED:
            self._lines += self._describe(explanation)

    def _describe(self, explanation: "Explanation") -> Iterator[str]:
        for row, name in enumerate(explanation.class_name):
            yield f"{explanation.probability[row]:6.1%}  {name}  →  {explanation.stem(self._folder, row)}.png"

    def report(self, total: int) -> None:
        """Say what was done and what failed; exits 1 when some photos failed, 2 when all did."""
        if self._done == 0:
            raise (
                self._failed[0]
                if len(self._failed) == 1
                else InputError(f"None of the {total} images could be read; the first: {self._failed[0]}")
            )
        if len(self._lines) <= _LISTED:
            for line in self._lines:
                out.print(line, markup=False, soft_wrap=True)
        seconds = time.perf_counter() - self._started
        out.print(
            f"Explained {self._done} of {total} image{'s' * (total != 1)} in {seconds:.1f} s "
            f"({self._done / seconds:.1f} per second); overlays, numbers and manifests are in {self._folder}.",
            soft_wrap=True,
        )
        for error in self._failed:
            err.print(f"Not explained: {error}", markup=False, soft_wrap=True, style="red")
        if self._failed:
            raise typer.Exit(EXIT_PARTIAL)


def _named(photos: list[Path]) -> dict[str, Path]:
    """Every image with the name its results get: its path below the folder it was found in, without suffix.

    Two images of one name (``a.jpg`` and ``a.png``) keep their suffix as part of it.
    """
    from tokentm.models.images import find_images

    found: list[tuple[Path, Path]] = []
    for photo in photos:
        if photo.is_dir():
            found += [(path, path.relative_to(photo)) for path in find_images(photo)]
        elif photo.exists():
            found.append((photo, Path(photo.name)))
        else:
            raise ImageError(f"There is no file {photo}; give images or folders of images.")
    stems = [str(below.with_suffix("")) for _, below in found]
    named: dict[str, Path] = {}
    for (path, below), stem in zip(found, stems, strict=True):
        name = stem if stems.count(stem) == 1 else str(below).replace(".", "_")
        count = 2
        while name in named:
            name, count = f"{stem}-{count}", count + 1
        named[name] = path
    return named


def _load(model: str, arch: str | None, device: str) -> "VisionModel":
    import torch

    from tokentm.models import load_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"Device {device!r} cannot be used here; 'cpu' and 'auto' work.") from error
    return load_model(model, arch=arch, device=chosen)


def _chunks(entries: list[tuple[str, Path]], size: int) -> Iterator[list[tuple[str, Path]]]:
    return (entries[low : low + size] for low in range(0, len(entries), size))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
