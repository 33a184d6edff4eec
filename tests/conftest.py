"""Shared fixtures; tests that need the kit of a real model and photos skip with a reason when it is absent."""

import os
from pathlib import Path

import pytest
import torch

KIT = Path(os.environ.get("TOKENTM_KIT", Path(__file__).parents[1] / ".." / "shared" / "kit"))

# The specimens are tiny: a second thread costs more in hand-over than it saves.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kit() -> Path:
    if not KIT.is_dir():
        pytest.skip("the kit (a real DINOv2 and photos) is not beside the checkout; set TOKENTM_KIT to its folder")
    return KIT.resolve()


# Begun first, so that no process is left with minutes of work when the others have none.
LONG = (
    "contract", "protocols_oracle", "recorder", "web_browser", "web_safety", "evaluate_cli", "properties",
    "evaluate_kill", "cli", "evaluate_run", "docs", "site", "cifar10_teacher", "lrp", "engine_ray", "loading_hubs",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
