"""``tokentm evaluate DATA`` and ``tokentm report RUN…``."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokentm.cli._app import EXIT_INTERRUPTED, DebugOption, command, err, out, tell
from tokentm.cli._engines import AddressOption, EngineOption, GpusOption, WorkersOption, device_of_driver, make_engine
from tokentm.cli._explain import DEFAULT_MODEL, load
from tokentm.cli._figures import show_findings
from tokentm.cli._options import PrecisionOption, SetOption, options_of_each, whole_number
from tokentm.errors import DatasetError, InputError
from tokentm.files import writable_folder

if TYPE_CHECKING:
    from tokentm.evaluate.results import Results

__all__ = ["evaluate", "report"]

_DEFAULT_METHODS = "tokentm, gae, rollout, raw_attention, gradcam, random, center"  # spaces let --help wrap it
_EVERY = 20.0  # seconds between lines of progress where there is no terminal

OnlyCorrect = Annotated[
    bool, typer.Option("--only-correct", help="Leave misclassified images out of the first tables; both are shown.")
]
Against = Annotated[
    str | None, typer.Option(metavar="published", help="Lay figures from papers beside those of the run.")
]


@command("evaluate")
def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, or KIND:PLACE; see `tokentm datasets`.")],
    model: Annotated[str, typer.Option(help="See `tokentm models`.")] = DEFAULT_MODEL,
    methods: Annotated[str, typer.Option(help="Names separated by commas, NAME/RULE too, or all.")] = _DEFAULT_METHODS,
    settings: SetOption = None,
    protocols: Annotated[
        str | None,
        typer.Option(help="Names separated by commas; see `tokentm protocols`. \\[perturbation, or the preset's]"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Constants of a paper; see `tokentm protocols`.")] = None,
    explained: Annotated[
        str | None, typer.Option("--explain", metavar="predicted|target|both", help="Which class is explained.")
    ] = None,
    limit: Annotated[int | None, typer.Option(parser=whole_number(1), metavar="N", help="The first N images.")] = None,
    sample: Annotated[
        int | None, typer.Option(parser=whole_number(1), metavar="N", help="N images drawn at random by --seed.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run.")] = Path("run"),
    only_correct: OnlyCorrect = False,
    against: Against = None,
    arch: Annotated[str | None, typer.Option(help="timm architecture of a weight file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: PrecisionOption = None,
    batch_size: Annotated[int, typer.Option(parser=whole_number(1), metavar="N", help="Images explained at once.")] = 8,
    engine: EngineOption = "local",
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    workers: WorkersOption = None,
    seed: Annotated[int, typer.Option(parser=whole_number(0, 2**32 - 1), metavar="N", help="Of all chance.")] = 0,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Measure how far explanations can be trusted; run again after an interruption to go on."""
    _check_against(against)
    with err.status("Starting…"):
        from tokentm.evaluate import check_extra

        check_extra()
        from tokentm.engines.local import LocalEngine
        from tokentm.evaluate.runner import execute, prepare

        local = LocalEngine(_default_workers() if workers is None else workers)
        computes = make_engine(engine, address, gpus_per_worker, workers, local, reads=True)
        device = device_of_driver(engine, device)
        names = _every(_names("--methods", methods))
        wanted = None if protocols is None else _names("--protocols", protocols)
        chosen = options_of_each(names, settings or [])
        _check_names(wanted, preset, data)
    with err.status(f"Loading {escape(model)}…"):
        worker = prepare(
            load(model, arch, device, precision), data, chosen, wanted,
            preset=preset, explained=explained, limit=limit, sample=sample, batch_size=batch_size, seed=seed,
        )  # fmt: skip
    with _progress(to) as tick:
        results = execute(worker, to, tick, computes)
    with err.status("Writing the report…"):
        from tokentm.report.evaluation import write_findings
        from tokentm.report.evaluation.findings import find

        findings = find([results], only_correct)
        page = write_findings(findings, to, against=against)
    _tell_failures(results)
    show_findings(findings)
    out.print(f"Report: {page}; results.parquet, summary.csv and table.tex beside it.", markup=False, soft_wrap=True)


@command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of `tokentm evaluate`.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where the report goes. \\[the run; report for several]"),
    ] = None,
    only_correct: OnlyCorrect = False,
    against: Against = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Write the report of a finished run again, or one report of several runs."""
    _check_against(against)
    with err.status("Reading…"):
        from tokentm.evaluate import check_extra

        check_extra()
        from tokentm.evaluate.results import Results
        from tokentm.report.evaluation import write_findings
        from tokentm.report.evaluation.findings import find

        found = [Results.read(run) for run in runs]
        folder = writable_folder(to or (runs[0] if len(runs) == 1 else Path("report")))
        findings = find(found, only_correct)
        page = write_findings(findings, folder, against=against, title=title)
    show_findings(findings)
    out.print(f"Report: {page}; summary.csv and table.tex beside it.", markup=False, soft_wrap=True)


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option} {text!r} gives no name; give names separated by commas.")
    return names


def _check_against(against: str | None) -> None:
    if against not in (None, "published"):
        raise InputError(f"--against {against!r} is unknown; 'published' works.")


def _every(names: list[str]) -> list[str]:
    """The names, every method for ``all``; unknown ones are told before a model is loaded, which can take minutes."""
    from tokentm.session import Request

    return list(Request.parse_all(names))


def _check_names(protocols: Sequence[str] | None, preset: str | None, data: str) -> None:
    """Tell what is misspelt before a model is loaded, which can take minutes."""
    from tokentm.datasets.open_dataset import open_dataset
    from tokentm.evaluate.presets import PRESETS
    from tokentm.evaluate.registry import PROTOCOLS

    for name in protocols or ():
        PROTOCOLS[name]
    if preset is not None:
        PRESETS[preset]
    open_dataset(data)


def _default_workers() -> int:
    """As many readers as leave two cores for the model; on a small machine this process reads by itself."""
    return max(0, min(8, (os.cpu_count() or 1) - 2))


@contextmanager
def _progress(run: Path) -> Iterator[Any]:
    """Yield what is told how many images are done; Ctrl-C within says how to go on."""
    bar = Progress(
        TextColumn("Evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    state = _Rate()
    with bar:
        task = bar.add_task("", total=None, rate="")

        def tick(done: int, total: int) -> None:
            rate = state.told(done, total)
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f} per second" if rate else "")

        try:
            yield tick
        except KeyboardInterrupt:
            tell(f"Stopped at {state.done} of {state.total} images; run the same command again to go on in {run}.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


class _Rate:
    """How fast images get done in this start; told in lines where there is no terminal for a bar."""

    def __init__(self) -> None:
        self.done, self.total = 0, 0
        self._before: int | None = None
        self._started = self._said = time.perf_counter()

    def told(self, done: int, total: int) -> float:
        """Take the new count, return images per second."""
        now = time.perf_counter()
        if self._before is None:
            self._before, self._started = done, now
            if 0 < done < total:
                tell(f"Going on with {done} of {total} images done.", "default")
        self.done, self.total = done, total
        rate = (done - self._before) / max(now - self._started, 1e-9) if done > self._before else 0.0
        if rate and not err.is_terminal and now - self._said > _EVERY:
            self._said = now
            tell(
                f"{done} of {total} images, {rate:.1f} per second, {_duration((total - done) / rate)} left.", "default"
            )
        return rate


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _tell_failures(results: "Results") -> None:
    failures = results.failures()
    names = {name for found in failures.values() for name in found}
    if names and len(names) == len(results) and all(row is not None for row in results.columns["failure"].flat):
        reason = next(iter(failures)).rstrip(".")
        raise DatasetError(f"None of the {len(results)} images could be evaluated: {reason}.")
    for reason, found in list(failures.items())[:3]:
        tell(f"Failed: {reason} ({len(found)} image{'s' * (len(found) != 1)}).", "yellow")
    if names:
        tell(f"{len(names)} of {len(results)} images have failures; the report lists all reasons.", "yellow")
