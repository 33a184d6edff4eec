"""The training of the bundled model ``cifar10`` on a CIFAR of a few random pictures: resuming, exporting, measuring."""

import csv
import json
import math
import os
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import cifar
from tokentm.datasets._cifar_files import CifarFiles, read_cifar
from tokentm.models.loading import load_model

SCRIPTS = Path(__file__).parents[1] / "scripts"
pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later, for Muon")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import train_cifar10

        yield train_cifar10
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def best_temperature(script: Any) -> Any:
    return sys.modules[script.export.__module__].best_temperature


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CifarFiles:
    return read_cifar(cifar.tree(tmp_path_factory.mktemp("data") / "cifar.tar.xz", per_class=8))


@pytest.fixture
def recipe(script: Any) -> Any:
    """All of the GPU's augmentation, on a model of two narrow blocks; the last of four steps is dense."""
    small = {"width": 32, "depth": 2, "heads": 2, "parts": 2, "batch": 8, "steps": 4, "warm_up": 2, "held_out": 4}
    return replace(script.PRESETS["gpu"], **small, kept=16, dense_share=0.25, drop_path=0.3, teacher_epochs=1.0)


@pytest.fixture(autouse=True)
def _narrow(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the teacher's channels: bfloat16 takes seconds a step on processors that have none."""
    monkeypatch.setattr(sys.modules[script.trained_teacher.__module__], "WIDTHS", (24, 24, 24))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


CPU = torch.device("cpu")


def weights(run: Any) -> dict[str, Tensor]:
    return {
        f"{part} {name}": value
        for part in ("student", "average")
        for name, value in getattr(run, part).state_dict().items()
    }


def curves(run: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in run.history]


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_resumed_run_is_the_run_uninterrupted(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LOG_EVERY", 2)
    recipe = replace(recipe, pool=pool)
    whole = script.train(tmp_path / "whole", recipe, files, CPU)
    for until in (1, 3, None):  # in the middle of what one line of the curves averages, and of an epoch
        resumed = script.train(tmp_path / "parts", recipe, files, CPU, until)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert whole.step == 4
    assert len(whole.history) == 2
    # NaN stands for "not looked at", and is no number's equal.
    assert json.dumps(curves(resumed)) == json.dumps(curves(whole))


def test_training_moves_every_weight(script: Any, recipe: Any, files: CifarFiles, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in weights(script.Run(tmp_path, recipe, 3, CPU)).items()}
    after = weights(script.train(tmp_path, recipe, files, CPU))
    assert [name for name in after if torch.equal(after[name], before[name])] == []


def test_a_run_asked_to_end_saves_first(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = script.Run.learn

    def learn_and_be_stopped(self: Any, *given: Any) -> None:
        learn(self, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(script.Run, "learn", learn_and_be_stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert script.train(tmp_path, recipe, files, CPU).step == 1
    assert script.Run(tmp_path, recipe, 3, CPU).step == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_of_another_recipe_is_refused(script: Any, recipe: Any, files: CifarFiles, tmp_path: Path) -> None:
    script.train(tmp_path, recipe, files, CPU, 1)
    with pytest.raises(SystemExit, match="another recipe"):
        script.train(tmp_path, replace(recipe, lr=1.0), files, CPU)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_exported_model_is_the_average(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path, pool: str, best_temperature: Any
) -> None:
    run = script.train(tmp_path, replace(recipe, pool=pool), files, CPU)
    script.export(tmp_path / "checkpoint.pt", tmp_path / "package", files)
    model = load_model(tmp_path / "package")
    assert model.class_names == cifar.NAMES
    assert stat.S_IMODE((tmp_path / "package" / "model.safetensors").stat().st_mode) == 0o644
    images = torch.from_numpy(files.splits["test"][0]).permute(0, 3, 1, 2)
    with torch.no_grad():
        watched, classes = script.Images(files, run.recipe, CPU).watched
        temperature = best_temperature(script.logits_of(run.average, watched), classes)
        for part in (run.average.head.weight, run.average.head.bias):
            part.div_(temperature)
        expected = script.logits_of(run.average.half().float(), images)
        torch.testing.assert_close(model.module(images / 127.5 - 1), expected)
    # The transform that users get is the scaling that the model was trained with.
    torch.testing.assert_close(
        (torch.zeros(3) - torch.tensor(model.transform.mean)) / torch.tensor(model.transform.std), -torch.ones(3)
    )


def test_the_temperature_is_the_one_of_least_cross_entropy(best_temperature: Any) -> None:
    """Of two classes with logits 0 and 2, right three times in four: the truth is ln 3, so divide by 2 / ln 3."""
    logits = torch.tensor([[2.0, 0.0]] * 4)
    found = best_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert found == pytest.approx(2 / math.log(3), rel=0.006)


def test_a_second_run_goes_on_from_the_average_of_the_first(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LOG_EVERY", 2)
    first = script.train(tmp_path / "first", recipe, files, CPU)
    again = replace(recipe, begun_at=4)
    (tmp_path / "again").mkdir()
    begun = script.Run(tmp_path / "again", again, 3, CPU, tmp_path / "first")
    for part in (begun.student, begun.average):
        torch.testing.assert_close(part.state_dict(), first.average.state_dict(), rtol=0, atol=0)
    assert begun.seconds == first.seconds
    whole = script.train(tmp_path / "again", again, files, CPU, begin=tmp_path / "first")
    assert [row["step"] for row in whole.history] == [2, 4, 6, 8]
    teachers = [(tmp_path / name / "teacher.pt").read_bytes() for name in ("first", "again")]
    assert teachers[0] == teachers[1]
    # Images and their changes are those of steps 4 to 7, not of 0 to 3 once more.
    batches = [script.draw_batch(script.Images(files, r, CPU), r, 0)["images"] for r in (recipe, again)]
    assert not torch.equal(*batches)


def test_the_pooled_twin_begins_as_the_model_without_its_token(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path
) -> None:
    first = script.train(tmp_path / "first", recipe, files, CPU)
    (tmp_path / "pooled").mkdir()
    twin = script.Run(tmp_path / "pooled", replace(recipe, begun_at=4, pool="avg"), 3, CPU, tmp_path / "first").student
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit = first.average.eval()
    tokens = vit.patch_embed(images) + vit.pos_embed[:, 1:]
    expected = vit.head(vit.norm(vit.blocks(tokens).mean(1)))
    torch.testing.assert_close(twin.eval()(images), expected)
    assert script.PRESETS["cpu-pool"].begun_at == 7_400  # where the bundled model's third run ended


@pytest.mark.parametrize("begun_at", [4, 3])
def test_a_second_run_needs_the_run_it_goes_on_from(
    script: Any, recipe: Any, files: CifarFiles, tmp_path: Path, begun_at: int
) -> None:
    again = replace(recipe, begun_at=begun_at)
    script.train(tmp_path / "first", recipe, files, CPU)
    begin = None if begun_at == 4 else tmp_path / "first"
    with pytest.raises(SystemExit, match="name its folder" if begin is None else "has taken 4 steps"):
        script.train(tmp_path / "again", again, files, CPU, begin=begin)


def test_an_unfinished_run_is_not_exported(script: Any, recipe: Any, files: CifarFiles, tmp_path: Path) -> None:
    script.train(tmp_path, recipe, files, CPU, 1)
    with pytest.raises(SystemExit, match="is at step 1 of 4"):
        script.export(tmp_path / "checkpoint.pt", tmp_path / "package", files)


def test_the_command_line_trains_exports_and_writes_the_card(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cifar.batches(tmp_path / "cifar-10-batches-py")
    package, run = tmp_path / "package", tmp_path / "run"
    common = ["--data", str(data), "--run", str(run), "--package", str(package)]
    trial = ["--preset", "cpu", "--set", "width=32", "depth=1", "heads=2", "batch=4", "steps=2", "held_out=4"]

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train_cifar10.py", *words])
        script.main()

    call("train", *common, *trial)
    call("export", *common)
    card = package / "MODEL_CARD.md"
    card.write_text(
        "before\n<!-- measured: written by scripts/train_cifar10.py -->what was<!-- end of measured -->\nafter\n"
    )
    call("evaluate", *common, "--card")
    text = card.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end of measured -->\nafter\n")
    assert "what was" not in text
    for row in (
        "| test images | 4 |",
        "| top class is right | ",
        "| expected calibration error (15 bins) | ",
        "| top class is right, bird | ",
        "| recipe | pool token, width 32",
    ):
        assert row in text
    with (run / "curves.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2"]


# --- what is learnt from ------------------------------------------------------------------------------------------


@pytest.fixture
def images(script: Any) -> Any:
    return sys.modules[script.draw_batch.__module__]


def test_every_image_is_seen_once_an_epoch(images: Any, recipe: Any, files: CifarFiles) -> None:
    data = images.Images(files, recipe, CPU)
    seen = torch.cat([data.rows(recipe, step) for step in range(5)])
    assert len(data.pixels) == 20  # 24 of which 4 are only watched
    for epoch in seen.chunk(2):
        assert sorted(epoch.tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:].tolist()


def test_too_few_images_are_refused(images: Any, recipe: Any, files: CifarFiles) -> None:
    with pytest.raises(SystemExit, match="24 training images are too few: 1000 are only watched"):
        images.Images(files, replace(recipe, held_out=1_000), CPU)


def test_batches_are_of_the_step_alone(images: Any, recipe: Any, files: CifarFiles) -> None:
    data = images.Images(files, recipe, CPU)
    first, again, later = (images.draw_batch(data, recipe, step) for step in (1, 1, 3))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first["images"].abs().max() <= 1
    torch.testing.assert_close(first["targets"].sum(1), torch.ones(8))
    assert first["kept"].shape == (8, 16)
    assert all(len(set(row)) == 16 for row in first["kept"].tolist())
    assert sorted(later["kept"][0].tolist()) == list(range(64))
    # Blocks that are left out are made up for by those that stay: each counts for one on average.
    many = torch.cat([images.draw_batch(data, recipe, step)["branches"] for step in range(200)])
    torch.testing.assert_close(many.mean((0, 2)), torch.ones(2), atol=0.05, rtol=0)
    assert set(many[:, 0].flatten().tolist()) == {1.0}


def test_without_augmentation_images_are_themselves(images: Any, recipe: Any, files: CifarFiles) -> None:
    pixels = images.Images(files, recipe, CPU).pixels / 127.5 - 1
    chance = torch.full((len(pixels), 8), 0.5)
    torch.testing.assert_close(images.recoloured(pixels, chance[:, :3], 0.9), pixels)
    chance[:, 0] = 0.0  # not mirrored, moved by none
    torch.testing.assert_close(images.warped(pixels, chance, 0.0), pixels, atol=1e-4, rtol=0)
    chance[:, 0] = chance[:, 1] = 0.99  # mirrored, moved by four pixels along x
    moved = images.warped(pixels, chance, 0.0)
    torch.testing.assert_close(moved[..., 4:], pixels.flip(3)[..., :28], atol=1e-4, rtol=0)


def test_targets_follow_the_pixels_of_a_mixture(images: Any, recipe: Any) -> None:
    pair = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    targets = torch.eye(2)
    rng = np.random.default_rng(0)
    for shares in ({"cutmix": 1.0, "mixup": 0.0}, {"cutmix": 0.0, "mixup": 1.0}):
        chance = torch.from_numpy(rng.random((2, 4), dtype=np.float32))
        found, wanted = images.mixed(pair, targets, chance, replace(recipe, **shares))
        torch.testing.assert_close(found.mean((1, 2, 3)), wanted[:, 1])
        assert 0 < found[0].mean() < 1
    untouched, same = images.mixed(pair, targets, chance, replace(recipe, cutmix=0.0, mixup=0.0))
    torch.testing.assert_close((untouched, same), (pair, targets))


def test_a_box_has_the_share_asked_for(images: Any) -> None:
    box = images.boxes(torch.full((1, 2), 0.5), torch.tensor([0.25]))
    assert box.float().mean() == 0.25
    assert math.isclose(images.boxes(torch.zeros(1, 2), torch.tensor([1.0])).float().mean(), 0.25)


def test_compiled_and_plain_are_one_model(script: Any, recipe: Any, files: CifarFiles, tmp_path: Path) -> None:
    """What a GPU runs is what is tested here, as far as a machine without one can tell: the graph has no break."""
    run = script.Run(tmp_path, recipe, 3, CPU)
    batch = script.draw_batch(script.Images(files, recipe, CPU), recipe, 0)
    given = (run.student, batch["images"], batch["kept"], batch["branches"])
    compiled = torch.compile(script.logits_of_batch, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), script.logits_of_batch(*given))
