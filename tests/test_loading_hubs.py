"""Hubs that cannot be reached, and what their clients have stored."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import transformers
from huggingface_hub import constants

from tests.support.model_files import ARCH, NAMES, named, timm_folder, transformers_folder
from tests.support.sentences import assert_one_sentence
from tests.support.zoo import build
from tokentm.errors import HubUnreachableError
from tokentm.models import hub

OFFLINE = """
import json, sys, time, warnings
warnings.simplefilter("error")
import tokentm
answers = {}
for name in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        model = tokentm.load_model(name)
        said = "with" if model.transform else "without"
        answer = ["loaded", f"{model.name} {model.anatomy.family} {model.class_names[0]}, {said} a transform"]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    answers[name] = [*answer, time.perf_counter() - start]
print(json.dumps(answers))
"""


UNREACHABLE = [ARCH, "hf:me/absent", "hf:not a repository", "torchvision:vit_b_16"]


def hub_cache(root: Path, repository: str, fill: Callable[[Path], object]) -> None:
    """What the hub client would have stored of ``repository``."""
    entry = root / "hub" / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    (entry / "snapshots").mkdir()
    fill(entry / "snapshots" / ("0" * 40))


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What ``load_model`` answers to names while nothing can be reached; asked in one process, to save time."""
    root = tmp_path_factory.mktemp("caches")
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    swin = transformers.SwinForImageClassification(config)
    hub_cache(root, "me/swin", lambda folder: transformers_folder(folder, swin))
    hub_cache(root, "me/vit", lambda folder: transformers_folder(folder, named("transformers-vit")))
    hub_cache(root, "me/timm", timm_folder)
    hub_cache(root, "me/bare", lambda folder: named("transformers-vit").save_pretrained(folder))
    names = [
        ARCH,
        "hf:me/absent",
        "hf:not a repository",
        "hf:me/swin",
        "hf:me/vit",
        "hf:me/timm",
        "hf:me/bare",
        "torchvision:vit_b_16",
    ]
    nowhere = "http://127.0.0.1:9"  # where nothing listens
    environment = {
        **os.environ,
        "HF_HOME": str(root),
        "TORCH_HOME": str(root / "torch"),
        **{f"{scheme}_proxy": nowhere for scheme in ("http", "https")},
        **{f"{scheme}_PROXY": nowhere for scheme in ("HTTP", "HTTPS")},
    }
    command = [sys.executable, "-c", OFFLINE, json.dumps(names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_hub_that_does_not_answer(offline: dict[str, list[Any]], name: str) -> None:
    kind, text, _ = offline[name]
    assert kind == "HubUnreachableError"
    assert name.removeprefix("hf:").removeprefix("torchvision:") in text
    assert "pass a local folder" in text
    assert_one_sentence(HubUnreachableError(text))


def test_no_time_is_lost_on_a_hub_that_does_not_answer(offline: dict[str, list[Any]]) -> None:
    # The client alone would try for over twenty seconds, and for every file again.
    assert offline["hf:me/absent"][2] < 10
    assert offline["hf:me/timm"][2] < 10


PLACES = {
    "the hub": ({}, "https://hub.example", ("hub.example", 443)),
    "the hub at its own port": ({}, "http://hub.example:8080", ("hub.example", 8080)),
    "a proxy": ({"https": "http://proxy.example:3128"}, "https://hub.example", ("proxy.example", 3128)),
    "a proxy for everything": ({"all": "http://proxy.example"}, "https://hub.example", ("proxy.example", 80)),
    "a proxy without a scheme": ({"https": "proxy.example:3128"}, "https://hub.example", ("proxy.example", 3128)),
    "a proxy of another scheme": ({"ftp": "http://proxy.example:1"}, "https://hub.example", ("hub.example", 443)),
    "a proxy that the hub goes around": (
        {"https": "http://proxy.example:3128", "no": "hub.example"}, "https://hub.example", ("hub.example", 443),
    ),
    "a kind of proxy that only the client knows": ({"all": "socks5h://proxy.example"}, "https://hub.example", None),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_where_a_connection_is_tried(place: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    proxies, endpoint, expected = place
    for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    for scheme, address in proxies.items():
        monkeypatch.setenv(f"{scheme}_proxy", address)
    tried: list[tuple[str, int]] = []

    def refused(address: tuple[str, int], **_: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refused)
    assert hub._answers(urlsplit(endpoint)) is (expected is None)
    assert tried == ([] if expected is None else [expected])


def nothing_there(listener: socket.socket, asked: list[str]) -> None:
    """Answer every request that nothing is there, until the listener is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                if request := connection.recv(1 << 16):
                    asked.append(request.split()[1].decode())
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_a_hub_that_answers_is_asked(tmp_path: Path) -> None:
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=nothing_there, args=(listener, asked), daemon=True).start()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }
        command = [sys.executable, "-c", OFFLINE, json.dumps(["hf:me/absent"])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hf:me/absent"][0] == "HubUnreachableError"
    assert any("me/absent" in path and path.endswith("config.json") for path in asked)


def test_the_switch_of_the_client_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_answers", lambda _: False)
    for before in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", before)
        with pytest.raises(HubUnreachableError, match="offline: True"), hub.hub("me/absent"):
            raise OSError(f"offline: {constants.is_offline_mode()}")
        assert constants.HF_HUB_OFFLINE is before
    monkeypatch.setattr(hub, "_answers", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.hub("me/there"):
        assert not constants.is_offline_mode()


def test_what_the_hub_client_has_stored_needs_no_network(offline: dict[str, list[Any]]) -> None:
    assert offline["hf:me/vit"][:2] == ["loaded", f"hf:me/vit transformers ViT {NAMES[0]}, with a transform"]
    assert offline["hf:me/timm"][:2] == ["loaded", f"hf:me/timm timm ViT {NAMES[0]}, with a transform"]


def test_a_repository_that_says_no_preprocessing_loads_without(offline: dict[str, list[Any]]) -> None:
    assert offline["hf:me/bare"][:2] == ["loaded", f"hf:me/bare transformers ViT {NAMES[0]}, without a transform"]


def test_a_model_from_the_hub_that_cannot_be_explained_is_not_blamed_on_the_network(offline: dict[str, Any]) -> None:
    kind, text, _ = offline["hf:me/swin"]
    assert kind == "UnsupportedModelError"
    assert "windowed, hierarchical" in text


def test_transformers_is_only_needed_for_its_models(tmp_path: Path) -> None:
    timm_folder(tmp_path / "timm")
    transformers_folder(tmp_path / "hf", build("transformers-vit"))
    code = (
        "import sys; sys.modules['transformers'] = None\n"  # what makes `import transformers` fail
        "import tokentm\n"
        f"assert tokentm.load_model({str(tmp_path / 'timm')!r}).anatomy.family == 'timm ViT'\n"
        "try:\n"
        f"    tokentm.load_model({str(tmp_path / 'hf')!r})\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == (
        "MissingExtraError hf needs transformers, which is not installed; "
        "pip install '.[hf]' in a checkout of tokentm brings it.\n"
    ), done.stderr
