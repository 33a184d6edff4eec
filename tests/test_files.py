import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nobody import as_nobody
from tokentm.errors import ImageError, OutputError
from tokentm.files import safe_stem, writable_folder, write_atomically

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and devices")


def test_the_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    with write_atomically(path, fsync=True) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("old")

    def write() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@posix_only
def test_a_new_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with write_atomically(tmp_path / "map.txt") as temporary:
            temporary.write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "map.txt").stat().st_mode) == 0o644


@posix_only
def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.txt", tmp_path / "b.txt"
    real.write_text("old")
    link.symlink_to(real)
    with write_atomically(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_missing_folder_is_named_before_the_block_runs(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"map\.txt cannot be written .*; create the folder .*missing first\.$"),
        write_atomically(tmp_path / "missing" / "map.txt"),
    ):
        pytest.fail("the block must not run")


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        write_atomically(tmp_path / "file" / "map.txt"),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("path", [Path("/"), Path(os.devnull), Path()])
@posix_only
def test_folders_and_devices_are_never_replaced(path: Path) -> None:
    before = path.stat().st_mode
    with pytest.raises(OutputError, match="is a folder or a device"), write_atomically(path):
        pytest.fail("the block must not run")
    assert path.stat().st_mode == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_sentence_and_cleaned_up(tmp_path: Path) -> None:
    def write() -> None:
        with write_atomically(tmp_path / "map.txt") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("does not fit")

    with pytest.raises(OutputError, match=r"map\.txt cannot be written \(No space left") as caught:
        write()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    words = r"\(Permission denied\); choose a folder in which you may create files"
    with as_nobody(), pytest.raises(OutputError, match=words), write_atomically(Path("/map.txt")):
        pytest.fail("the block must not run")
    with as_nobody(), pytest.raises(OutputError, match=words):
        writable_folder(Path("/tokentm-out"))
    tmp_path.chmod(0o500)
    with as_nobody(), pytest.raises(OutputError, match=words):
        writable_folder(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_faults_of_the_block_that_are_not_about_the_file_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input"), write_atomically(tmp_path / "map.txt"):
        (tmp_path / "input").read_text()
    with pytest.raises(ImageError, match="a sentence"), write_atomically(tmp_path / "map.txt"):
        raise ImageError("a sentence")
    with pytest.raises(OutputError, match=r"^a sentence$"), write_atomically(tmp_path / "map.txt"):
        raise OutputError("a sentence")
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("old")
    code = (
        "import os, pathlib, tokentm.files as f\n"
        f"with f.write_atomically(pathlib.Path({str(path)!r})) as t:\n"
        "    t.write_text('half'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.read_text() == "old"


def test_an_output_folder_is_created_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder) == folder
    assert writable_folder(folder) == folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_the_output_folder_is_told(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used as an output folder"):
        writable_folder(tmp_path / "file" / below)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_file_system_that_takes_no_files_is_told() -> None:
    with pytest.raises(OutputError, match="cannot be used as an output folder"):
        writable_folder(Path("/proc/self"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("great white shark, white shark", "great-white-shark-white-shark"),
        ("n01484850_Great/../White.JPEG", "n01484850-great-white-jpeg"),
        ("  Crème brûlée (groß)  ", "creme-brulee-gross"),
        ("CON", "con-"),
        ("x" * 59 + " yz", "x" * 59),
        ("鯊魚", "name-fcc6f2a8"),
        ("", "name-e3b0c442"),
    ],
)
def test_names_become_portable(name: str, stem: str) -> None:
    assert safe_stem(name) == stem


@given(st.text(st.characters()))
def test_every_name_becomes_portable(name: str) -> None:
    stem = safe_stem(name)
    assert 1 <= len(stem) <= 60
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert safe_stem(stem) == stem
