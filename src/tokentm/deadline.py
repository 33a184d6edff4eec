"""A time limit on work with tensors, and a way to stop it, kept without a second process."""

import time
from collections.abc import Callable
from threading import Event
from typing import Any, final

from torch.overrides import TorchFunctionMode

from tokentm.errors import StoppedError, TimeLimitError

__all__ = ["Deadline"]


@final
class Deadline(TorchFunctionMode):
    """Inside ``with Deadline(seconds):`` the first tensor operation after that time raises ``TimeLimitError``.

    Threads cannot be stopped from outside; but whatever a method does, it calls tensor operations, and each is short.
    Everything that was entered unwinds as for any other exception, so the model is left as it was. The limit holds
    for the thread that entered it, and counts from the entry. With ``stop``, the first operation after another thread
    has set that event raises ``StoppedError``.
    """

    def __init__(self, seconds: float, stop: Event | None = None) -> None:
        super().__init__()
        self._seconds = seconds
        self._stop = stop
        self._end = float("inf")

    def __enter__(self) -> "Deadline":
        self._end = time.monotonic() + self._seconds
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless time is up or the work was stopped."""
        if self._stop is not None and self._stop.is_set():
            self._rest()
            raise StoppedError("The work was cancelled, as asked; nothing was computed to its end.")
        if time.monotonic() > self._end:
            self._rest()
            raise TimeLimitError(
                f"It took longer than the {self._seconds:g} seconds that a request has; "
                "choose fewer or faster methods, or a smaller model."
            )
        return func(*args, **(kwargs or {}))

    def _rest(self) -> None:
        """It is said once; what unwinds now may need tensor operations of its own."""
        self._stop, self._end = None, float("inf")
