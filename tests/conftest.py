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
