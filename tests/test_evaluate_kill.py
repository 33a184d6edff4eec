"""A run that is killed with SIGKILL, at any moment and as often as one likes, ends as if nothing had happened."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.command import COMMAND, environment
from tests.support.fork_server import run
from tests.support.scenes import METHODS, contents

if not hasattr(signal, "SIGKILL"):
    pytest.skip("this system cannot kill processes", allow_module_level=True)

REPOSITORY = Path(__file__).parents[1]
EVALUATE = [
    "evaluate", "shapes:24", "--limit", "24", "--model", "shapes", "--protocols", "segmentation", "--methods",
    "gae,center", "--batch-size", "8", "--device", "cpu", "--workers", "0",
]  # fmt: skip


def killed(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    script = [sys.executable, "-m", "tests.support.killed_runs", str(folder), str(kills), str(seed)]
    done = subprocess.run(
        script, cwd=REPOSITORY, env=environment(folder), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    hit, parts = done.stdout.split()
    rows = pq.read_table(folder / "whole" / "results.parquet").select(["index", "method"]).to_pylist()
    assert [(row["index"], row["method"]) for row in rows] == [(i, name) for i in range(18) for name in METHODS]
    return int(hit), int(parts)


def test_ten_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    parts = 0
    for seed in (2, 3, 4):  # where the moments fall depends on how busy the machine is
        folder = tmp_path / str(seed)
        folder.mkdir()
        hit, between = killed(folder, 10, seed=seed)
        assert hit == 10
        parts += between
        if parts:
            break
    assert parts > 0, "kills must have come between parts, too"


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    assert run([*EVALUATE, "--out", "whole"], tmp_path).code == 0
    process = subprocess.Popen(
        [COMMAND, *EVALUATE, "--out", "run"],
        cwd=tmp_path,
        env=environment(tmp_path.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not (tmp_path / "run" / "manifest.json").exists():
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert run([*EVALUATE, "--out", "run"], tmp_path).code == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
