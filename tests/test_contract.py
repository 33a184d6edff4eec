"""Whatever happens during an explanation, the user's model, tensors and process are left as they were."""

import copy
import functools
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

import tokentm
from tests.support.cheap import cheap_options
from tests.support.fingerprint import differences, fingerprint
from tests.support.unchecked import unchecked
from tests.support.zoo import ZOO, build, image_batch
from tokentm.backward import BACKWARD
from tokentm.errors import TargetError
from tokentm.methods import METHODS
from tokentm.models import describe


@dataclass(frozen=True)
class Case:
    """What happens during the explanation."""

    target: int = 3
    error: type[BaseException] | None = None
    place: str = ""  # the part of the block that raises
    block: int = 0

    def arm(self, model: nn.Module) -> None:
        """Let a part of the user's model raise, in the middle of the forward pass."""
        if self.place:
            part = getattr(describe(model).anatomy.blocks[self.block], self.place)
            part.register_forward_hook(self._raise)

    def _raise(self, *_: object) -> None:
        assert self.error is not None
        raise self.error("raised inside the model")


CASES = {
    "fine": Case(),
    "bad target": Case(target=99, error=TargetError),
    "block 2 raises": Case(error=RuntimeError, place="attention", block=1),
    "out of memory": Case(error=torch.OutOfMemoryError, place="ffn_out", block=-1),
    "interrupted": Case(error=KeyboardInterrupt, place="ffn_norm", block=1),
}
MODES = ("eval", "in use")
# A model in use has all that a failure could leave changed; that one in eval mode fails as well is seen once.
CASES_BY_MODE = [
    (case, mode) for case in CASES for mode in MODES if mode == "in use" or case in ("fine", "interrupted")
]

# Every method under every backward rule that it composes with.
EXPLANATIONS = {
    name if rule == method.backward else f"{name}/{rule}": method
    for name, method in METHODS.items()
    for rule, kind in BACKWARD.items()
    if rule == method.backward or (method.composes and not kind.relevance)
}
# Where the recording fails, no method gets its turn: methods that ask for the same recording are the same run.
EXPLANATIONS_BY_RECORDING = list(
    {(m.signals, name.partition("/")[2] or m.backward, m.companion): name for name, m in EXPLANATIONS.items()}.values()
)


@pytest.fixture(autouse=True, scope="module")
def as_users_run_it() -> Iterator[None]:
    with unchecked():
        yield


@functools.cache
def specimen(name: str) -> nn.Module:
    return build(name)


def users_model(name: str, mode: str) -> nn.Module:
    """A model as users leave it lying about: half trained, partly frozen, with gradients and a hook of their own."""
    model = copy.deepcopy(specimen(name))
    if mode == "eval":
        return model
    for index, module in enumerate(model.modules()):
        module.training = index % 3 != 1
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 4 == 0:
            parameter.grad = torch.full_like(parameter, 0.25)
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)
    model.register_forward_hook(lambda *_: None)
    return model


def users_images(name: str, mode: str) -> Tensor:
    return image_batch(name).requires_grad_(mode == "in use")


@pytest.mark.parametrize(("case_name", "mode"), CASES_BY_MODE)
@pytest.mark.parametrize("specimen_name", ZOO)
def test_no_method_leaves_anything_behind(specimen_name: str, case_name: str, mode: str) -> None:
    case = CASES[case_name]
    model, images = users_model(specimen_name, mode), users_images(specimen_name, mode)
    case.arm(model)
    left = {}
    before = fingerprint(model, images)
    for name in EXPLANATIONS if case.error is None else EXPLANATIONS_BY_RECORDING:
        with pytest.raises(case.error) if case.error else nullcontext():
            tokentm.explain(model, images, case.target, name, options=cheap_options(name.partition("/")[0]))
        after = fingerprint(model, images)
        left[name], before = differences(before, after), after
    assert {name: found for name, found in left.items() if found} == {}


def test_every_rule_and_method_is_among_the_explanations() -> None:
    assert {name.partition("/")[0] for name in EXPLANATIONS} == set(METHODS)
    assert {name.partition("/")[2] or METHODS[name].backward for name in EXPLANATIONS} >= {
        rule for rule, kind in BACKWARD.items() if not kind.relevance
    }
    assert "tokentm/libra" in EXPLANATIONS


class Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # noqa: ARG004
        raise RuntimeError("raised in the backward pass")


@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_left_behind_when_the_backward_pass_raises(name: str) -> None:
    model, images = users_model(name, "in use"), users_images(name, "in use")
    describe(model).anatomy.blocks[1].ffn_out.register_forward_hook(lambda *call: Explode.apply(call[-1]))
    before = fingerprint(model, images)
    with pytest.raises(RuntimeError, match="backward pass"):
        tokentm.explain(model, images)
    assert differences(before, fingerprint(model, images)) == []


def _write_and_undo(model: nn.Module, images: Tensor) -> None:  # noqa: ARG001
    with torch.no_grad():
        weight = next(model.parameters())
        kept = weight.clone()
        weight.add_(1)
        weight.copy_(kept)


TAMPERING: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "a forward hook": lambda model, _: model.blocks[1].register_forward_hook(lambda *_: None),
    "a pre-hook with keywords": lambda model, _: model.norm.register_forward_pre_hook(
        lambda *_: None, with_kwargs=True
    ),
    "a backward hook": lambda model, _: model.head.register_full_backward_hook(lambda *_: None),
    "a hook on a parameter": lambda model, _: model.head.weight.register_hook(lambda grad: grad),
    "a training flag": lambda model, _: setattr(model.blocks[2].attn, "training", True),
    "gradient checkpointing": lambda model, _: model.set_grad_checkpointing(True),
    "fused attention": lambda model, _: setattr(model.blocks[0].attn, "fused_attn", False),
    "a new attribute": lambda model, _: setattr(model.blocks[0], "rule", object()),
    "another sub-module": lambda model, _: setattr(model, "norm", copy.deepcopy(model.norm)),
    "another parameter": lambda model, _: setattr(model.head, "bias", nn.Parameter(model.head.bias.detach().clone())),
    "one weight": lambda model, _: model.head.weight.data[0, 0].add_(1e-6),
    "a write that was undone": _write_and_undo,
    "a thawed parameter": lambda model, _: model.head.weight.requires_grad_(False),
    "a gradient": lambda model, _: setattr(model.head.weight, "grad", torch.zeros_like(model.head.weight)),
    "a changed gradient": lambda model, _: model.head.bias.grad.add_(1),
    "the images": lambda _, images: images.data[0, 0, 0, 0].add_(1e-6),
    "a flag of the images": lambda _, images: images.requires_grad_(True),
    "the random state of torch": lambda *_: torch.rand(1),
    "the random state of numpy": lambda *_: np.random.rand(),  # noqa: NPY002
    "the random state of python": lambda *_: random.random(),  # noqa: S311
    "the grad mode": lambda *_: torch.set_grad_enabled(False),
    "the default dtype": lambda *_: torch.set_default_dtype(torch.float64),
    "a function mode": lambda *_: BaseTorchFunctionMode().__enter__(),
}


@pytest.fixture
def restored_process() -> Iterator[None]:
    """What the tampering below does to the process is undone after each test."""
    mode, dtype, depth = torch.is_grad_enabled(), torch.get_default_dtype(), torch._C._len_torch_function_stack()
    with torch.random.fork_rng():
        yield
    torch.set_grad_enabled(mode)
    torch.set_default_dtype(dtype)
    while torch._C._len_torch_function_stack() > depth:
        torch._C._pop_torch_function_stack()


@pytest.mark.usefixtures("restored_process")
@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING)
def test_the_fingerprint_sees(tamper: Callable[[nn.Module, Tensor], object]) -> None:
    model, images = copy.deepcopy(specimen("timm-vit")), image_batch("timm-vit")
    model.head.bias.grad = torch.ones_like(model.head.bias)
    before = fingerprint(model, images)
    assert differences(before, fingerprint(model, images)) == []
    kept = tamper(model, images)
    assert differences(before, fingerprint(model, images)) != []
    del kept
