"""Models as people bring them: another readout, exchanged weights, copies, hooks, wrappers, one class."""

import copy
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm.utils
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import tokentm
from tests.support.fingerprint import differences, fingerprint
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tokentm.errors import InputError, UnsupportedModelError
from tokentm.evaluate.runner import prepare
from tokentm.models.vision_model import describe

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    with unchecked():  # the checker draws from Python's random state
        yield


def vit(kind: type[VisionTransformer] = VisionTransformer, **changed: Any) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**{**SHAPE, **changed}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def relevance(model: Any, method: str = "tokentm", **given: Any) -> Tensor:
    return tokentm.explain(model, images(), 0, method, **given).relevance


# --- a readout of its own -----------------------------------------------------------------------------------------


class PooledHead(VisionTransformer):
    """Derives from a ViT that reads its class token, and reads the patches."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: ARG002
        return self.head(x[:, 1:].mean(1))


class PooledForward(VisionTransformer):
    """The same in ``forward``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, 1:].mean(1))


class OwnPreparation(VisionTransformer):
    """Another forward pass, the same readout."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 2)


def patched() -> VisionTransformer:
    model = vit()
    model.forward = types.MethodType(PooledForward.forward, model)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "method", ["tokentm", "rollout", "raw_attention", "gradcam", "attnlrp", "integrated_gradients"]
)
@pytest.mark.parametrize(
    "make", [lambda: vit(PooledHead), lambda: vit(PooledForward), patched], ids=["head", "forward", "patched"]
)
def test_a_readout_that_the_family_does_not_have_is_refused(make: Callable[[], nn.Module], method: str) -> None:
    model = make()
    before = fingerprint(model)
    with pytest.raises(UnsupportedModelError, match="depends on final tokens that its head is not known to read"):
        relevance(model, method)
    assert not differences(before, fingerprint(model))


@pytest.mark.parametrize("method", ["tokentm", "rollout"])
def test_a_forward_pass_of_its_own_with_the_same_readout_works(method: str) -> None:
    halved = tokentm.explain(vit(), images() / 2, 0, method).relevance
    torch.testing.assert_close(relevance(vit(OwnPreparation), method), halved)


# --- weights that change, copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tokentm", "beyond_intuition_t", "legrad"])
def test_exchanged_weights_are_those_that_are_explained(method: str) -> None:
    model = vit(init_values=0.1)
    described = describe(model)
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()}, assign=True)
    torch.testing.assert_close(relevance(described, method), relevance(model, method), rtol=0, atol=0)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("method", ["tokentm", "legrad"])
def test_a_copy_explains_its_own_weights(copied: Callable[[Any], Any], method: str) -> None:
    first = describe(vit(), class_names=tuple("abcde"), name="mine")
    second = copied(first)
    assert (second.name, second.class_names) == ("mine", tuple("abcde"))
    with torch.no_grad():
        for parameter in second.module.parameters():
            parameter.mul_(1.3)
    torch.testing.assert_close(relevance(second, method), relevance(second.module, method), rtol=0, atol=0)
    torch.testing.assert_close(relevance(first, method), relevance(vit(), method), rtol=0, atol=0)


def test_an_explanation_can_be_pickled() -> None:
    explanation = tokentm.explain(vit(), images(), 0)
    again = pickled(explanation)
    assert torch.equal(again.relevance, explanation.relevance)
    assert again.class_name == explanation.class_name


# --- training in progress -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tokentm", "lrp", "rollout"])
def test_spectral_norm_in_train_mode_stays_where_it_was(method: str) -> None:
    model = vit()
    parametrizations.spectral_norm(model.blocks[0].attn.proj)
    model.train()
    before = fingerprint(model)
    relevance(model, method)
    assert not differences(before, fingerprint(model))


def test_checkpointing_of_a_part_is_off_while_it_is_recorded() -> None:
    hybrid = timm.create_model(
        "vit_base_resnet26d_224", img_size=64, depth=2, embed_dim=48, num_heads=3, num_classes=5
    )  # fmt: skip
    photo = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = tokentm.explain(hybrid, photo, 0, "input_x_gradient").relevance
    hybrid.set_grad_checkpointing(True)
    hybrid.train()
    before = fingerprint(hybrid)
    torch.testing.assert_close(tokentm.explain(hybrid, photo, 0, "input_x_gradient").relevance, plain)
    assert not differences(before, fingerprint(hybrid))


def run_again(part: nn.Module, *, reentrant: bool) -> None:
    """Put a part of a block under a checkpoint, as its author would write it."""
    inner = part.forward

    def forward(x: Tensor, **_: Any) -> Tensor:
        again: Tensor = checkpoint(inner, x, use_reentrant=reentrant)
        return again

    part.forward = forward


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, in the pass for the logits
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["attn", "mlp"])
@pytest.mark.parametrize("method", ["gae", "lrp", "partial_lrp", "conservative_lrp", "attnlrp", "legrad", "gae/libra"])
def test_a_checkpoint_inside_of_a_block_is_told(method: str, part: str, reentrant: bool) -> None:
    model = vit()
    run_again(getattr(model.blocks[1], part), reentrant=reentrant)
    before = fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=r"torch\.utils\.checkpoint.* switch gradient ch") as told:
        relevance(model, method)
    assert_one_sentence(told.value)
    assert not differences(before, fingerprint(model))


def test_a_method_without_gradients_does_not_mind_a_checkpoint() -> None:
    model = vit()
    plain = relevance(model, "rollout")
    for block in model.blocks:
        run_again(block.mlp, reentrant=False)
    with pytest.raises(UnsupportedModelError, match="switch gradient checkpointing"):
        relevance(model, "gae")
    torch.testing.assert_close(relevance(model, "rollout"), plain, rtol=0, atol=0)


# --- what hooks and instances add to a projection -----------------------------------------------------------------


class NoGradMlp(nn.Module):
    """A feed-forward part that its author froze, as it were, for good."""

    def __init__(self, inner: nn.Module, *, detached: bool) -> None:
        super().__init__()
        self.inner, self.detached = inner, detached

    def forward(self, x: Tensor) -> Tensor:
        if self.detached:
            found: Tensor = self.inner(x).detach()
            return found
        with torch.no_grad():
            return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("method", ["tokentm", "gae", "lrp", "legrad", "input_x_gradient", "gae/libra"])
def test_a_feed_forward_part_that_gradients_cannot_pass_is_refused(method: str, detached: bool) -> None:
    model = vit()
    model.blocks[1].mlp = NoGradMlp(model.blocks[1].mlp, detached=detached)
    before = fingerprint(model)
    with pytest.raises(UnsupportedModelError, match="feed-forward sub-block of block 1 runs without grad") as told:
        relevance(model, method)
    assert_one_sentence(told.value)
    assert not differences(fingerprint(model), before)
    assert relevance(model, "rollout").isfinite().all()


def test_a_hook_that_adds_to_the_projection_is_refused_and_one_that_looks_on_is_not() -> None:
    model, seen = vit(), []
    model.blocks[1].attn.proj.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    torch.testing.assert_close(relevance(model), relevance(vit()), rtol=0, atol=0)
    assert seen
    change = 0.3 * torch.randn(24, 24, generator=torch.Generator().manual_seed(2))
    model.blocks[1].attn.proj.register_forward_hook(lambda _, given, output: output + F.linear(given[0], change))
    with pytest.raises(UnsupportedModelError, match="hook changes what the attention projection of block 1 gives"):
        relevance(model)


def test_a_projection_with_a_forward_of_its_own_is_refused() -> None:
    model = vit()
    layer = model.blocks[0].attn.proj
    layer.forward = lambda x: F.linear(x, 2 * layer.weight, layer.bias)
    with pytest.raises(UnsupportedModelError, match="merge adapters"):
        describe(model)


# --- wrappers -----------------------------------------------------------------------------------------------------


def test_running_averages_are_looked_through() -> None:
    for average in (AveragedModel(vit()), timm.utils.ModelEmaV3(vit())):
        torch.testing.assert_close(relevance(average), relevance(vit()), rtol=0, atol=0)


class PitchNet(nn.Module):
    """No model of a library, whatever its name reminds of."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)


PitchNet.__module__ = "mine.pitchnet"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Identity(), vit()), r"holds a timm ViT at \.1 .* explain model\.1 itself"),
        (PitchNet(), "a transformer of a family that is not known yet"),
    ],
    ids=["sequential", "name"],
)
def test_other_wrappers_are_refused_for_what_they_are(model: nn.Module, sentence: str) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        describe(model)


def test_a_compiled_part_is_told() -> None:
    model = vit()
    model.blocks[1] = torch.compile(model.blocks[1])
    with pytest.raises(UnsupportedModelError, match=r"The part blocks\.1 is wrapped by torch\.compile"):
        describe(model)


# --- one class, types ---------------------------------------------------------------------------------------------


def test_one_logit_is_that_of_a_binary_classifier() -> None:
    model = vit(num_classes=1)
    explanation = tokentm.explain(model, images(), 0)
    logits = model(images()).detach()[:, 0]
    torch.testing.assert_close(explanation.probability, 1 / (1 + torch.exp(-logits)))
    # d sigmoid(y) = sigmoid' dy: each image's gradient times a constant, squared where two blocks have one each.
    by_probability = relevance(model, options=tokentm.TokenTMConfig(score="probability"))
    assert (by_probability.flatten(1).amax(1) > 0).all()
    gradients = relevance(model, "input_x_gradient")
    assert (gradients != 0).any()
    with pytest.raises(InputError, match="has one class, which it always names"):
        prepare(model, "shapes:2")


def test_the_type_is_that_of_the_weights_that_cut_the_patches() -> None:
    model = vit().bfloat16()
    model.pos_embed.data = model.pos_embed.data.float()
    assert next(model.parameters()).dtype == torch.bfloat16 or model.pos_embed.dtype == torch.float32
    assert describe(model).dtype == torch.bfloat16
    for parameter in list(model.patch_embed.proj.parameters()):
        parameter.data = parameter.data.float()
    assert describe(model).dtype == torch.float32
