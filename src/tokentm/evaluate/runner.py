"""``tokentm.evaluate()``: from a model and a data set to figures, through a run that can be interrupted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tokentm.datasets.labels import match_labels
from tokentm.datasets.open_dataset import open_dataset
from tokentm.datasets.registry import Dataset
from tokentm.datasets.sample import Sample
from tokentm.engines.contract import Engine
from tokentm.engines.local import LocalEngine
from tokentm.errors import DatasetError, InputError
from tokentm.evaluate.decoding import check_transform, input_size
from tokentm.evaluate.gallery import write_gallery
from tokentm.evaluate.presets import PRESETS, Preset
from tokentm.evaluate.registry import PROTOCOLS
from tokentm.evaluate.results import Results
from tokentm.evaluate.spec import EXPLAINED, ModelSpec, RunSpec
from tokentm.evaluate.store import RunStore, locked
from tokentm.evaluate.worker import Worker
from tokentm.models import ImageTransform, VisionModel, load_model
from tokentm.session import Request

__all__ = ["DEFAULT_METHODS", "Progress", "evaluate", "execute", "prepare"]

DEFAULT_METHODS: Final = ("tokentm", "gae", "rollout", "raw_attention", "gradcam", "random", "center")
_PART: Final = 64  # images per file, about: what an interruption can cost
_CHUNK: Final = 8  # times the batch: perturbed images need no gradients, so that many more fit into memory

Progress = Callable[[int, int], None]
"""Told how many images are done, and how many there are; first with those of an earlier start."""


def evaluate(
    model: str | Path | nn.Module | VisionModel,
    dataset: str | Path | Dataset,
    methods: Sequence[str] | Mapping[str, Any] = DEFAULT_METHODS,
    protocols: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    preset: str | Preset | None = None,
    explained: str | None = None,
    transform: ImageTransform | None = None,
    limit: int | None = None,
    sample: int | None = None,
    out: str | Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Results:
    """Measure how far the explanations of a model can be trusted, on a data set.

    Args:
        model: As for ``explain``.
        dataset: A data set, or the place of one: ``"imagenet:path"``, a folder of photos, ``"shapes"``.
        methods: Names of ``tokentm.METHODS``, each alone or as ``"name/rule"``; ``["all"]`` takes every method. A
            mapping gives each name its options, or None for the published ones.
        protocols: Names of protocols, or a config for each name; None takes those of the preset, else perturbation.
        preset: How the data is prepared and which constants the protocols have, by name; see ``PRESETS``.
        explained: ``"predicted"``, ``"target"`` (the labelled class) or ``"both"``; None takes the preset's, else
            predicted.
        transform: From photo to input; overrides the preset's and the model's own.
        limit: Evaluate the first so many images only.
        sample: Evaluate so many images drawn at random by ``seed``; most data sets lie sorted by class.
        out: Folder of the run. One that was interrupted goes on where it stopped. None makes one below ``runs/``
            whose name follows from everything that is asked for.
        batch_size: Images explained at once.
        workers: Processes that read images. With more than 0 the calling script must be importable (an
            ``if __name__ == "__main__"`` around the call), because they are started afresh.
        seed: Of everything random: methods (whatever seed their options name), protocols, intervals.
        progress: See ``Progress``.
        engine: Where parts are computed; None takes this machine with ``workers``.

    Returns:
        Rows and figures, read from ``out``.

    Raises:
        InputError: An argument that cannot be used, or ``out`` holds another run.
        DatasetError: The data set does not fit the model or the protocols.
        OutputError: ``out`` cannot be written.
    """
    worker = prepare(
        model, dataset, methods, protocols, preset=preset, explained=explained, transform=transform, limit=limit,
        sample=sample, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    engine = engine or LocalEngine(workers)
    spec = worker.spec if engine.device is None else worker.spec.computed_on(engine.device)
    folder = Path(out) if out is not None else Path("runs") / spec.manifest()["identity"][:16]
    return execute(worker, folder, progress, engine)


def prepare(
    model: str | Path | nn.Module | VisionModel,
    dataset: str | Path | Dataset,
    methods: Sequence[str] | Mapping[str, Any] = DEFAULT_METHODS,
    protocols: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    preset: str | Preset | None = None,
    explained: str | None = None,
    transform: ImageTransform | None = None,
    limit: int | None = None,
    sample: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Worker:
    """Check everything that can be checked before any image is read, and say what the run is; see ``evaluate``."""
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    requests = _requests(methods, seed)
    for name, value in (("batch_size", batch_size), ("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} is too small; expected 1 or more.")
    data = open_dataset(dataset)
    data = data if sample is None else Sample.draw(data, sample, seed)
    kinds = _kinds(explained or (chosen.explained if chosen and data.has_labels else "predicted"))
    configs = _configs(protocols, chosen, data)
    _check_data(data, configs, kinds)
    vision = load_model(model)
    if vision.anatomy.num_classes < 2:
        raise InputError(
            f"The model {vision.name} has one class, which it always names; models of two classes and more can be "
            "evaluated."
        )
    # Where nothing asks for labels, those that the model does not know do no harm.
    needed = "target" in kinds or any(
        PROTOCOLS[name].needs_labels or getattr(config, "label", "") == "true" for name, config in configs.items()
    )
    labels = match_labels(data, vision, partial=not needed) if data.has_labels else None
    wanted = transform or (chosen.transform_for(vision) if chosen else None) or vision.transform
    seen = check_transform(wanted, vision.name)
    vision.anatomy.check_images(vision.anatomy.channels, *input_size(seen))
    spec = RunSpec(
        model=ModelSpec.of(vision),
        data=_short_name(data.name),
        fingerprint=data.fingerprint(),
        labels=labels,
        images=min(len(data), limit or len(data)),
        requests=requests,
        explained=kinds,
        protocols=tuple(configs.items()),
        preset=chosen.name if chosen else None,
        transform=seen,
        batch_size=batch_size,
        chunk=_CHUNK * batch_size,
        part_size=max(1, _PART // batch_size) * batch_size,
        seed=seed,
    )
    # Protocols that paint pixels black must know the mean and std that these images were normalised with.
    return Worker(spec, replace(vision, transform=seen), data)


def execute(
    worker: Worker,
    folder: Path,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Results:
    """Compute the parts that are missing in ``folder``, put all rows into one file and read it; see ``evaluate``."""
    engine = engine or LocalEngine()
    if engine.device is not None:
        worker = replace(worker, spec=worker.spec.computed_on(engine.device))
    spec = worker.spec
    with locked(folder):
        store = RunStore(folder, spec)
        store.claim()
        missing = store.missing()
        done = spec.images - sum(len(spec.images_of(part)) for part in missing)

        def tick(images: int) -> None:
            nonlocal done
            done += images
            if progress is not None:
                progress(done, spec.images)

        tick(0)

        try:
            for part, rows in engine.run(worker, missing, tick):
                store.write(part, rows)
        except torch.OutOfMemoryError as fault:
            raise InputError(
                f"Batches of {spec.batch_size} do not fit into the memory of {engine.device or worker.model.device}; "
                "give a smaller batch size and another output folder."
            ) from fault
        store.merge()
        results = Results.read(folder)
        write_gallery(results, worker)
    return results


def _requests(methods: Sequence[str] | Mapping[str, Any], seed: int) -> tuple[Request, ...]:
    wanted = Request.parse_all(methods)
    if not wanted:
        raise InputError("Got no methods to evaluate; give at least one.")
    return tuple(_seeded(request, seed) for request in wanted.values())


def _seeded(request: Request, seed: int) -> Request:
    if all(field.name != "seed" for field in fields(request.options)):
        return request
    return replace(request, options=replace(request.options, seed=seed))


def _kinds(explained: str) -> tuple[str, ...]:
    if explained == "both":
        return EXPLAINED
    if explained not in EXPLAINED:
        raise InputError(f"explained={explained!r} is unknown; 'predicted', 'target' and 'both' work.")
    return (explained,)


def _configs(
    protocols: Sequence[str] | Mapping[str, Any] | None, preset: Preset | None, data: Dataset
) -> dict[str, Any]:
    """Config of each protocol: the one given, else the preset's, else the published one.

    Where nobody named protocols, those of the preset are taken that the data has masks and labels for.
    """
    of_preset = dict(preset.configs) if preset else {}
    if protocols is None:
        fitting = [name for name in of_preset if _lacks(data, name) is None]
        protocols = fitting or tuple(of_preset) or ("perturbation",)
    if not protocols:
        raise InputError("Got no protocols; give at least one.")
    given = protocols if isinstance(protocols, Mapping) else {}
    configs = {}
    for name in protocols:
        kind = PROTOCOLS[name]
        config = given.get(name) or of_preset.get(name) or kind.config()
        if type(config) is not kind.config:
            raise InputError(f"Protocol {name!r} takes {kind.config.__name__}, got {type(config).__name__}.")
        configs[name] = config
    return configs


def _lacks(data: Dataset, protocol: str) -> str | None:
    """What a protocol needs and the data set has not, in a word."""
    kind = PROTOCOLS[protocol]
    if kind.needs_masks and not data.has_masks:
        return "masks"
    return "labels" if kind.needs_labels and not data.has_labels else None


def _check_data(data: Dataset, configs: Mapping[str, Any], kinds: Sequence[str]) -> None:
    if not len(data):
        raise DatasetError(f"The data set {data.name} is empty; give one with at least one image.")
    for name in configs:
        if (missing := _lacks(data, name)) is not None:
            raise DatasetError(
                f"Protocol {name!r} needs {missing}, and {data.name} has none; leave it out or give a data set with "
                f"{missing}."
            )
    if "target" in kinds and not data.has_labels:
        raise DatasetError(f"The labelled class cannot be explained, as {data.name} has no labels; give 'predicted'.")


def _short_name(name: str) -> str:
    """Kind and last part of the place: where a folder lies does not make it another run, and is nobody's business."""
    kind, colon, place = name.partition(":")
    return f"{kind}:{Path(place).name}" if colon and ("/" in place or "\\" in place) else name
