"""Hubs that cannot be reached, and what their clients have stored."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.support.model_files import ARCH, NAMES, named, timm_folder, transformers_folder
from tests.support.sentences import assert_one_sentence
from tests.support.zoo import build
from tokentm.errors import HubUnreachableError

OFFLINE = """
import json, sys, time, warnings
warnings.simplefilter("error")
import tokentm
answers = {}
for name in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        model = tokentm.load_model(name)
        answer = ["loaded", f"{model.name} {model.anatomy.family} {model.class_names and model.class_names[0]}"]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    answers[name] = [*answer, time.perf_counter() - start]
print(json.dumps(answers))
"""


UNREACHABLE = [ARCH, "hf:me/absent", "hf:not a repository", "torchvision:vit_b_16"]


def hub_cache(root: Path, repository: str, fill: Callable[[Path], Path]) -> None:
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
    names = [
        ARCH,
        "hf:me/absent",
        "hf:not a repository",
        "hf:me/swin",
        "hf:me/vit",
        "hf:me/timm",
        "torchvision:vit_b_16",
    ]
    nowhere = "http://127.0.0.1:9"  # where nothing listens
    environment = {
        **os.environ,
        "HF_HOME": str(root),
        "HF_HUB_OFFLINE": "1",
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
    assert offline["hf:me/absent"][2] < 10


def test_what_the_hub_client_has_stored_needs_no_network(offline: dict[str, list[Any]]) -> None:
    assert offline["hf:me/vit"][:2] == ["loaded", f"hf:me/vit transformers ViT {NAMES[0]}"]
    assert offline["hf:me/timm"][:2] == ["loaded", f"hf:me/timm timm ViT {NAMES[0]}"]


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
