"""Runs on scenes: what the rows hold, that interruptions leave no trace, that a fault costs one image or sentence."""

import errno
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tokentm
from tests.support.scenes import METHODS, Scenes, contents, rows_of, worker
from tests.support.sentences import assert_one_sentence
from tokentm.engines.local import LocalEngine
from tokentm.errors import InputError, OutputError
from tokentm.evaluate import store as store_module
from tokentm.evaluate.decoding import seen_mask
from tokentm.evaluate.protocols._perturb import fill
from tokentm.evaluate.registry import Batch
from tokentm.evaluate.results import Results
from tokentm.evaluate.runner import execute, prepare
from tokentm.evaluate.spec import differences, identity
from tokentm.evaluate.store import MANIFEST, RESULTS, locked
from tokentm.evaluate.worker import Worker
from tokentm.methods.registry import NoOptions
from tokentm.methods.rise import RiseConfig
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.models import ImageTransform
from tokentm.report.evaluation import write_report

TEN = Scenes(10)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return execute(worker(TEN, explained="both"), tmp_path_factory.mktemp("ten") / "run")


def figures(results: Results) -> list[tuple[str, str, str, str]]:
    return [(one.method, one.explained, one.metric.name, repr(one.estimate)) for one in results.table(resamples=50)]


# --- what the rows hold ---------------------------------------------------------------------------------------------


def test_one_row_per_image_class_and_method_in_order(ten: Results) -> None:
    keys = [(row["index"], row["explained"], row["method"]) for row in rows_of(ten)]
    assert keys == [(i, kind, name) for i in range(10) for kind in ("predicted", "target") for name in METHODS]
    assert [row["name"] for row in rows_of(ten)[::6]] == [TEN.key(index) for index in range(10)]


def test_rows_hold_what_explain_says(ten: Results) -> None:
    photos = [TEN[index].photo for index in range(10)]
    labels = [TEN[index].label for index in range(10)]
    for kind, target in (("predicted", None), ("target", labels)):
        for name in METHODS:
            expected = tokentm.explain("shapes", photos, target, name)
            for image in range(10):
                row = rows_of(ten)[image * 6 + 3 * (kind == "target") + METHODS.index(name)]
                grid = torch.tensor(row["relevance"]).view(row["grid_y"], row["grid_x"])
                torch.testing.assert_close(grid, expected.relevance[image], rtol=1e-3, atol=1e-6)
                assert row["target"] == int(expected.target[image])
                assert row["probability"] == pytest.approx(float(expected.probability[image]), rel=1e-4)
                assert row["label"] == labels[image]
                assert row["predicted"] == int(expected.logits[image].argmax())


def test_the_public_function_is_the_package_and_gives_the_same(ten: Results, tmp_path: Path) -> None:
    found = tokentm.evaluate("shapes", TEN, METHODS, ["segmentation"], explained="both", out=tmp_path, batch_size=4)
    assert figures(found) == figures(ten)
    assert callable(tokentm.evaluate)
    assert tokentm.evaluate is sys.modules["tokentm.evaluate"]


def test_options_of_a_method_are_computed_with_and_belong_to_the_run() -> None:
    options = TokenTMConfig(ffn=False)
    given, published = prepare("shapes", Scenes(2), {"tokentm": options}), prepare("shapes", Scenes(2), ["tokentm"])
    assert given.spec.requests[0].options == options
    assert given.spec.manifest()["identity"] != published.spec.manifest()["identity"]
    rise = prepare("shapes", Scenes(2), {"rise": RiseConfig(masks=5, seed=3), "gae": None}, seed=7).spec.requests
    assert [request.options for request in rise] == [RiseConfig(masks=5, seed=7), NoOptions()]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tokentm; tokentm.evaluate; print({'torch', 'pyarrow', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_correct_is_a_filter_and_the_figure_that_of_the_rows_left(ten: Results) -> None:
    right = [row for row in rows_of(ten) if row["method"] == "gae" and row["explained"] == "predicted"]
    right = [row for row in right if row["label"] == row["predicted"]]
    assert 0 < len(right) < 10, "the scenes must hold both for this test to say anything"
    table = {(one.method, one.explained, one.metric.name): one.estimate for one in ten.table(only_correct=True)}
    expected = 100 * np.mean([row["segmentation.pointing"] for row in right])
    found = table["gae", "predicted", "pointing game"]
    assert found.value == pytest.approx(expected)
    assert found.count == len(right)
    assert ten.accuracy == pytest.approx(len(right) / 10)


# --- photos ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return tokentm.evaluate(
        "shapes", "shapes:8", ["gae", "center"], ["segmentation"], explained="target",
        out=tmp_path_factory.mktemp("objects") / "run",
    )  # fmt: skip


def test_rows_tell_their_photo_and_photos_are_drawn(objects: Results) -> None:
    rows = rows_of(objects)[::2]
    assert [row["photo"] for row in rows] == [row["name"].rpartition("-")[0] for row in rows]
    assert objects.photos() == tuple(row["photo"] for row in rows)
    assert len(set(objects.photos())) == 8 < len(objects) == 10, "some scenes must show two objects"
    assert {(one.estimate.count, one.estimate.photos) for one in objects.table(resamples=50)} == {(10, 8)}
    right = [row["photo"] for row in rows if row["label"] == row["predicted"]]
    assert objects.photos(only_correct=True) == tuple(right)
    photos = {one.estimate.photos for one in objects.table(only_correct=True, resamples=50)}
    assert photos == {len(set(right))}


def test_a_data_set_that_tells_no_photos_has_one_for_each_image(ten: Results) -> None:
    assert ten.photos() == tuple(TEN.key(index) for index in range(10))
    assert {(one.estimate.count, one.estimate.photos) for one in ten.table(resamples=50)} == {(10, 10)}


def as_format_1(run: Path, copy: Path) -> Results:
    """The run as it was written before rows told their photo."""
    copy.mkdir()
    pq.write_table(pq.read_table(run / RESULTS).drop_columns(["photo"]), copy / RESULTS)
    manifest = {**json.loads((run / MANIFEST).read_text()), "format": 1}
    del manifest["identity"]
    (copy / MANIFEST).write_text(json.dumps({"identity": identity(manifest), **manifest}))
    return Results.read(copy)


def test_runs_of_format_1_are_read_and_each_row_is_its_own_photo(objects: Results, tmp_path: Path) -> None:
    old = as_format_1(objects.folder, tmp_path / "old")
    assert len(set(old.photos())) == len(old) == 10
    before, now = old.table(), objects.table()
    assert [one.estimate.value for one in before] == [one.estimate.value for one in now]
    assert {(one.estimate.count, one.estimate.photos) for one in before} == {(10, 10)}
    assert [one.estimate.low for one in before] != [one.estimate.low for one in now]
    write_report([old, objects], tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Over 10 images; ★" in page
    assert "Over 10 objects in 8 photos; ★" in page
    with pytest.raises(InputError, match="here: format 1 → 2"):
        tokentm.evaluate("shapes", "shapes:8", ["gae", "center"], ["segmentation"], explained="target", out=old.folder)


def test_figures_do_not_depend_on_workers_or_on_who_reads(tmp_path: Path) -> None:
    here = execute(worker(Scenes(6)), tmp_path / "here")
    there = execute(worker(Scenes(6)), tmp_path / "there", engine=LocalEngine(workers=1))
    assert contents(here.folder) == contents(there.folder)


# --- masks follow the photo -----------------------------------------------------------------------------------------


def test_black_is_black_under_a_transform_of_the_callers() -> None:
    own = tokentm.load_model("shapes").transform
    assert own is not None
    run = prepare("shapes", "shapes:2", transform=replace(own, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.1)))
    images, labels = torch.ones(1, 3, 96, 96), torch.zeros(1, dtype=torch.long)
    batch = Batch(run.model, images, torch.zeros(1, 8), labels, None, None, ("scene",), 1)
    black = fill(batch, "black").broadcast_to(images.shape)
    assert black[0, :, 5, 7].tolist() == pytest.approx([-0.2, -0.8, -3.0])


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (96, 96), (200, 97)])
def test_a_stretched_mask_is_resized_to_the_nearest(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size[::-1]) < 0.4
    expected = np.array(Image.fromarray(mask).resize((24, 16), Image.Resampling.NEAREST))
    found = seen_mask(mask, ImageTransform(resize=(16, 24)), (16, 24))
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (64, 64)])
def test_a_cropped_mask_lies_where_the_photo_lies(size: tuple[int, int]) -> None:
    transform = ImageTransform(resize=32, crop=(24, 24), interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)
    mask = np.random.default_rng(1).random(size[::-1]) < 0.5
    photo = Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)
    np.testing.assert_array_equal(seen_mask(mask, transform, (24, 24)).numpy(), transform(photo)[0].numpy() > 0.5)


def test_pixels_outside_the_photo_are_not_valid() -> None:
    transform = ImageTransform(resize=None, crop=(100, 100))
    work = worker(Scenes(1))
    read = replace(work, spec=replace(work.spec, transform=transform)).reader(range(1))
    assert read.valid is not None
    assert int(read.valid.sum()) == 96 * 96
    assert not read.valid[0, 0].any()


# --- interruptions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopping:
    """An engine that is interrupted after some images."""

    after: int
    device: str | None = None

    def run(self, work: Worker, parts: Sequence[int], tick: Any) -> Iterator[Any]:
        left = self.after

        def counting(images: int) -> None:
            nonlocal left
            tick(images)
            left -= images
            if images and left <= 0:
                raise KeyboardInterrupt

        yield from LocalEngine().run(work, parts, counting)


@pytest.mark.parametrize("after", [1, 5, 9])
def test_an_interrupted_run_ends_with_the_same_bytes(after: int, tmp_path: Path) -> None:
    work = worker(TEN, batch_size=2)
    whole = execute(work, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        execute(work, tmp_path / "run", engine=Stopping(after))
    assert not (tmp_path / "run" / RESULTS).exists()
    told: list[tuple[int, int]] = []
    execute(work, tmp_path / "run", lambda done, total: told.append((done, total)))
    assert contents(tmp_path / "run") == contents(whole.folder)
    assert told[0] == (4 * ((after - 1) // 4), 10), "what was done before is not done again"
    assert told[-1] == (10, 10)


def test_a_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    work = worker(Scenes(4))
    first = execute(work, tmp_path)
    before = contents(tmp_path)
    told: list[tuple[int, int]] = []
    again = execute(work, tmp_path, lambda *counts: told.append(counts))
    assert figures(again) == figures(first)
    assert told == [(4, 4)]
    assert contents(tmp_path) == before


def test_a_part_that_cannot_be_read_is_computed_again(tmp_path: Path) -> None:
    work = worker(Scenes(8))
    execute(work, tmp_path)
    before = contents(tmp_path)
    part = tmp_path / "parts" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    (tmp_path / "parts" / ".tokentm-0123.parquet").write_bytes(b"left by a kill")
    execute(work, tmp_path)
    assert contents(tmp_path) == before


SAID = {
    "batch_size": "(there → here: batch_size 4 → 2);",
    "seed": "(there → here: seed 0 → 1);",
    "methods": "(there → here: methods raw_attention, center → rollout);",
    "explained": "(there → here: explained predicted → target);",
    "images": "(there → here: data.images 4 → 3);",
    "data.name": "(there → here: data.name scenes → ",
    "protocols": "(there → here: protocols also saco);",
    "preset": "(there → here: preset None → chefer-2021);",
}
CHANGES: dict[str, dict[str, Any]] = {
    "batch_size": {"batch_size": 2},
    "seed": {"seed": 1},
    "methods": {"methods": ("gae", "rollout")},
    "explained": {"explained": "target"},
    "images": {"limit": 3},
    "data.name": {"sample": 3},
    "protocols": {"protocols": ("segmentation", "saco")},
    "preset": {"preset": "chefer-2021"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_is_another_run_and_told(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(worker(Scenes(4)), folder)
    before = contents(folder)
    changed = CHANGES[name]
    with pytest.raises(InputError) as caught:
        execute(worker(Scenes(4), **changed), folder)
    assert_one_sentence(caught.value)
    assert SAID[name] in str(caught.value)
    assert contents(folder) == before


def test_other_weights_or_data_are_another_run(tmp_path: Path) -> None:
    work = worker(Scenes(4))
    execute(work, tmp_path)
    other = tokentm.load_model("shapes")
    with torch.no_grad():
        next(other.module.parameters()).flatten()[0] += 1e-3
    changed = prepare(other, Scenes(4), METHODS, ("segmentation",), batch_size=4)
    with pytest.raises(InputError, match=r"model\.weights"):
        execute(replace(changed, spec=replace(changed.spec, part_size=4)), tmp_path)
    with pytest.raises(InputError, match=r"data\.fingerprint"):
        execute(worker(Scenes(4, damaged=(1,))), tmp_path)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex") as caught:
        execute(worker(Scenes(4)), tmp_path)
    assert_one_sentence(caught.value)


def test_differences_name_both_values() -> None:
    mine, other = {"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 2]}
    assert differences(mine, other) == ["a.b 2 → 1"]
    assert differences({"a": "0" * 64}, {"a": "f" * 64}) == ["a ffffffff… → 00000000…"]
    assert differences({"x": {"y": 1}}, {"x": None}) == ["x.y None → 1"]


def of(*methods: str, **more: int) -> dict[str, Any]:
    seed = more.get("seed", 0)
    return {"methods": [{"name": name, "options": {"of": name, "seed": seed}} for name in methods]} | more


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (of("gae", "rise"), of("gae"), ["methods also rise"]),
        (of("gae"), of("gae", "rise"), ["methods without rise"]),
        (of("gae", "tis"), of("gae", "rise"), ["methods rise → tis"]),
        (of("gae", "tis"), of("tis", "gae"), ["methods in another order"]),
        (of("gae", seed=1), of("gae", seed=0), ["seed 0 → 1"]),
        (of("gae", batch_size=4, chunk=64), of("gae", batch_size=2, chunk=32), ["batch_size 2 → 4"]),
        (of("gae", chunk=64), of("gae", chunk=32), ["chunk 32 → 64"]),
    ],
)
def test_differences_leave_out_what_follows_from_others(
    mine: dict[str, Any], other: dict[str, Any], said: list[str]
) -> None:
    assert differences(mine, other) == said


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="Another process") as caught:
        execute(worker(Scenes(4)), tmp_path)
    assert_one_sentence(caught.value)


def test_a_full_disk_costs_one_part_and_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = worker(TEN)
    whole = execute(work, tmp_path / "whole")
    writer, written = pq.ParquetWriter, []

    def full(path: Any, *args: Any, **kwargs: Any) -> Any:
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writer(path, *args, **kwargs)

    monkeypatch.setattr(store_module.pq, "ParquetWriter", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        execute(work, tmp_path / "run")
    assert_one_sentence(caught.value)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run" / "parts").iterdir()) == ["part-00000.parquet"]
    execute(work, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(whole.folder)


def test_the_package_that_can_be_called_has_the_signature_of_its_function() -> None:
    from tokentm.evaluate.runner import evaluate

    assert inspect.signature(tokentm.evaluate) == inspect.signature(evaluate)
    assert tokentm.evaluate.__doc__ == evaluate.__doc__
