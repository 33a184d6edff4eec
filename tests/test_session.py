"""Recordings that outlive a question: nothing runs twice, and the answers are those of a fresh recording."""

import pytest
import torch
from torch import nn

from tests.support.mutants import mutant
from tests.support.zoo import build, image_batch
from tokentm.errors import InputError
from tokentm.methods import METHODS
from tokentm.methods.beyond_intuition import BeyondIntuitionConfig
from tokentm.models import VisionModel, describe
from tokentm.session import Recordings, Request, run
from tokentm.trace import Signal


@pytest.fixture
def model() -> VisionModel:
    return describe(build("timm-vit"))


class Forwards:
    """Counts how often the model runs."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


def test_later_questions_about_the_same_images_run_nothing_again(model: VisionModel) -> None:
    images, asked = image_batch("timm-vit"), [Request.parse("tokentm"), Request.parse("gae/libra")]
    kept, forwards = Recordings(model, images, keep=True), Forwards(model.module)
    run(model, images, 2, asked, kept)
    assert forwards.count == 2  # one per backward rule
    for target in (5, 1, 5):
        found = run(model, images, target, asked, kept)
        assert forwards.count == 2
        fresh = run(describe(build("timm-vit")), images, target, asked)
        for one, other in zip(found, fresh, strict=True):
            assert torch.equal(one.relevance, other.relevance)
            assert torch.equal(one.target, other.target)


def test_a_question_that_reads_more_records_once_more_with_both(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    kept, forwards = Recordings(model, images, keep=True), Forwards(model.module)
    run(model, images, 2, [Request.parse("rollout")], kept)
    run(model, images, 2, [Request.parse("attcat")], kept)
    assert forwards.count == 2
    assert kept.has("plain", METHODS["rollout"].signals | METHODS["attcat"].signals)
    run(model, images, 2, [Request.parse("rollout"), Request.parse("attcat")], kept)
    assert forwards.count == 2
    kept.clear()
    assert not kept.has("plain", Signal.ATTENTION)
    run(model, images, 2, [Request.parse("rollout")], kept)
    assert forwards.count == 3


def test_without_keep_nothing_is_held(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    passing = Recordings(model, images)
    run(model, images, 2, [Request.parse("tokentm")], passing)
    assert passing.graph_bytes == 0


def test_every_method_answers_the_same_from_what_was_kept(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    quick = [Request.parse(name) for name, method in METHODS.items() if not method.probe]
    kept = Recordings(model, images, keep=True)
    run(model, images, 2, quick, kept)
    again, fresh = run(model, images, 5, quick, kept), run(model, images, 5, quick)
    for request, one, other in zip(quick, again, fresh, strict=True):
        assert torch.equal(one.relevance, other.relevance), request.name


def test_forgetting_which_class_was_asked_goes_red(model: VisionModel) -> None:
    images, asked = image_batch("timm-vit"), [Request.parse("tokentm")]
    kept = Recordings(model, images, keep=True)
    run(model, images, 2, asked, kept)
    with mutant("tokentm.session", "return tuple(target.tolist()), score", "return score"):
        run(model, images, 2, asked, kept)
        wrong = run(model, images, 5, asked, kept)[0].relevance
    assert not torch.equal(wrong, run(model, images, 5, asked)[0].relevance)


def test_after_a_method_has_failed_the_next_one_is_answered(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    recordings = Recordings(model, images)
    late = Request.parse("beyond_intuition_h", BeyondIntuitionConfig(start_block=9))
    with pytest.raises(InputError):
        run(model, images, 0, [late], recordings)
    (found,) = run(model, images, 0, [Request.parse("gae")], recordings)
    (alone,) = run(model, images, 0, [Request.parse("gae")])
    assert torch.equal(found.relevance, alone.relevance)
