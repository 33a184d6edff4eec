"""``tokentm evaluate`` and ``tokentm report`` as processes: what they print, write and refuse."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tokentm
from tests.support.command import COMMAND, Done, environment, run_alone, tree
from tests.support.fork_server import run
from tokentm.datasets.shapes import CLASS_NAMES, scene
from tokentm.evaluate.results import Results
from tokentm.report.evaluation import write_report
from tokentm.report.evaluation.findings import find
from tokentm.report.evaluation.tables import best_of, columns_of, text_of

CHEAP = ["--model", "shapes", "--device", "cpu", "--workers", "0", "--methods", "gae,center"]
SEGMENT = [*CHEAP, "--protocols", "segmentation"]


def told(done: Done) -> str:
    """The one line of an error."""
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    return lines[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with a scene each, and one file that is no image."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for index in range(6):
        drawn = scene(2718, index, 1)
        folder = root / CLASS_NAMES[drawn.labels[0]]
        folder.mkdir(parents=True, exist_ok=True)
        drawn.pil().save(folder / f"{index}.png")
    broken = next(root.iterdir()) / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    for name in CLASS_NAMES:
        (root / name).mkdir(exist_ok=True)
    return root


def test_a_run_in_another_precision_is_another_run(tmp_path: Path) -> None:
    command = ["evaluate", "shapes:4", "--limit", "4", *SEGMENT, "--out", "run"]
    assert run([*command, "--precision", "bfloat16"], tmp_path).code == 0
    assert "holds another run" in told(run(command, tmp_path))


def test_a_folder_of_photos_with_a_broken_one(photos: Path, tmp_path: Path) -> None:
    command = ["evaluate", photos, *CHEAP, "--protocols", "saco", "--only-correct", "--against", "published"]
    done = run([*command, "--out", "run"], tmp_path)
    assert done.code == 0, done.err
    assert "1 of 7 images have failures" in done.err
    assert "saco" in done.out
    assert "center" in done.out
    assert {"manifest.json", "report.html", "results.parquet", "summary.csv", "table.tex"} <= tree(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "broken.png" in page
    assert "0.456" in page, "the published figure of GAE"
    assert str(tmp_path) not in page, "where it lay is nobody's business"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["images"] == 7
    again = run(["evaluate", photos, *CHEAP, "--protocols", "saco", "--seed", "5", "--out", "run"], tmp_path)
    assert "there → here: seed 0 → 5" in told(again)


def test_runs_are_merged_into_one_report(tmp_path: Path) -> None:
    for name in ("gae", "center"):
        results = tokentm.evaluate("shapes", "shapes:3", [name], ["segmentation"], out=tmp_path / name)
        write_report([results], tmp_path / name)
    done = run(["report", "gae", "center", "--out", "both"], tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.count("<section>") == 1, "same model and images: one table"
    lines = (tmp_path / "both" / "summary.csv").read_text().splitlines()[1:]
    apart = [
        line for name in ("gae", "center") for line in (tmp_path / name / "summary.csv").read_text().splitlines()[1:]
    ]
    assert sorted(lines) == sorted(apart)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("finished") / "run"
    methods = ["gae", "rollout", "center"]
    return tokentm.evaluate("shapes", "shapes:8", methods, ["segmentation", "saco"], explained="both", out=folder)


def tables_of(text: str) -> dict[str, list[str]]:
    """Lines of each table of the terminal, and of what stands beneath it, by its heading."""
    blocks = [block.splitlines() for block in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).split("\n\n")]
    return {block[0]: block[1:] for block in blocks if " is the best" in block[0]}


def test_a_pipe_gets_aligned_tables_with_intervals_and_the_verdicts(finished: Results) -> None:
    done = run(["report", finished.folder], finished.folder.parent)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("Report: ")
    tables = tables_of(done.out)
    about = "10 objects in 8 photos; * is the best; in brackets 95 % intervals"
    assert list(tables) == [
        f"{protocol}, {kind} class: {about}"
        for protocol in ("segmentation", "saco")
        for kind in ("predicted", "target")
    ]
    findings = find([finished])[0]
    for (heading, figures), shown in zip(findings.protocols(findings.tables[0][1]), tables.values(), strict=True):
        best = {head: best_of(column) for head, column in columns_of(figures).items()}
        for at, method in enumerate(("gae", "rollout", "center")):
            expected = [method]
            for head, column in list(columns_of(figures).items())[:6]:
                value, interval = text_of(column[at])
                expected += [value + "*" * (method in best[head]), *f"({interval})".split()]
            assert shown[1 + at].split() == expected, heading
        assert shown[4:] == dict(findings.verdicts)[heading]
        ends = [[at for at, letter in enumerate(row) if letter == ")"] for row in shown[1:4]]
        assert ends[0] == ends[1] == ends[2], "figures stand in line"


def test_a_narrow_terminal_is_spared_the_intervals(finished: Results) -> None:
    done = run_alone(
        ["report", finished.folder, "--only-correct"], finished.folder.parent, FORCE_COLOR="1", COLUMNS="90"
    )
    assert done.code == 0, done.err
    tables = tables_of(done.out)
    assert all("correctly classified only: " in heading for heading in tables)
    wide, slim = (
        next(lines for heading, lines in tables.items() if heading.startswith(f"{protocol}, predicted class"))
        for protocol in ("segmentation", "saco")
    )
    rows = [line.split() for line in wide if re.match(r"(gae|rollout|center) +[0-9]", line)]
    assert [row[0] for row in rows] == ["gae", "rollout", "center"]
    assert all(re.fullmatch(r"[0-9.]+\*?", cell) for row in rows for cell in row[1:])
    assert {len(row) for row in rows} == {7}
    assert slim[1].split()[2].startswith("("), "a table with room keeps them"


REFUSED = {
    "no such folder": (["nowhere"], "nowhere"),
    "unknown kind": (["imagnet:x"], "imagnet"),
    "unknown method": (["shapes:2", "--methods", "gea"], "gea"),
    "no method": (["shapes:2", "--methods", ","], "--methods"),
    "unknown protocol": (["shapes:2", "--protocols", "segmentaton"], "segmentaton"),
    "unknown preset": (["shapes:2", "--preset", "chefer"], "chefer"),
    "unknown class": (["shapes:2", "--explain", "all"], "all"),
    "unknown comparison": (["shapes:2", "--against", "mine"], "mine"),
    "limit": (["shapes:2", "--limit", "0"], "0"),
}


# Many commands in one process, as each would take seconds to start; without the shape checks of the test run, which do
# not know typer's contexts.
_MANY = """
import contextlib, io, json, sys
from tokentm.cli._app import run
done = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tokentm", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run()
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def run_many(commands: list[list[str]], folder: Path) -> list[Done]:
    done = subprocess.run(
        [sys.executable, "-c", _MANY, json.dumps(commands)], cwd=folder, env=environment(folder.parent),
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return [Done(*entry) for entry in json.loads(done.stdout)]


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    cheap = {True: CHEAP[:6], False: CHEAP}
    commands = [["evaluate", *given, *cheap["--methods" in given]] for given, _ in REFUSED.values()]
    done = run_many([*commands, ["report", "void"]], tmp_path)
    for (_, named), found in zip([*REFUSED.values(), ([], "holds no run")], done, strict=True):
        assert named in told(found)
    assert tree(tmp_path) == set(), "nothing is left behind"


def test_an_empty_folder_and_one_that_does_not_fit(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine" / "zebra").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "mine" / "zebra" / "1.png")
    empty, unmasked, foreign = run_many(
        [
            ["evaluate", "empty", *SEGMENT],
            ["evaluate", str(photos), *SEGMENT],
            ["evaluate", "mine", *CHEAP, "--protocols", "perturbation"],
        ],
        tmp_path,
    )
    assert "empty" in told(empty)
    assert "needs masks" in told(unmasked)
    assert "zebra" in told(foreign)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    def at_most_a_little() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    process = subprocess.run(
        [COMMAND, "evaluate", "shapes:2", *SEGMENT, "--out", "run"], cwd=tmp_path, env=environment(tmp_path.parent),
        capture_output=True, text=True, check=False, preexec_fn=at_most_a_little, timeout=600,
    )  # fmt: skip
    assert "cannot be written" in told(Done(process.returncode, process.stdout, process.stderr))
    assert run(["evaluate", "shapes:2", *SEGMENT, "--out", "run"], tmp_path).code == 0


@pytest.mark.slow
def test_control_c_says_how_to_go_on_and_a_second_process_is_refused(tmp_path: Path) -> None:
    command = ["evaluate", "shapes:200", "--model", "shapes", "--device", "cpu", "--methods", "gae", "--out", "run"]
    process = subprocess.Popen(
        [COMMAND, *command], cwd=tmp_path, env=environment(tmp_path.parent), stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None and not (tmp_path / "run" / "manifest.json").exists():
            time.sleep(0.05)
        assert "Another process" in told(run(command, tmp_path))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_the_lists_name_everything(tmp_path: Path) -> None:
    protocols, datasets = run_many([["protocols"], ["datasets"]], tmp_path)
    for name in ("perturbation", "segmentation", "saco", "chefer-2021"):
        assert name in protocols.out
    for name in ("shapes", "imagenet", "folder"):
        assert name in datasets.out
