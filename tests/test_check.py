"""``tokentm models --check``: what is said of a model, and that what is said is true."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tokentm
from tests.support.command import save_timm_folder
from tests.support.fingerprint import differences, fingerprint
from tests.support.fork_server import run
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import build, letters
from tokentm._check import checked
from tokentm.errors import ModelLoadError
from tokentm.methods import METHODS
from tokentm.models import describe, image_text
from tokentm.models.untrained import untrained


@pytest.mark.parametrize(
    ("name", "grid", "prefix", "readout"),
    [
        ("timm-dinov3", None, 3, "cls"),  # takes any size: that of its published weights
        ("timm-map-registers", (4, 4), 2, "attention pooling"),
        ("transformers-dinov2", (14, 14), 1, "cls + mean of patches"),  # takes any size, and says none
        ("torchvision-vit", (4, 4), 1, "cls"),
        ("open-clip", (4, 4), 1, "cls"),
    ],
)
def test_what_is_said_of_a_specimen(name: str, grid: tuple[int, int] | None, prefix: int, readout: str) -> None:
    found = checked(describe(build(name)), ["tokentm", "rollout", "tis"])
    assert (found.blocks, found.heads) == (3, 3)
    assert (found.prefix, found.readout) == (prefix, readout)
    assert found.grid == (grid or found.grid)
    assert found.tokens == found.grid[0] * found.grid[1] + prefix
    assert found.size == (8 * found.grid[0], 8 * found.grid[1])
    assert found.methods == ("tokentm", "rollout", "tis")
    assert found.failed == {}
    assert found.unchanged


def test_every_method_works_on_a_plain_vit_and_nothing_stays_behind() -> None:
    model = build("timm-vit").train()
    before = fingerprint(model)
    with unchecked():
        found = checked(describe(model))
    assert found.methods == tuple(METHODS)
    assert differences(before, fingerprint(model)) == []


def test_a_model_that_does_not_stay_the_same_is_told() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * (1 + 0.1 * self.calls)

    model = build("timm-vit")
    model.norm = nn.Sequential(model.norm, Drifting())
    assert not checked(describe(model), ["rollout"]).unchanged


def test_a_method_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise tokentm.TokentmError("This method is broken on purpose.")

    monkeypatch.setattr("tokentm._check.explain_requests", broken)
    found = checked(describe(build("timm-vit")), ["tokentm"])
    assert found.methods == ()
    assert found.failed == {"tokentm": "This method is broken on purpose."}


def test_an_image_text_model_without_prompts_gets_some() -> None:
    found = checked(image_text(build("open-clip").model, letters), ["gae"])
    assert found.methods == ("gae",)


@pytest.mark.parametrize("name", ["test_vit", "torchvision:vit_b_16", "open_clip:ViT-S-32-alt"])
def test_architectures_without_weights(name: str) -> None:
    model = untrained(name)
    assert model.name == f"{name} (random weights)"
    assert len(model.anatomy.blocks) >= 3


@pytest.mark.parametrize("name", ["hf:org/name", "open_clip:ViT-Z"])
def test_names_that_say_no_architecture_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="architecture") as caught:
        untrained(name)
    assert_one_sentence(caught.value)


def test_the_command(tmp_path: Path) -> None:
    folder = save_timm_folder(
        tmp_path / "tiny", "vit_tiny_patch16_224", 4, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
    )
    done = run(["models", "--check", folder], tmp_path)
    assert done.code == 0, done.err
    for line in (r"family timm ViT", "blocks 2, 3 heads", "grid 4×4", "readout cls", "output unchanged yes"):
        assert line in " ".join(done.out.split()), done.out
    assert f"methods {len(METHODS)}: " in " ".join(done.out.split())
    refused = run(["models", "--check", "hiera_tiny_224"], tmp_path)
    assert refused.code == 2
    assert "hierarchical" in refused.err
