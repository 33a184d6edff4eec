"""A fault costs one image, one method or one sentence, and a run of any length the same memory."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokentm
from tests.support.scenes import METHODS, Scenes, rows_of, worker
from tests.support.sentences import assert_one_sentence
from tokentm.errors import ImageError, InputError, TokentmError
from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps, Metric, ProtocolKind
from tokentm.evaluate.runner import execute, prepare
from tokentm.models import ImageTransform

TEN = Scenes(10)


# --- images that fail -----------------------------------------------------------------------------------------------


def test_damaged_images_are_rows_with_a_reason_and_others_do_not_notice(tmp_path: Path) -> None:
    spoilt = execute(worker(Scenes(10, damaged=(4, 7), misfitting=(5,)), batch_size=1), tmp_path / "spoilt")
    whole = execute(worker(TEN, batch_size=1), tmp_path / "whole")
    failed = {row["index"]: row["failure"] for row in rows_of(spoilt) if row["failure"]}
    assert set(failed) == {4, 5, 7}
    assert "damaged" in failed[4]
    assert "7 × 5" in failed[5]
    assert len(rows_of(spoilt)) == 30
    good = [row for row in rows_of(spoilt) if row["index"] not in failed]
    assert good == [row for row in rows_of(whole) if row["index"] not in failed]
    assert sum(len(names) for names in spoilt.failures().values()) == 3


def test_a_batch_of_nothing_but_damaged_images(tmp_path: Path) -> None:
    results = execute(worker(Scenes(8, damaged=(0, 1, 2, 3))), tmp_path)
    assert results.table(resamples=50)[0].estimate.count == 4
    assert len(results) == 8


def test_an_image_without_label_fails_only_where_its_label_is_explained(tmp_path: Path) -> None:
    results = execute(worker(Scenes(4, unlabelled=(2,)), explained="both"), tmp_path)
    failed = [(row["index"], row["explained"]) for row in rows_of(results) if row["failure"]]
    assert failed == [(2, "target")] * 3
    assert int(results.labelled.sum()) == 3


@dataclass(frozen=True)
class NoConfig:
    """Nothing to set."""


def _picky(batch: Batch, maps: Sequence[Maps], config: Any) -> list[Any]:  # noqa: ARG001
    for found in maps:
        if found.request.name == "gae" and "scene-002" in batch.names:
            raise InputError("this one I do not like")
    return [{"size": found.relevance.sum((1, 2)).double().cpu().numpy()} for found in maps]


def test_a_protocol_that_refuses_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("size", lambda rows, weights: weights @ np.nan_to_num(rows["size"]), True)
    kind = ProtocolKind("picky", _picky, NoConfig, lambda _: (metric,), "", "")
    monkeypatch.setitem(PROTOCOLS._discover(), "picky", kind)
    results = execute(worker(Scenes(4), protocols=("picky", "segmentation")), tmp_path)
    failed = [(row["index"], row["method"], row["failure"]) for row in rows_of(results) if row["failure"]]
    assert failed == [(2, "gae", "picky: this one I do not like")]
    assert [np.isnan(row["picky.size"] or np.nan) for row in rows_of(results)].count(True) == 1
    assert results.failures() == {"gae: picky: this one I do not like": ("scene-002",)}


def test_a_map_that_is_not_finite_costs_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokentm.evaluate import worker as worker_module

    run = worker_module.run

    def spoilt(model: Any, images: Any, target: Any, requests: Any) -> Any:
        answers = run(model, images, target, requests)
        for request, answer in zip(requests, answers, strict=True):
            if request.name == "center":
                answer.relevance[0, 0, 0, 0] = float("nan")
        return answers

    monkeypatch.setattr(worker_module, "run", spoilt)
    results = execute(worker(Scenes(2)), tmp_path)
    failed = [(row["index"], row["method"]) for row in rows_of(results) if row["failure"]]
    assert failed == [(0, "center"), (1, "center")]
    assert "NaN" in next(iter(results.failures()))


# --- what is refused before any image is read -----------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "empty": {"dataset": Scenes(0)},
    "labels that do not match": {
        "dataset": Scenes(4, class_names=tuple("abcdefgh")), "protocols": ("perturbation",),
    },
    "no masks": {"dataset": Scenes(4, has_masks=False), "protocols": ("segmentation",)},
    "no labels to explain": {"dataset": Scenes(4, has_labels=False), "explained": "target"},
    "unknown class to explain": {"explained": "everything"},
    "no methods": {"methods": ()},
    "no protocols": {"protocols": ()},
    "unknown protocol": {"protocols": ("perturbatoin",)},
    "unknown preset": {"preset": "chefer"},
    "batch": {"batch_size": 0},
    "limit": {"limit": 0},
    "sample": {"sample": 0},
    "config of another protocol": {"protocols": {"segmentation": NoConfig()}},
    "no fixed size": {"transform": ImageTransform(resize=64)},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_told_in_one_sentence(name: str) -> None:
    given = {"dataset": Scenes(4), "methods": METHODS, "protocols": ("segmentation",), **REFUSED[name]}
    with pytest.raises(TokentmError) as caught:
        prepare("shapes", **given)
    assert_one_sentence(caught.value)


# --- memory ---------------------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from pathlib import Path
from tests.support.scenes import Scenes, worker
from tokentm.evaluate.runner import execute
execute(worker(Scenes(int(sys.argv[1])), part_size=16, batch_size=16), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for images in (64, 768):
        arguments = [sys.executable, "-c", _PEAK, str(images), str(tmp_path / str(images))]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40, f"MiB at 64 and at 768 images: {peaks}"


def test_a_transform_that_the_model_cannot_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        tokentm.evaluate(
            "shapes", "shapes:2", ["center"], ["saco"], transform=ImageTransform(resize=(40, 40)), out=tmp_path / "run"
        )
    assert_one_sentence(error.value)
    assert not (tmp_path / "run").exists()
