"""``tokentm explain PHOTO… | FOLDER``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokentm.cli._app import EXIT_PARTIAL, DebugOption, command, err, out, tell
from tokentm.cli._options import PrecisionOption, fraction, whole_number
from tokentm.cli._places import find_photos, output_folder
from tokentm.errors import ImageError, InputError

if TYPE_CHECKING:
    import torch

    from tokentm.explanation import Explanation, Source
    from tokentm.models import VisionModel

__all__ = ["DEFAULT_MODEL", "chosen_device", "explain", "load"]

DEFAULT_MODEL = "vit_base_patch16_224"
_LISTED = 12  # photos up to which each result gets a line of its own


@command("explain")
def explain(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO|FOLDER", help="Images, or folders of images.")],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Class name or index, or any text for an image–text model; repeatable."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(parser=whole_number(1), metavar="K", help="Explain the K best classes.")
    ] = None,
    method: Annotated[str, typer.Option(help="See `tokentm methods`; NAME/RULE sets the backward rule.")] = "tokentm",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the method; repeatable.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")] = Path("out"),
    full: Annotated[bool, typer.Option("--full", help="Draw on the whole photo, not on the crop.")] = False,
    opacity: Annotated[float, typer.Option(parser=fraction, metavar="0..1", help="Of the relevance.")] = 0.85,
    cmap: Annotated[str | None, typer.Option(help="A matplotlib colour map.")] = None,
    arch: Annotated[str | None, typer.Option(help="timm architecture of a weight file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: PrecisionOption = None,
    batch_size: Annotated[int, typer.Option(parser=whole_number(1), metavar="N", help="Photos at once.")] = 8,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Explain photos: an overlay (PNG), the numbers (NPZ) and a manifest (JSON) for each."""
    if target and top is not None:
        raise InputError("--target and --top exclude each other; give one.")
    with err.status("Starting…"):
        import numpy as np

        from tokentm.cli._options import parse_options
        from tokentm.methods import METHODS
        from tokentm.models.images import open_image
        from tokentm.render import colourise
        from tokentm.session import Request
        from tokentm.targets import with_texts

        chosen = METHODS[method.partition("/")[0]]
        options = parse_options(chosen, settings or [])
        Request.parse(method, options)  # checks the backward rule that may stand behind the name
        if cmap is not None:
            colourise(np.zeros((1, 1), np.float32), cmap)  # an unknown name is told now, not once the model is loaded
        sources = find_photos(photos, to)
        if len(sources) == 1:  # nothing can be done without it, so that is told now too
            open_image(*sources.values())
    with output_folder(to):
        with err.status(f"Loading {escape(model)}…"):
            wanted = f"top{top}" if top is not None else "; ".join(target) if target else None
            vision = with_texts(wanted, load(model, arch, device, precision))
        if wanted is not None and not chosen.class_specific:
            tell(f"Note: {method} does not depend on the class, so its map is the same for every target.", "yellow")
        work = _Work(
            vision=vision,
            sources=sources,
            arguments={"target": wanted, "method": method, "options": options},
            drawing={"opacity": opacity, "cmap": cmap, "full": full},
            folder=to,
        )
        work.run(batch_size)
        work.report()


class _Work:
    """Streams photos through the model in batches; a photo that cannot be read does not stop the others."""

    def __init__(
        self,
        vision: "VisionModel",
        sources: dict[str, Path],
        arguments: dict[str, Any],
        drawing: dict[str, Any],
        folder: Path,
    ) -> None:
        self._vision = vision
        self._sources = sources
        self._arguments = arguments
        self._drawing = drawing
        self._folder = folder
        self._failed: list[ImageError] = []
        self._lines: list[str] = []
        self._done = 0
        self._started = time.perf_counter()

    def run(self, batch_size: int) -> None:
        """Explain and save everything, with a progress bar."""
        with _progress() as progress:
            bar = progress.add_task("Explaining", total=len(self._sources))
            for batch in _chunks(list(self._sources.items()), batch_size):
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
        except ImageError as error:  # it opens, but cannot be brought to the model's input
            self._without(opened, error)
            return
        explanation.save(self._folder, **self._drawing)
        self._done += len(opened)
        if len(self._lines) <= _LISTED:
            self._lines += self._describe(explanation)

    def _without(self, opened: "list[Source]", error: ImageError) -> None:
        """Explain a batch one by one, as one of its photos was refused."""
        if len(opened) == 1:
            self._failed.append(ImageError(f"{self._sources[opened[0].name]}: {error}"))
            return
        for source in opened:
            self._explain([source])

    def _describe(self, explanation: "Explanation") -> Iterator[str]:
        for row, name in enumerate(explanation.class_name):
            score = f"{explanation.probability[row]:6.1%}"
            if explanation.logits.shape[1] == 1:  # a single prompt has nothing to be compared with
                score = f"score {float(explanation.logits[row, 0]):.2f}"
            yield f"{score}  {name}  →  {explanation.stem(self._folder, row)}.png"

    def report(self) -> None:
        """Say what was done and what failed; exits 1 when some photos failed, 2 when all did."""
        total = len(self._sources)
        if total == 1 and self._failed:
            raise self._failed[0]
        if self._done:
            self._summarise(total)
        for error in self._failed:
            tell(f"Not explained: {error}")
        if not self._done:
            raise InputError(f"None of the {total} images could be explained.")
        if self._failed:
            raise typer.Exit(EXIT_PARTIAL)

    def _summarise(self, total: int) -> None:
        if len(self._lines) <= _LISTED:
            for line in self._lines:
                out.print(line, markup=False, soft_wrap=True)
        seconds = time.perf_counter() - self._started
        out.print(
            f"Explained {self._done} of {total} image{'s' * (total != 1)} in {seconds:.1f} s "
            f"({self._done / seconds:.1f} per second); overlays, numbers and manifests are in {self._folder}.",
            markup=False,
            soft_wrap=True,
        )


def load(model: str, arch: str | None, device: str, precision: str | None) -> "VisionModel":
    import torch

    from tokentm.models import load_model

    dtype = None if precision is None else getattr(torch, precision)
    return load_model(model, arch=arch, device=chosen_device(device), dtype=dtype)


def chosen_device(device: str) -> "torch.device":
    """What ``--device`` means on this machine."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()  # "meta" can be filled, but not read
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"Device {device!r} cannot be used here; 'cpu' and 'auto' work.") from error
    return chosen


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
        disable=not err.is_terminal,
    )
