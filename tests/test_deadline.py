"""A time limit on work with tensors."""

import time

import pytest
import torch

from tests.support.fingerprint import fingerprint
from tests.support.unchecked import unchecked
from tests.support.zoo import build, image_batch
from tokentm.deadline import Deadline
from tokentm.errors import TimeLimitError
from tokentm.models import describe
from tokentm.session import Request, run


def test_work_in_time_is_untouched() -> None:
    model, images = describe(build("timm-vit")), image_batch("timm-vit")
    request = [Request.parse("tokentm/libra")]
    with Deadline(600.0):
        found = run(model, images, None, request)[0]
    assert torch.equal(found.relevance, run(model, images, None, request)[0].relevance)


def test_endless_work_ends() -> None:
    start = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"longer than the 0\.2 seconds that a request has"):
        _work_for_ever()
    assert time.monotonic() - start < 60


def _work_for_ever() -> None:
    with Deadline(0.2):
        while True:
            torch.ones(2) + 1


def test_a_method_is_interrupted_and_the_model_left_as_it_was() -> None:
    module, images = build("timm-vit"), image_batch("timm-vit")
    before = fingerprint(module)
    with unchecked(), pytest.raises(TimeLimitError), Deadline(0.01):
        run(describe(module), images, None, [Request.parse("rise")])
    assert fingerprint(module) == before


def test_the_limit_counts_from_the_entry() -> None:
    limit = Deadline(0.2)
    time.sleep(0.3)
    with limit:
        torch.ones(2) + 1
