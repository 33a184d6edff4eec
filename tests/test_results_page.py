"""The page of results: new tables for the runs that are at hand, the old ones for all others, commands to be read."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tokentm
from tests.support.scenes import Scenes
from tokentm.evaluate.results import Results

BASH = shutil.which("bash") or ""
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import results

        yield results
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("measured") / "run"
    methods = ["gae", "rollout", "center"]
    return tokentm.evaluate("shapes", "shapes:8", methods, ["segmentation"], explained="target", out=folder)


def old(title: str) -> str:
    return f"## {title}\n\nWhat was found   before.\n\n```bash\n# as typed\n```\n\n| a |\n|---|\n| **1** ± 2 |\n"


def before(script: Any) -> str:
    titles = [table.title for table in script.TABLES.values() if not table.joins]
    return "\n".join(["# Results\n\nAn older introduction.\n", *map(old, [*titles, "A table that is no more"])])


def sections_of(page: str) -> dict[str, str]:
    found = page.split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part}".rstrip("\n") + "\n" for part in found}


def test_tables_without_a_run_stay_as_they_stand(script: Any, tmp_path: Path) -> None:
    page = script.page(tmp_path, before(script))
    titles = [table.title for table in script.TABLES.values() if not table.joins]
    assert page == "\n".join([script._INTRODUCTION, *map(old, titles)])
    assert script.page(tmp_path, page) == page
    assert script.page(tmp_path, "") == script._INTRODUCTION


def test_the_table_of_a_run_is_written_anew_and_only_that(script: Any, measured: Results, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "shapes")
    found = sections_of(script.page(tmp_path, before(script)))
    titles = [table.title for table in script.TABLES.values() if not table.joins]
    assert list(found) == titles
    assert all(found[title] == old(title) for title in titles[1:])
    new = found[titles[0]]
    assert script.TABLES["shapes"].text in new
    assert "10 objects in 8 photos, " in new
    assert "95 %: " in new
    assert "10 objects in 8 photos)" in new, "photos are drawn for verdicts too"
    rows = [line for line in new.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gae", "rollout", "center"]
    assert "**" in rows[0] + rows[1]
    assert "**" not in rows[2]


def test_a_joined_table_of_which_a_run_is_missing_stays(script: Any, measured: Results, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "cifar10")
    title = script.TABLES["cifar10"].title
    assert sections_of(script.page(tmp_path, before(script)))[title] == old(title)
    shutil.copytree(measured.folder, tmp_path / "cifar10-thousands")
    new = sections_of(script.page(tmp_path, before(script)))[title]
    assert new.count("tokentm evaluate ") == 2
    assert "| `gae` |" in new


def test_runs_that_cannot_be_joined_are_told(script: Any, measured: Results, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "cifar10")
    tokentm.evaluate("shapes", Scenes(2), ["gae"], ["segmentation"], out=tmp_path / "cifar10-thousands")
    with pytest.raises(SystemExit, match="cifar10 and cifar10-thousands differ in more than their methods"):
        script.page(tmp_path, "")


@pytest.mark.skipif(not BASH, reason="no bash is installed")
def test_commands_can_be_read_and_a_shell_reads_the_same_words(script: Any) -> None:
    for table in script.TABLES.values():
        words = table.command("KIT", "KIT/cifar10_jpeg.tar.xz")
        text = script.broken(words)
        assert max(map(len, text.splitlines())) <= 120
        shell = subprocess.run([BASH, "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
        assert shell.stdout.splitlines() == words
    assert script.broken(["tokentm", "evaluate", "photos", "--limit", "3"]) == "tokentm evaluate photos --limit 3"
