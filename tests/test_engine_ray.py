"""Runs on a real Ray: the same bytes as on this machine, whoever dies, and sentences where there is no cluster."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tokentm
from tests.support.command import COMMAND, environment, run_alone, save_classifier
from tests.support.faults import Deadly, Raising
from tests.support.scenes import Scenes, contents, worker
from tokentm.datasets.shapes import scene
from tokentm.engines import on_ray
from tokentm.engines.on_ray import RayEngine
from tokentm.engines.shared import pack, unpack
from tokentm.errors import ClusterError
from tokentm.evaluate.runner import execute
from tokentm.files import write_file
from tokentm.photos import PhotoJob, explain_photos
from tokentm.session import Request

ray: Any = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are none of ours

on_the_cluster = pytest.mark.usefixtures("cluster")
STORE = 128 * 2**20
PATIENT = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_AUTH_MODE": "disabled",
}
SCENES = Scenes(14, damaged=(5,))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers fit; every run in this module starts its own, so nobody finds another's model."""
    before = dict(os.environ)
    os.environ.update(PATIENT)
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=STORE, log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The run on this machine."""
    folder = tmp_path_factory.mktemp("local") / "run"
    execute(worker(SCENES, batch_size=2), folder)
    return contents(folder)


@on_the_cluster
def test_two_workers_give_the_same_bytes(whole: dict[str, bytes], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    execute(worker(SCENES, batch_size=2), tmp_path, lambda *counts: told.append(counts), RayEngine(workers=2))
    assert contents(tmp_path) == whole
    assert told[0] == (0, 14)
    assert told[-1] == (14, 14)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.slow
@on_the_cluster
def test_one_worker_goes_on_with_a_run_that_began_elsewhere(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in whole.items():
        if name not in ("results.parquet", "parts/part-00001.parquet", "parts/part-00003.parquet"):
            write_file(tmp_path, Path(name), content)
    told: list[tuple[int, int]] = []
    execute(worker(SCENES, batch_size=2), tmp_path, lambda *counts: told.append(counts), RayEngine(workers=1))
    assert contents(tmp_path) == whole
    assert told[0] == (8, 14)


@pytest.mark.slow
@on_the_cluster
def test_a_worker_that_is_killed_in_mid_batch_leaves_no_trace(whole: dict[str, bytes], tmp_path: Path) -> None:
    deadly = Deadly(SCENES, 6, tmp_path / "marker", os.getpid())
    execute(worker(deadly, batch_size=2), tmp_path / "run", engine=RayEngine(workers=2))
    assert deadly.marker is not None
    assert deadly.marker.exists(), "nobody was killed, so this test said nothing"
    assert contents(tmp_path / "run") == whole


@pytest.mark.slow
@on_the_cluster
def test_an_image_that_kills_every_worker_is_told_and_what_is_done_is_kept(tmp_path: Path) -> None:
    deadly = Deadly(Scenes(8), 6, None, os.getpid())
    with pytest.raises(ClusterError, match=r"Workers have died 4 times over images 6 to 7 .*What is done is kept"):
        execute(worker(deadly, batch_size=2), tmp_path, engine=RayEngine(workers=1))
    assert (tmp_path / "parts" / "part-00000.parquet").exists()


@pytest.mark.slow
@on_the_cluster
def test_an_image_on_which_the_reader_raises_is_a_row_with_the_reason(tmp_path: Path) -> None:
    here = execute(worker(Raising(6), batch_size=2), tmp_path / "here")
    there = execute(worker(Raising(6), batch_size=2), tmp_path / "there", engine=RayEngine(workers=2))
    assert contents(here.folder) == contents(there.folder)
    assert list(there.failures()) == ["RuntimeError: the disk of this node is on fire"]
    assert there.failures()["RuntimeError: the disk of this node is on fire"] == (SCENES.key(3),)


@pytest.mark.slow
@on_the_cluster
def test_photos_are_explained_to_the_same_files(tmp_path: Path) -> None:
    for index in range(5):
        scene(2718, index, 1).pil().save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    photos = tuple((f"day/{path.stem}", path) for path in sorted(tmp_path.glob("*.png")))
    job = PhotoJob(tokentm.load_model("shapes"), photos, "top2", Request.parse("gae"), {}, 2)
    for name, engine in (("here", None), ("there", RayEngine(workers=2))):
        batches = list(explain_photos(job, tmp_path / name, engine))
        assert sum(batch.done for batch in batches) == 4
        assert ["2.png" in str(fault) for batch in batches for fault in batch.failures] == [True]
    assert len(contents(tmp_path / "here")) == 4 * 2 * 3
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
@on_the_cluster
def test_paths_start_at_the_command_and_no_worker_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster was begun in another folder; one batch needs one worker, however many may be had."""
    started: list[int] = []
    real = on_ray._Pool.__init__

    def counted(pool: Any, *given: Any) -> None:
        started.append(given[-1])
        real(pool, *given)

    monkeypatch.setattr(on_ray._Pool, "__init__", counted)
    (tmp_path / "photos").mkdir()
    scene(2718, 0, 1).pil().save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    job = PhotoJob(tokentm.load_model("shapes"), (("a", Path("photos/a.png")),), None, Request.parse("gae"), {}, 2)
    (batch,) = explain_photos(job, Path("out"), RayEngine(workers=2))
    assert (batch.done, batch.failures) == (1, ())
    assert started == [1]


@pytest.mark.slow
@on_the_cluster
def test_memory_of_the_store_is_bounded_by_what_is_under_way(tmp_path: Path) -> None:
    """Far more batches than may be under way; what the store holds is the job and a few results."""
    work = worker(Scenes(48), batch_size=1)
    most = 0

    def watch(_: int, __: int) -> None:
        nonlocal most
        total, left = (found.get("object_store_memory", 0) for found in (ray.cluster_resources(), free()))
        most = max(most, int(total - left))

    def free() -> dict[str, float]:
        found: dict[str, float] = ray.available_resources()
        return found

    execute(work, tmp_path, watch, RayEngine(workers=2))
    assert most <= pack(work).nbytes + 32 * 2**20


@on_the_cluster
def test_no_gpu_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"--gpus-per-worker 1 asks for a GPU, and no node .*\(2 CPUs and 0 GPUs"):
        execute(worker(Scenes(2)), tmp_path, engine=RayEngine(gpus_per_worker=1.0))


# --- packing --------------------------------------------------------------------------------------------------------


def test_weights_stand_beside_what_is_pickled_and_come_back_bit_for_bit() -> None:
    model = tokentm.load_model("shapes")
    packed = pack(model)
    weights = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    assert sum(buffer.nbytes for buffer in packed.buffers) >= weights
    assert len(packed.body) < weights / 4
    found = unpack(packed)
    for name, tensor in found.module.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name]), name
    first = next(found.module.parameters())
    assert isinstance(first, nn.Parameter)
    assert any(np.shares_memory(first.detach().numpy(), buffer) for buffer in packed.buffers), "it was copied"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_of_any_type_and_shape(dtype: torch.dtype) -> None:
    tied = torch.arange(6).to(dtype).view(2, 3)
    values = [tied, tied.T, torch.zeros(()).to(dtype), torch.empty(0, 4).to(dtype), tied]
    found = unpack(pack(values))
    for one, other in zip(found, values, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)
    assert found[0] is found[4]


# --- the command ----------------------------------------------------------------------------------------------------


def told(arguments: list[str | Path], folder: Path, **extra: str) -> str:
    done = run_alone(arguments, folder, **extra)
    assert done.code == 2, done.err
    (line,) = [line for line in done.err.splitlines() if line.strip()]
    return line


def unused_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


EVALUATE: list[str | Path] = ["evaluate", "shapes:4", "--limit", "4", "--model", "shapes", "--methods", "center"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--engine", "spark"], "--engine 'spark' is unknown; 'local' and 'ray' work."),
        (["--address", "auto"], "--address auto belongs to --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers 0 computes nothing on Ray"),
        (["--engine", "ray", "--device", "cuda:1"], "on Ray give --gpus-per-worker 1"),
        (["--engine", "ray", "--gpus-per-worker", "1.5"], "neither a share of a GPU"),
        (["--engine", "ray", "--address", "127.0.0.1:PORT"], "No Ray cluster can be used at '127.0.0.1:PORT'"),
        (["--engine", "ray", "--address", "ray://127.0.0.1:PORT"], "Connection refused); start one with"),
        (["--engine", "ray", "--address", "auto"], "No Ray cluster can be used at 'auto'"),
    ],
)
def test_bad_options_are_told_in_one_sentence(options: list[str], says: str, tmp_path: Path) -> None:
    port = str(unused_port())
    # Without it "auto" would find the cluster that other tests have left running.
    address = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    line = told([*EVALUATE, *(option.replace("PORT", port) for option in options)], tmp_path, **address)
    assert says.replace("PORT", port) in line


@pytest.mark.slow
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'ray' else find(name, *rest)\n"
        "from tokentm.cli import main; main()"
    )
    command = [sys.executable, "-c", script, *EVALUATE, "--engine", "ray"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: The engine 'ray' needs ray, which is not installed; "
        "pip install '.[ray]' in a checkout of tokentm brings it.\n"
    )


@pytest.mark.slow
def test_explain_on_a_cluster_of_its_own_prints_what_it_prints_here(tmp_path: Path) -> None:
    classifier = save_classifier(tmp_path / "classifier")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        scene(2718, index, 1).pil().save(tmp_path / "photos" / f"{index}.png")
    command: list[str | Path] = ["explain", "photos", "--model", classifier, "--device", "cpu", "--out"]
    here = run_alone([*command, "here"], tmp_path)
    there = run_alone([*command, "there", "--engine", "ray", "--workers", "1"], tmp_path, **PATIENT)
    assert (here.code, there.code) == (0, 0), there.err
    assert there.err == ""
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    *lines, _ = here.out.splitlines()
    assert there.out.splitlines()[:-1] == [line.replace("here", "there") for line in lines]


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head and a second node, each a raylet of its own with room for one worker."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(PATIENT)
    node = {"num_cpus": 1, "object_store_memory": STORE}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


ON_NODES = ["--model", "shapes", "--device", "cpu", "--methods", "gae,center", "--protocols", "segmentation"]


@pytest.mark.slow
def test_two_nodes_and_one_that_is_lost(two_nodes: Any, tmp_path: Path) -> None:
    command = ["evaluate", "shapes:192", "--limit", "192", *ON_NODES, "--out"]
    assert run_alone([*command, "here", "--workers", "0"], tmp_path).code == 0
    on_ray = [*command, "there", "--engine", "ray", "--address", two_nodes.address]
    with subprocess.Popen(
        [COMMAND, *on_ray], cwd=tmp_path, env=environment(tmp_path.parent, **PATIENT), stderr=subprocess.PIPE
    ) as process:
        wait_for(tmp_path / "there" / "parts", "part-*.parquet", process)
        two_nodes.remove_node(two_nodes.worker_nodes.copy().pop(), allow_graceful=False)
        _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err.decode()
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
def test_the_head_is_started_again_and_the_command_run_again(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    command = ["evaluate", "shapes:192", "--limit", "192", *ON_NODES, "--out"]
    assert run_alone([*command, "here", "--workers", "0"], tmp_path).code == 0
    extra = {**PATIENT, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        with subprocess.Popen(
            [COMMAND, *command, "there", "--engine", "ray", "--address", made.address],
            cwd=tmp_path, env=environment(tmp_path.parent, **extra), stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            wait_for(tmp_path / "there" / "parts", "part-*.parquet", process)
            made.shutdown()
            process.communicate(timeout=600)
        assert process.returncode != 0
        done = list((tmp_path / "there" / "parts").glob("part-*"))
        assert 0 < len(done) < 3
        before = {path: path.stat().st_mtime_ns for path in done}
        made = Cluster(initialize_head=True, head_node_args=head)
        again = run_alone([*command, "there", "--engine", "ray", "--address", made.address], tmp_path, **extra)
    finally:
        made.shutdown()
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in done} == before, "what was done is not done again"
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 600
    while not list(folder.glob(pattern)) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
