"""The convolutional teacher of ``train_cifar10.py``: its fixed first layer, what it learns and what it is asked."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support import cifar
from tokentm.datasets._cifar_files import CifarFiles, read_cifar

SCRIPTS = Path(__file__).parents[1] / "scripts"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import _cifar10_images
        import _cifar10_recipe
        import _cifar10_teacher
        import train_cifar10

        yield {
            "images": _cifar10_images, "recipe": _cifar10_recipe, "teacher": _cifar10_teacher, "train": train_cifar10,
        }  # fmt: skip
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CifarFiles:
    return read_cifar(cifar.tree(tmp_path_factory.mktemp("data") / "cifar.tar.xz", per_class=8))


@pytest.fixture(autouse=True)
def _narrow(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the channels: bfloat16 takes seconds a step on processors that have none."""
    monkeypatch.setattr(scripts["teacher"], "WIDTHS", (32, 64, 64))


@pytest.fixture
def recipe(scripts: Any) -> Any:
    small = {"width": 32, "depth": 1, "heads": 2, "batch": 8, "steps": 2, "held_out": 4}
    return replace(scripts["recipe"].Recipe(), **small, teacher_epochs=1.0)


@pytest.fixture
def data(scripts: Any, recipe: Any, files: CifarFiles) -> Any:
    return scripts["images"].Images(files, recipe, CPU)


def test_the_first_layer_sees_patches_without_correlations(scripts: Any, data: Any) -> None:
    teacher = scripts["teacher"].Teacher(3)
    pixels = data.pixels / 127.5 - 1
    teacher.look_at(pixels)
    seen = teacher.whiten(pixels).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(seen[:, :12], -seen[:, 12:])
    # Directions that hardly occur are kept small by the constant that is added to every variance.
    patches = F.unfold(pixels, 2).movedim(1, -1).flatten(0, 1).double()
    values = torch.linalg.eigvalsh((patches - patches.mean(0)).T @ (patches - patches.mean(0)) / (len(patches) - 1))
    wanted = torch.diag(values / (values + 5e-4))
    torch.testing.assert_close(seen[:, :12].double().T.cov(), wanted, atol=1e-3, rtol=0)
    assert not any(parameter.requires_grad for parameter in teacher.whiten.parameters())


def test_convolutions_begin_as_the_identity_of_what_they_read(scripts: Any) -> None:
    first = scripts["teacher"].Teacher(3).body[0]
    image = torch.rand(1, 24, 5, 5)
    torch.testing.assert_close(first(image)[:, :24], image)


def test_the_teacher_learns(scripts: Any, recipe: Any, data: Any) -> None:
    """Three colours that one could tell apart at a glance, and sixty steps."""
    for label in range(3):
        data.pixels[data.classes == label] //= 4
        data.pixels[data.classes == label, label] += 180
    torch.manual_seed(0)
    teacher = scripts["teacher"].Teacher(3).to(memory_format=torch.channels_last)
    scripts["teacher"].learn(teacher, replace(recipe, teacher_epochs=60.0), data)
    answers = scripts["teacher"].answers(teacher.eval(), data.pixels / 127.5 - 1)
    torch.testing.assert_close(answers.sum(1), torch.ones(len(answers)))
    assert (answers.argmax(1) == data.classes).float().mean() > 0.9


def test_a_trained_teacher_is_read_again(scripts: Any, recipe: Any, data: Any, tmp_path: Path, capsys: Any) -> None:
    first = scripts["teacher"].trained_teacher(tmp_path, recipe, data, CPU)
    assert capsys.readouterr().out
    again = scripts["teacher"].trained_teacher(tmp_path, recipe, data, CPU)
    assert not capsys.readouterr().out
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert not again.training


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later, for Muon")
def test_the_student_learns_from_label_and_answer_in_their_shares(
    scripts: Any, recipe: Any, data: Any, tmp_path: Path
) -> None:
    run = scripts["train"].Run(tmp_path, recipe, 3, CPU)
    batch = scripts["images"].draw_batch(data, recipe, 0)
    run.teacher = scripts["teacher"].trained_teacher(tmp_path, recipe, data, CPU)
    _, (loss, _) = run.gradients(batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        said = run.teacher(batch["images"]).float().softmax(1)
        logits = scripts["train"].logits_of_batch(run.student, batch["images"], batch["kept"], batch["branches"])
    wanted = 0.4 * batch["targets"] + 0.6 * said
    torch.testing.assert_close(loss, -(wanted * logits.float().log_softmax(1)).sum(1).mean(), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(said, batch["targets"], atol=0.05)
