"""``tokentm explain PHOTO… | FOLDER``."""

import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokentm.cli._app import EXIT_PARTIAL, DebugOption, command, err, out, tell
from tokentm.cli._engines import AddressOption, EngineOption, GpusOption, WorkersOption, device_of_driver, make_engine
from tokentm.cli._options import PrecisionOption, TargetOption, TopOption, fraction, wanted_target, whole_number
from tokentm.cli._places import find_photos, output_folder
from tokentm.errors import ImageError, InputError

if TYPE_CHECKING:
    import torch

    from tokentm.models import VisionModel
    from tokentm.photos import Batch, Row

__all__ = ["DEFAULT_MODEL", "LISTED", "chosen_device", "explain", "load", "said_of"]

DEFAULT_MODEL = "vit_base_patch16_224"
LISTED = 12  # photos up to which each result gets a line of its own


@command("explain")
def explain(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO|FOLDER", help="Images or folders of images; s3://… and the like, too.")
    ],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    target: TargetOption = None,
    top: TopOption = None,
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
    engine: EngineOption = "local",
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    workers: WorkersOption = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Explain photos: an overlay (PNG), the numbers (NPZ) and a manifest (JSON) for each."""
    wanted = wanted_target(target, top)
    with err.status("Starting…"):
        import numpy as np

        from tokentm.cli._options import parse_options
        from tokentm.engines.local import LocalEngine, spare_threads
        from tokentm.methods import METHODS
        from tokentm.models.images import open_image
        from tokentm.photos import PhotoJob, explain_photos
        from tokentm.render import colourise
        from tokentm.session import Request
        from tokentm.targets import with_texts

        computes = make_engine(
            engine, address, gpus_per_worker, workers, LocalEngine(threads=spare_threads()), reads=False
        )
        device = device_of_driver(engine, device)
        chosen = METHODS[method.partition("/")[0]]
        options = parse_options(chosen, settings or [])
        request = Request.parse(method, options)  # checks the backward rule that may stand behind the name
        if cmap is not None:
            colourise(np.zeros((1, 1), np.float32), cmap)  # an unknown name is told now, not once the model is loaded
        sources = find_photos(photos, to)
        if len(sources) == 1:  # nothing can be done without it, so that is told now too
            open_image(*sources.values())
    with output_folder(to):
        with err.status(f"Loading {escape(model)}…"):
            vision = with_texts(wanted, load(model, arch, device, precision))
        if wanted is not None and not chosen.class_specific:
            tell(f"Note: {method} does not depend on the class, so its map is the same for every target.", "yellow")
        job = PhotoJob(
            vision=vision,
            photos=tuple(sources.items()),
            target=wanted,
            request=request,
            drawing={"opacity": opacity, "cmap": cmap, "full": full},
            batch_size=batch_size,
        )
        report = _Report(to, len(sources))
        report.follow(explain_photos(job, to, computes))
        report.tell()


class _Report:
    """What is told once the work is done; a photo that failed does not stop the others."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = folder
        self._total = total
        self._failed: list[ImageError] = []
        self._lines: list[str] = []
        self._done = 0
        self._started = time.perf_counter()

    def follow(self, batches: "Generator[Batch, None, None]") -> None:
        """Take in batches as they get done, with a progress bar."""
        with _progress() as progress, closing(batches):
            bar = progress.add_task("Explaining", total=self._total)
            for batch in batches:
                self._failed += batch.failures
                self._done += batch.done
                if len(self._lines) <= LISTED:
                    self._lines += map(self._line, batch.rows)
                progress.advance(bar, batch.photos)

    def _line(self, row: "Row") -> str:
        return f"{said_of(row)}  →  {self._folder / row.stem}.png"

    def tell(self) -> None:
        """Say what was done and what failed; exits 1 when some photos failed, 2 when all did."""
        if self._total == 1 and self._failed:
            raise self._failed[0]
        if self._done:
            self._summarise()
        for error in self._failed:
            tell(f"Not explained: {error}")
        if not self._done:
            raise InputError(f"None of the {self._total} images could be explained.")
        if self._failed:
            raise typer.Exit(EXIT_PARTIAL)

    def _summarise(self) -> None:
        if len(self._lines) <= LISTED:
            for line in self._lines:
                out.print(line, markup=False, soft_wrap=True)
        seconds = time.perf_counter() - self._started
        out.print(
            f"Explained {self._done} of {self._total} image{'s' * (self._total != 1)} in {seconds:.1f} s "
            f"({self._done / seconds:.1f} per second); overlays, numbers and manifests are in {self._folder}.",
            markup=False,
            soft_wrap=True,
        )


def said_of(row: "Row") -> str:
    """Probability and name of a row's class."""
    # a single prompt has nothing to be compared with
    score = f"score {row.score:.2f}" if row.alone else f"{row.probability:6.1%}"
    return f"{score}  {row.class_name}"


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
