"""Long questions: how far they are, and how they are ended."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import save_classifier
from tests.support.fingerprint import fingerprint
from tests.support.unchecked import unchecked
from tests.support.web_page import Served, ask, serve
from tests.support.zoo import build, image_batch
from tokentm import progress
from tokentm.datasets.examples import example_photos
from tokentm.deadline import Deadline
from tokentm.errors import InputError, StoppedError
from tokentm.methods import METHODS
from tokentm.models import describe
from tokentm.session import Request, run

pytest.importorskip("gradio", reason="the page needs the extra 'web'")

from tokentm.web.desk import Desk
from tokentm.web.limits import Limits
from tokentm.web.models import Models
from tokentm.web.work import Works

SMALL = {
    "rise": {"masks": 5, "batch": 2},
    "integrated_gradients": {"steps": 3},
    "beyond_intuition_t": {"steps": 3},
    "tis": {"masks": 5, "batch": 2},
    "vit_cx": {"batch": 2},
}


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def begin(self, name: str) -> None:
        self.said.append(name)

    def step(self, done: int, of: int) -> None:
        self.said.append((done, of))


@pytest.mark.parametrize("name", SMALL)
def test_a_slow_method_says_how_far_it_is_up_to_its_end(name: str) -> None:
    model, images, heard = describe(build("timm-vit")), image_batch("timm-vit")[:1], Heard()
    request = Request.parse(name, METHODS[name].options(**SMALL[name]))
    with progress.watched(heard):
        run(model, images, None, [request])
    first, *told = heard.said
    assert first == name
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] == len(told) - 1 > 0


def test_nobody_is_told_behind_the_block() -> None:
    heard = Heard()
    with progress.watched(heard):
        progress.begin("a")
    progress.begin("b")
    assert list(progress.steps("xy", 2)) == ["x", "y"]
    assert heard.said == ["a"]


class Stopping(Heard):
    """A watcher that ends the work at its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()

    def step(self, done: int, of: int) -> None:
        super().step(done, of)
        if done == 2:
            self.stop.set()


def test_work_is_stopped_within_a_step_and_leaves_the_model_as_it_was() -> None:
    module, images, heard = build("timm-vit"), image_batch("timm-vit")[:1], Stopping()
    options = METHODS["rise"].options(masks=40, batch=2)
    before, request = fingerprint(module), Request.parse("rise", options)
    limits = (unchecked(), progress.watched(heard), Deadline(600.0, heard.stop))
    with pytest.raises(StoppedError, match="cancelled, as asked"), limits[0], limits[1], limits[2]:
        run(describe(module), images, None, [request])
    assert heard.said == ["rise", (0, 20), (1, 20), (2, 20)]
    assert fingerprint(module) == before


def test_parts_are_counted_in_any_order_and_the_rest_is_passed_over() -> None:
    works = Works()
    with works.answering("mine") as work:
        assert works.progress("mine")["doing"] == "the model's answer"
        work.expect(["gae", "rise", "rise"])
        for name in ("rise", "random", "gae", "random", "rise"):
            progress.begin(name)
        list(zip(progress.steps("abcd", 4), "xy", strict=False))
        told = works.progress("mine")
        assert (told["doing"], told["part"], told["parts"], told["share"]) == ("rise", 3, 3, 0.5)
    assert works.progress("mine") == {"state": "waiting"}


def test_who_is_cancelled_before_its_turn_computes_nothing() -> None:
    works = Works()
    assert works.cancel("mine") == {"state": "waiting"}
    with pytest.raises(StoppedError, match="before its turn came"), works.answering("mine"):
        raise AssertionError("it was begun")
    with works.answering("mine"):  # a ticket is good for one question
        pass


def test_tickets_that_are_cancelled_and_never_asked_are_forgotten_but_not_those_at_work() -> None:
    works = Works()
    with works.answering("mine"):
        for at in range(2000):
            works.cancel(f"never-{at}")
        assert works.progress("mine")["state"] == "running"
        assert len(works._works) <= 512


@pytest.mark.parametrize("ticket", ["", "x" * 65])
def test_a_ticket_is_a_short_text(ticket: str) -> None:
    with pytest.raises(InputError, match="text of 1 to 64 characters"):
        Works().cancel(ticket)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("web"), "--time-limit", "600") as running:
        yield running


def test_a_question_is_watched_and_cancelled_while_another_waits(served: Served) -> None:
    slow = {"photo": "example:scene-2", "methods": ["rise", "tokentm"], "targets": [0, 1]}

    def state(ticket: str) -> dict[str, Any]:
        return ask(served.url, "progress", ticket=ticket)

    with ThreadPoolExecutor(2) as visitors:
        first = visitors.submit(ask, served.url, "compare", ticket="first", **slow)
        end = time.monotonic() + 300
        while state("first").get("doing") != "rise" or not state("first").get("share"):
            assert time.monotonic() < end
            assert not first.done()
        second = visitors.submit(ask, served.url, "compare", ticket="second", **slow)
        assert state("second") == {"state": "waiting"}
        for ticket in ("second", "first"):
            ask(served.url, "cancel", ticket=ticket)
        for question, sentence in ((first, "as asked; nothing"), (second, "before its turn")):
            with pytest.raises(RuntimeError, match=sentence):
                question.result(timeout=60)
    again = ask(served.url, "explain", photo="example:scene-2")
    assert again["class"] in ("disc", "star")


def test_classes_and_fitting_examples_of_each_model(tmp_path: Path) -> None:
    birds = save_classifier(tmp_path / "birds")
    desk = Desk(Models([str(birds)]), Limits())
    shapes, cifar, own = (desk.classes(name) for name in ("shapes", "cifar10", "birds"))
    assert shapes["names"] == list(desk_names(desk, "shapes"))
    assert shapes["count"] == len(shapes["names"])
    assert all(photo.startswith("example:scene-") for photo in shapes["examples"])
    assert cifar["examples"] == [f"example:{name}" for name in example_photos()]
    side = desk.explain("example:scene-2", "birds", None, "gae")["size"][0]
    assert own["examples"] == (cifar if side <= 64 else shapes)["examples"]


def desk_names(desk: Desk, name: str) -> tuple[str, ...]:
    with desk.models.use(name, 60.0) as model:
        assert model.class_names is not None
        return model.class_names
