"""The parts of the command line that need no process: options from text, names of results, the output folder."""

import re
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

import tokentm
from tokentm.cli._app import app, command
from tokentm.cli._options import fraction, options_of_each, parse_options, whole_number
from tokentm.cli._places import find_photos, output_folder
from tokentm.errors import ImageError, InputError, OutputError
from tokentm.methods.beyond_intuition import BeyondIntuitionConfig
from tokentm.methods.rise import RiseConfig
from tokentm.methods.rollout import RolloutConfig


def test_options_of_a_method_from_text() -> None:
    found = parse_options(tokentm.METHODS["tokentm"], ["direction=scaled", "ffn=no", "length=TRUE", "init=0"])
    assert found == tokentm.TokenTMConfig(direction="scaled", ffn=False, init=False)
    assert parse_options(tokentm.METHODS["rollout"], ["start_block=1"]) == RolloutConfig(start_block=1)
    assert parse_options(tokentm.METHODS["tokentm"], []) == tokentm.TokenTMConfig()
    for text, start in (("2", 2), ("none", None)):
        found = parse_options(tokentm.METHODS["beyond_intuition_h"], [f"start_block={text}"])
        assert found == BeyondIntuitionConfig(start_block=start)


@pytest.mark.parametrize(
    ("method", "pair", "says"),
    [
        ("tokentm", "ffn", r"--set 'ffn' has no '='; write NAME=VALUE"),
        ("tokentm", "ffm=no", r"has no option 'ffm'; it has: length, .*Did you mean 'ffn'"),
        ("raw_attention", "ffn=no", r"'raw_attention' has no option 'ffn'; it has: none\.$"),
        ("tokentm", "ffn=maybe", r"ffn='maybe' is no truth value; true and false work"),
        ("tokentm", "score=", r"score='' is unknown; 'logit', 'probability' work"),
        ("rollout", "start_block=1.5", r"start_block='1.5' is not a whole number"),
        ("rollout", "start_block=-1", r"start_block=-1 is negative"),
    ],
)
def test_bad_options_of_a_method(method: str, pair: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_options(tokentm.METHODS[method], [pair])


def test_a_device_without_memory_is_no_bug(capfd: pytest.CaptureFixture[str]) -> None:
    def hungry(*, debug: bool = False) -> None:  # noqa: ARG001  (every command has it)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    told = command("hungry")(hungry)
    app.registered_commands.pop()
    with pytest.raises(typer.Exit) as end:
        told()
    assert end.value.exit_code == 2
    assert capfd.readouterr().err == "Error: The device has too little memory left; try a smaller batch, or the CPU.\n"


def test_numbers_from_text_and_from_defaults() -> None:
    assert [whole_number(1)("12"), whole_number(1)(8), whole_number(0, 3)("3")] == [12, 8, 3]
    assert [fraction("0"), fraction("1e-1"), fraction(0.85)] == [0, 0.1, 0.85]


@pytest.mark.parametrize("text", ["", "few", "1.5", "0", "-3", "10"])
def test_bad_whole_numbers(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"'{text}' is not a whole number from 1 to 9"):
        whole_number(1, 9)(text)


@pytest.mark.parametrize("text", ["", "half", "-0.1", "1.01", "nan", "inf"])
def test_bad_fractions(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"'{text}' is not a number from 0 to 1"):
        fraction(text)


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photos in two folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("day/a.png", "day/a.jpg", "day/v1.0/A.PNG", "night/a.png", "b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    return tmp_path


def names(*given: str, results: str = "out") -> dict[str, str]:
    found = find_photos([Path(place) for place in given], Path(results))
    return {name: path.as_posix() for name, path in found.items()}


@pytest.mark.usefixtures("album")
def test_results_are_named_after_the_path_below_the_folder_given() -> None:
    assert names("day") == {"a_jpg": "day/a.jpg", "a_png": "day/a.png", "v1.0/A": "day/v1.0/A.PNG"}
    assert names("day/") == names("day")
    assert names("night") == {"a": "night/a.png"}
    assert set(names(".")) == {"b", "day/a_jpg", "day/a_png", "day/v1.0/A", "night/a"}


@pytest.mark.usefixtures("album")
def test_of_several_folders_each_names_its_results() -> None:
    assert names("night", "day/v1.0", "b.png") == {
        "night/a": "night/a.png",
        "v1.0/A": "day/v1.0/A.PNG",
        "b": "b.png",
    }


@pytest.mark.usefixtures("album")
def test_no_two_results_get_the_same_name_where_case_does_not_count() -> None:
    assert names("day/a.jpg", "day/a.png", "night/a.png", "day/v1.0/A.PNG") == {
        "a_jpg": "day/a.jpg",
        "a": "day/a.png",
        "a-2": "night/a.png",
        "A-3": "day/v1.0/A.PNG",
    }


def test_a_photo_is_taken_once_however_often_it_is_given(album: Path) -> None:
    (album / "link.png").symlink_to(album / "b.png")
    assert names("b.png", "./b.png", str(album / "b.png"), "link.png") == {"b": "b.png"}


@pytest.mark.usefixtures("album")
def test_results_are_not_taken_for_photos() -> None:
    assert set(names(".", results="day")) == {"b", "night/a"}
    assert set(names("day", results="day/v1.0")) == {"a_jpg", "a_png"}
    Path("day/v1.0/deep").mkdir()
    Path("day/v1.0/A.PNG").rename("day/v1.0/deep/A.png")
    with pytest.raises(ImageError, match=r"^day/v1\.0 holds no images beside the results in day/v1\.0/deep;"):
        names("day/v1.0", results="day/v1.0/deep")


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize(
    ("given", "results", "says"),
    [
        ("night", "night", "Results would lie among the photos in 'night'"),
        ("day", "night/../day", "Results would lie among the photos in 'day'"),
        ("b.png", ".", "The result of b.png would replace b.png, which is no earlier result"),
        ("day/a.jpg", "day", "The result of day/a.jpg would replace day/a.png, which is no earlier result"),
    ],
)
def test_results_never_replace_photos(given: str, results: str, says: str) -> None:
    with pytest.raises(InputError, match=f"{says}; give another --out"):
        names(given, results=results)


@pytest.mark.usefixtures("album")
def test_results_may_lie_beside_photos_and_replace_earlier_results() -> None:
    assert names("night", results="night/..") == {"a": "night/a.png"}
    assert names("day/v1.0", results="day/v1.0/out") == {"A": "day/v1.0/A.PNG"}
    Path("day/a.npz").touch()
    assert names("day/a.jpg", results="day") == {"a": "day/a.jpg"}


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("name", ["absent.png", "b.png/a.png", "x" * 300, "absent/"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(ImageError, match=f"There is no file {name.rstrip('/')}; give images or folders"):
        names("day", name)


def test_an_output_folder_is_made_at_once_and_goes_again_if_nothing_is_put_in(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with output_folder(tmp_path / "old" / "new" / "deep"):
        assert (tmp_path / "old" / "new" / "deep").is_dir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    with output_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_an_output_folder_with_results_stays_even_after_an_interrupt(tmp_path: Path) -> None:
    def interrupted() -> None:
        with output_folder(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "map.png").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a" / "b" / "map.png").is_file()


@pytest.mark.parametrize("part", ["x" * 300, "file/below"])
def test_an_output_folder_that_cannot_be_made_leaves_no_parents(tmp_path: Path, part: str) -> None:
    photo = tmp_path / "photo.png"
    photo.touch()
    (tmp_path / "file").touch()
    assert names(str(photo), results=str(tmp_path / part)) == {"photo": str(photo)}
    given = tmp_path / part if part.startswith("file") else tmp_path / "new" / part
    with pytest.raises(OutputError, match="cannot be used as an output folder"), output_folder(given):
        pass
    assert set(tmp_path.iterdir()) == {tmp_path / "file", photo}


@pytest.mark.usefixtures("album")
def test_results_that_are_not_named_after_photos() -> None:
    photo = Path("day/a.jpg")
    assert find_photos([photo], Path("day"), ("compare",)) == {"a": photo}  # a.png is not what is written
    Image.new("RGB", (2, 2)).save("day/compare.png")
    with pytest.raises(InputError, match=r"The result would replace day/compare\.png"):
        find_photos([photo], Path("day"), ("compare",))
    Path("day/compare.npz").touch()
    assert find_photos([photo], Path("day"), ("compare",)) == {"a": photo}


def test_set_finds_the_method_of_each_option_and_of_every_rule() -> None:
    found = options_of_each(["rise", "tokentm", "tokentm/libra", "gae"], ["rise.masks=10", "tokentm.ffn=no"])
    assert found == {
        "rise": RiseConfig(masks=10),
        "tokentm": tokentm.TokenTMConfig(ffn=False),
        "tokentm/libra": tokentm.TokenTMConfig(ffn=False),
        "gae": None,
    }
    assert options_of_each(["tokentm", "tokentm/libra"], ["tokentm/libra.ffn=no"])["tokentm"] is None


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("masks=10", "--set 'masks=10' names no option of a method; write METHOD.NAME=VALUE."),
        ("rise.masks", "--set 'rise.masks' names no option of a method; write METHOD.NAME=VALUE."),
        ("tis.masks=10", "--set 'tis.masks=10' is for a method that --methods does not name; it names rise, gae."),
        ("gae.masks=10", "Method 'gae' has no option 'masks'; it has: none."),
    ],
)
def test_set_says_which_method_it_cannot_find(pair: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        options_of_each(["rise", "gae"], [pair])
