"""What a backward rule is, and the one place where rules are known."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch.overrides import TorchFunctionMode

from tokentm.registry import Registry

__all__ = ["BACKWARD", "BackwardRule", "Handler", "Rule"]

Handler = Callable[..., Any]


class BackwardRule(TorchFunctionMode):
    """Runs the forward pass with functions whose value is the same, bit for bit, and whose gradient is another.

    A rule is active while the model runs forward and shapes the autograd graph of that pass; nothing about the model
    changes, so leaving the ``with`` block restores everything, whatever happened inside. Rules are local to a thread.
    """

    handlers: ClassVar[Mapping[Any, Handler]] = {}
    wide: ClassVar[bool] = False
    """Whether the pass runs in float64; its logits are then not those of the model bit for bit."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand the call to the rule's own version of ``func``, or let it run."""
        return self.handlers.get(func, func)(*args, **(kwargs or {}))


@final
@dataclass(frozen=True)
class Rule:
    """One backward rule as users choose it.

    Attributes:
        name: As in ``backward="libra"``.
        mode: Makes a fresh context manager for one forward pass.
        paper: Key into the bibliography, None for the plain gradient.
        summary: One line for tables.
        complete: Whether input × gradient plus the biases' share adds up to the score under this rule.
        relevance: What flows backward is relevance and not a gradient: such a rule belongs to the methods that are
            defined with it and composes with no other.
    """

    name: str
    mode: Callable[[], AbstractContextManager[Any]]
    paper: str | None
    summary: str
    complete: bool
    relevance: bool = False


BACKWARD: Registry[Rule] = Registry("backward rule", "tokentm.backward")
