"""What a stranger may do to the server: very little, and each refusal is a sentence."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.command import save_classifier, tree
from tests.support.fork_server import run as run_command
from tests.support.unchecked import unchecked
from tests.support.web_page import Served, ask, bomb, data_url, png, serve
from tokentm.datasets.shapes import scene
from tokentm.errors import ImageError, InputError, TimeLimitError

pytest.importorskip("gradio", reason="the page needs the extra 'web'")

from tokentm.web.desk import Desk
from tokentm.web.limits import Limits
from tokentm.web.models import Models
from tokentm.web.photos import read_photo

LIMITS = Limits()


BAD_PHOTOS = {
    "text as .jpg": (data_url(b"no picture at all" * 9, "image/jpeg"), "not an image that can be read here"),
    "a bomb": (data_url(bomb()), "pixels"),
    "a bomb below Pillow's own limit": (data_url(bomb(8000, 8000)), r"8,000 × 8,000 pixels; at most 40,000,000"),
    "0 bytes": (data_url(b""), r"empty \(0 bytes\)"),
    "huge": ("A" * (LIMITS.body_bytes + 1), "larger than the 16 MB"),
    "huge once decoded": (base64.b64encode(bytes(LIMITS.file_bytes + 1)).decode(), "larger than the 16 MB"),
    "a path": ("/etc/passwd", "not base64"),
    "a path upwards": ("../../../etc/passwd", "not base64"),
    "a file address": ("file:///etc/passwd", "not base64"),
    "a web address": ("http://127.0.0.1:1/photo.jpg", "not base64"),
    "a path as example": ("example:../../etc/passwd", "There is no example"),
    "another format": (data_url(b"II*\x00" + bytes(200)), "not an image that can be read here"),
    "a data URL without data": ("data:image/png;base64", "without a comma"),
}


@pytest.mark.parametrize(("photo", "sentence"), BAD_PHOTOS.values(), ids=BAD_PHOTOS)
def test_bad_photos_are_refused_in_a_sentence(photo: str, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        read_photo(photo, LIMITS)


def test_a_good_photo_passes_in_every_spelling() -> None:
    picture = scene(12, 3).pil()
    for text in (data_url(png(picture)), base64.b64encode(png(picture)).decode(), "example:scene-3"):
        image, _ = read_photo(text, LIMITS)
        assert np.array_equal(np.asarray(image), np.asarray(picture))


FORBIDDEN = ["/etc", "../shapes", "vit_base_patch16_224", "hf:org/name", "shapes/../shapes", "", "any", "."]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_only_allowed_models_are_loaded(name: str) -> None:
    with pytest.raises(InputError, match="is not allowed here"), Models().use(name, 1.0):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "./shapes",
        "..",
        "hf:../../etc",
        "weights.pth",
        "folder",
        "hf:/etc",
        "hf:a/b/c",
        "open_clip:ViT-B-32/weights",
        "open_clip:local-dir:/etc",
        "vit_tiny_patch16_224.ckpt",
        "vit_tiny_patch16_224.PTH",
    ],
)
def test_where_every_name_is_allowed_a_path_still_is_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not allowed here"), Models(["any"]).use(name, 1.0):
        pass


def test_a_folder_is_offered_by_its_last_part(tmp_path: Path) -> None:
    models = Models([str(save_classifier(tmp_path / "birds"))])
    assert "birds" in models.names
    assert not any("/" in name for name in models.names)
    desk = Desk(models, LIMITS)
    found = desk.explain("example:scene-2", "birds", "tabby", "tokentm")
    assert found["class"] == "tabby"
    assert str(tmp_path) not in json.dumps(found)


def test_a_request_that_takes_too_long_is_ended_and_the_next_one_works() -> None:
    desk = Desk(Models(), Limits(seconds=1.0))
    desk.limits = Limits(seconds=0.05)
    with unchecked(), pytest.raises(TimeLimitError, match=r"longer than the 0\.05 seconds"):
        desk.faithfulness("example:scene-2", "shapes", None, ["tokentm", "gae"])
    desk.limits = Limits(seconds=60.0)
    assert desk.explain("example:scene-2", "shapes", None, "tokentm")["probability"] > 0.5


def test_who_waits_too_long_for_the_model_is_told() -> None:
    models = Models()
    with models.use("shapes", 1.0):
        told: list[str] = []

        def wait() -> None:
            try:
                with models.use("shapes", 0.1):
                    told.append("in")
            except TimeLimitError as error:
                told.append(str(error))

        other = threading.Thread(target=wait)
        other.start()
        other.join()
    assert told == ["The server is busy with other requests; try again in a minute."]


def test_only_who_has_the_token_sees_the_photo_and_old_ones_are_forgotten() -> None:
    desk = Desk(Models(), Limits(photos=2))
    tokens = [desk.explain(f"example:scene-{at}", "shapes", None, "gae")["photo"] for at in (2, 3, 4)]
    assert len(desk.held) == 2
    assert len(set(tokens)) == 3
    assert all(len(token) > 25 for token in tokens)
    with pytest.raises(ImageError, match="no longer held"):
        desk.explain(tokens[0], "shapes", None, "gae")
    fresh = desk.explain("example:scene-4", "shapes", None, "gae")["map"]["relevance"]
    assert desk.explain(tokens[2], "shapes", None, "gae")["map"]["relevance"] == fresh
    with pytest.raises(ImageError, match="no longer held"):
        desk.explain("held:" + "x" * 24, "shapes", None, "gae")


def test_photos_are_forgotten_after_their_time() -> None:
    desk = Desk(Models(), Limits(photo_seconds=0.2))
    token = desk.explain("example:scene-2", "shapes", None, "gae")["photo"]
    time.sleep(0.3)
    with pytest.raises(ImageError, match="no longer held"):
        desk.explain(token, "shapes", None, "gae")


def test_recordings_are_dropped_when_they_are_too_much_and_made_again() -> None:
    desk = Desk(Models(), Limits(graph_bytes=1))
    first = desk.explain("example:scene-2", "shapes", None, "tokentm")
    again = desk.explain(first["photo"], "shapes", None, "tokentm")
    assert not again["recording_reused"]
    assert torch.equal(torch.tensor(first["map"]["relevance"]), torch.tensor(again["map"]["relevance"]))
    roomy = Desk(Models(), LIMITS)
    token = roomy.explain("example:scene-2", "shapes", None, "tokentm")["photo"]
    assert roomy.explain(token, "shapes", 1, "tokentm")["recording_reused"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("web")
    with serve(folder, "--queue", "2") as running:
        yield running, folder


def status(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


CLOSED = [
    "gradio_api/file=/etc/passwd",
    "gradio_api/file/etc/passwd",
    "gradio_api/proxy=https://example.org",
    "gradio_api/upload",
    "gradio_api/upload_progress",
    "gradio_api/stream/x/1/2/playlist.m3u8",
    "gradio_api/custom_component/x/y/z/w",
    "gradio_api/component_server",
    "gradio_api/process_recording",
    "gradio_api/run/explain",
    "gradio_api/runs",
    "gradio_api/vibe-code/",
    "monitoring",
    "static/../../../../etc/passwd",
    "assets/%2e%2e/%2e%2e/etc/passwd",
]


@pytest.mark.parametrize("route", CLOSED)
def test_routes_that_the_page_does_not_need_are_closed(served: tuple[Served, Path], route: str) -> None:
    url = served[0].url + route
    for body in (None, b"{}"):
        code, text = status(url, body)
        assert code in (403, 404, 405), (route, code)
        assert "root:" not in text


def test_a_request_that_is_too_large_is_turned_away(served: tuple[Served, Path]) -> None:
    running, _ = served
    code, text = status(running.url + "gradio_api/call/v2/explain", b'{"photo": "' + b"A" * (23 << 20) + b'"}')
    assert code == 413
    assert "larger than the" in text


def test_questions_by_http_and_their_refusals(served: tuple[Served, Path]) -> None:
    running, folder = served
    found = ask(running.url, "explain", photo="example:scene-2")
    assert found["model"] == "shapes"
    assert len(found["map"]["relevance"]) == 12
    for question, sentence in (
        ({"photo": "/etc/passwd"}, "not base64"),
        ({"photo": ""}, "There is no photo yet"),
        ({"photo": "example:scene-2", "model": "/etc"}, "is not allowed here"),
        ({"photo": "example:scene-2", "method": "nonsense"}, "Unknown method"),
        ({"photo": "example:scene-2", "target": "zebra"}, "no class 'zebra'"),
        ({"photo": "example:scene-2", "target": 99}, "out of range"),
        ({"photo": "example:scene-2", "target": [1]}, "neither an index nor a name"),
        ({"photo": data_url(bomb())}, "pixels"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            ask(running.url, "explain", **question)
    photo = data_url(png(scene(12, 5).pil()))
    assert ask(running.url, "explain", photo=photo)["photo"].startswith("held:")
    written = {name for name in tree(folder) if name != "log" and "__pycache__" not in name}
    assert not [name for name in written if name.endswith((".png", ".jpg", ".webp"))], "an upload was written to disk"


def test_the_headers_keep_the_page_at_home(served: tuple[Served, Path]) -> None:
    with urllib.request.urlopen(served[0].url, timeout=60) as answer:  # noqa: S310
        policy = answer.headers["content-security-policy"]
        text = answer.read().decode()
    assert "connect-src 'self'" in policy
    assert "default-src 'self'" in policy
    assert "fonts.googleapis.com" not in text
    assert '"analytics_enabled": false' in text or '"analytics_enabled":false' in text


def test_the_queue_is_bounded(served: tuple[Served, Path]) -> None:
    running, _ = served
    url = running.url + "gradio_api/call/v2/faithfulness"
    question = json.dumps({"photo": "example:scene-2", "methods": ["tokentm"]}).encode()
    codes = [status(url, question)[0] for _ in range(8)]
    assert 503 in codes, codes
    assert codes.count(200) >= 1
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            assert ask(running.url, "explain", photo="example:scene-2")["model"] == "shapes"
            break
        except urllib.error.HTTPError:
            time.sleep(1)
    else:
        raise AssertionError("the server did not recover")


def test_with_auth_nobody_else_may_look(tmp_path: Path) -> None:
    with serve(tmp_path, "--auth", "ada:secret") as running:
        assert status(running.url + "gradio_api/call/v2/explain", b'{"photo": "example:scene-2"}')[0] == 401
        assert status(running.url + "config")[0] == 401
        body = b"username=ada&password=wrong"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert status(running.url + "login", body, **form)[0] == 400
        request = urllib.request.Request(running.url + "login", b"username=ada&password=secret", form)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            cookie = answer.headers["set-cookie"].split(";")[0]
        assert (
            status(running.url + "gradio_api/call/v2/explain", b'{"photo": "example:scene-2"}', Cookie=cookie)[0] == 200
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--auth", "ada"], "--auth takes USER:PASSWORD"),
        (["--port", "70000"], "is not a whole number from 0 to 65535"),
        (["--max-pixels", "none"], "is not a whole number of 1 or more"),
    ],
)
def test_bad_options_are_told_in_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = run_command(["serve", *arguments], tmp_path)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err


def test_a_model_that_left_the_memory_takes_its_photos_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokentm.web.models._IN_MEMORY", 1)
    desk = Desk(Models([str(save_classifier(tmp_path / "birds"))]), LIMITS)
    token = desk.explain("example:scene-2", "birds", None, "gae")["photo"]
    desk.explain("example:scene-2", "shapes", None, "gae")
    assert desk.models.loaded == ["shapes"]
    with pytest.raises(ImageError, match="no longer held"):
        desk.explain(token, "birds", None, "gae")
