import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokentm
from tests.support.command import COMMAND, environment, run_alone, save_classifier, tree
from tests.support.fork_server import run
from tokentm.explanation import Source

WEIGHTS = Path(tokentm.__file__).parent / "models" / "weights" / "shapes" / "model.safetensors"
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def classifier(home: Path) -> Path:
    return save_classifier(home / "classifier")


@pytest.fixture(scope="module")
def model(classifier: Path) -> tokentm.VisionModel:
    return tokentm.load_model(classifier)


@pytest.fixture(scope="module")
def photos(home: Path) -> Path:
    """One photo of each kind that cameras and tools write, 60 × 40 but for the one that is turned."""
    folder = home / "photos"
    folder.mkdir()
    rgb = picture()
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF: turn clockwise to see it upright
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "print.jpeg")
    rgb.quantize(16).save(folder / "palette.gif")
    transparent = rgb.convert("RGBA")
    transparent.putalpha(rgb.getchannel("G"))
    transparent.save(folder / "see through.png")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    return folder


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((60, 40), Image.Resampling.BICUBIC)


def new_folder(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir()
    return folder


def check_results(folder: Path, expected: tokentm.Explanation, *, tolerance: float = 1e-6, full: bool = False) -> None:
    """The files of every row say what ``explain`` says in this process, and there is no other file."""
    pictures = expected.overlay(full=full)
    names = [str(expected.stem(Path(), row)) for row in range(len(expected))]
    assert tree(folder) == {name + suffix for name in names for suffix in (".png", ".npz", ".json")}
    for row, name in enumerate(names):
        with np.load(folder / f"{name}.npz") as arrays:
            found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        assert found.keys() == {"relevance", "logits", "target"}
        scale = float(expected.relevance[row].abs().max())
        torch.testing.assert_close(found["relevance"], expected.relevance[row], rtol=0, atol=tolerance * scale)
        torch.testing.assert_close(found["logits"], expected.logits[row])
        assert int(found["target"]) == int(expected.target[row])
        said = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert_same(said, json.loads(json.dumps(expected.manifest(row))))
        with Image.open(folder / f"{name}.png") as drawn:
            difference = np.asarray(drawn, np.int16) - np.asarray(pictures[row], np.int16)
        assert abs(difference).max() <= 1


def assert_same(found: object, expected: object) -> None:
    """Equal, but for the rounding of numbers."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_every_kind_of_photo_is_explained_as_by_the_library(
    home: Path, classifier: Path, model: tokentm.VisionModel, photos: Path
) -> None:
    folder = new_folder(home, "kinds")
    done = run_alone(["explain", photos, "--model", classifier, "--out", "results/first"], folder)
    assert (done.code, done.err) == (0, "")
    names = ["deep.png", "grey.png", "palette.gif", "print.jpeg", "see through.png", "turned.jpg"]
    expected = tokentm.explain(model, [photos / name for name in names])
    check_results(folder / "results" / "first", expected)
    *lines, summary = done.out.splitlines()
    assert [line.split("→")[1].strip() for line in lines] == [
        str(Path("results/first", name).with_suffix(".png")) for name in names
    ]
    assert all(class_name in line for class_name, line in zip(expected.class_name, lines, strict=True))
    assert summary.startswith("Explained 6 of 6 images in ")
    assert summary.endswith("overlays, numbers and manifests are in results/first.")
    said = json.loads((folder / "results/first/turned.json").read_text(encoding="utf-8"))
    assert said["image"] == "turned.jpg"
    assert said["model"] == classifier.name
    assert said["options"] == asdict(tokentm.TokenTMConfig())
    assert said["seen_box"] == [0, 10, 40, 50]  # of the photo as it is looked at: 40 wide, 60 high


def test_photos_that_cannot_be_read_do_not_stop_the_others(
    home: Path, classifier: Path, model: tokentm.VisionModel
) -> None:
    folder = new_folder(home, "mixed")
    named = {
        "top": "top.png",
        "v1.0/a_jpg": "v1.0/a.jpg",
        "v1.0/a_png": "v1.0/a.png",
        "v1.0/day/a": "v1.0/day/a.png",
        "v1.0/[b]": "v1.0/[b].png",
    }
    album = folder / "album"
    for place in ("v1.0/day", "results"):
        (album / place).mkdir(parents=True)
    for seed, file in enumerate(named.values()):
        picture(seed).save(album / file)
    picture().save(album / "results" / "earlier.png")  # where results go, no photos are looked for
    whole = (album / "v1.0" / "a.jpg").read_bytes()
    (album / "v1.0" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (album / "v1.0" / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 120_000)).save(album / "strip.png")  # it opens, but is no input for any model
    done = run(["explain", "album", "--model", classifier, "-o", "album/results", "--batch-size", "3"], folder)
    assert done.code == 1
    assert "Explained 5 of 8 images" in done.out
    told = done.err.splitlines()
    assert sorted(line.split()[2].rstrip(":") for line in told) == [
        f"album/{name}" for name in ("strip.png", "v1.0/cut.jpg", "v1.0/text.jpg")
    ]
    assert all(line.startswith("Not explained: ") and line.endswith(".") for line in told)
    (album / "results" / "earlier.png").unlink()
    expected = tokentm.explain(model, [Source.read(album / file, name) for name, file in named.items()])
    check_results(album / "results", expected, tolerance=1e-5)  # batches differ


def test_target_by_name_with_an_option_of_the_method_on_the_whole_photo(
    home: Path, classifier: Path, model: tokentm.VisionModel, photos: Path
) -> None:
    folder = new_folder(home, "name")
    photo = photos / "turned.jpg"
    options = ["--target", "Gold Finch", "--set", "direction=scaled", "--set", "ffn=no", "--full"]
    done = run(["explain", photo, "--model", classifier, *options], folder)
    assert (done.code, done.err) == (0, "")
    scaled = tokentm.explain(model, photo, 1, options=tokentm.TokenTMConfig(direction="scaled", ffn=False))
    check_results(folder / "out", scaled, full=True)
    published = tokentm.explain(model, photo, 1)
    assert (scaled.relevance - published.relevance).abs().max() > 1e-3 * published.relevance.abs().max()
    with Image.open(folder / "out" / "turned.png") as drawn:
        assert drawn.height > drawn.width


def test_top_three_by_another_method_and_rule_of_photos_from_several_places_each_once(
    home: Path, classifier: Path, model: tokentm.VisionModel
) -> None:
    folder = new_folder(home, "top")
    named = {"day/a": "day/a.png", "night/a": "night/a.png", "b": "b.png", "b-2": "elsewhere/b.png"}
    for seed, file in enumerate(named.values()):
        (folder / file).parent.mkdir(exist_ok=True)
        picture(seed).save(folder / file)
    places = ["day", "night", "b.png", "elsewhere/b.png", "day/a.png"]
    done = run(["explain", *places, "--model", classifier, "--top", "3", "--method", "gae/libra"], folder)
    assert (done.code, done.err) == (0, "")
    sources = [Source.read(folder / file, name) for name, file in named.items()]
    expected = tokentm.explain(model, sources, "top3", "gae/libra")
    assert str(expected.stem(Path(), 0)).startswith("day/a-1-")
    check_results(folder / "out", expected)
    assert len(done.out.splitlines()) == 13


def test_a_method_blind_to_the_class_says_so_in_any_locale_and_file_names_need_not_be_text(
    home: Path, classifier: Path, model: tokentm.VisionModel, photos: Path
) -> None:
    folder = new_folder(home, "locale")
    photo = folder / os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(photos / "grey.png", photo)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    arguments = ["explain", photo.name, "--model", classifier, "--method", "rollout", "--target", "2"]
    done = run_alone([os.fsencode(argument) for argument in arguments], folder, **ASCII_ONLY)
    assert done.code == 0
    assert done.err == "Note: rollout does not depend on the class, so its map is the same for every target.\n"
    assert "gro?e Eule" in done.out
    assert "Explained 1 of 1 image in" in done.out
    check_results(folder / "out", tokentm.explain(model, photo, 2, "rollout"))


def test_interrupted_by_ctrl_c_only_whole_files_are_left(home: Path, classifier: Path) -> None:
    folder = new_folder(home, "interrupted")
    (folder / "photos").mkdir()
    for count in range(300):
        picture().save(folder / "photos" / f"{count}.png")
    arguments = ["explain", "photos", "--model", classifier, "--batch-size", "1"]
    with subprocess.Popen(
        [COMMAND, *arguments],
        cwd=folder,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and so would this command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        give_up = time.monotonic() + 100
        while not list(folder.glob("out/*.json")) and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode() == "Interrupted; results that were complete are kept.\n"
    files = sorted((folder / "out").iterdir())
    assert 3 <= len(files) < 900
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as drawn:
                drawn.load()
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                assert arrays["relevance"].shape == (4, 4)
        else:
            assert file.suffix == ".json"
            assert json.loads(file.read_text(encoding="utf-8"))["method"] == "tokentm"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], f"tokentm {tokentm.__version__}\n"),
        (["--help"], "explain"),
        (["explain", "-h"], "--batch-size"),
    ],
)
def test_help_and_version_come_at_once(home: Path, arguments: list[str], says: str) -> None:
    """Without importing torch; also in an ASCII-only locale."""
    program = (
        "import resource, sys; from tokentm.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(home, **ASCII_ONLY),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert says in done.stdout
    imported, seconds = done.stderr.split()
    assert imported == "False"
    assert float(seconds) < 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("explain", ["[as its weights are]", "[as many as fit]"]),
        (
            "evaluate",
            [
                "[perturbation, or the preset's]",
                "[as many as fit]",
                "[default: tokentm, gae, rollout, raw_attention, gradcam, random, center]",
            ],
        ),
        ("report", ["[the run; report for several]"]),
    ],
)
def test_defaults_in_brackets_are_no_markup(home: Path, name: str, says: list[str]) -> None:
    shown = run_alone([name, "--help"], home, COLUMNS="400").out
    assert [words for words in says if words not in shown] == []


def test_bash_completes_commands_and_options(home: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program = """
        eval "$(_TOKENTM_COMPLETE=source_bash tokentm)"
        COMP_WORDS=(tokentm exp) COMP_CWORD=1; _tokentm_completion tokentm; echo "${COMPREPLY[@]}"
        COMP_WORDS=(tokentm explain --batch) COMP_CWORD=2; _tokentm_completion tokentm; echo "${COMPREPLY[@]}"
    """
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", program], env=environment(home, PATH=path), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("explain\n--batch-size\n", "")


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the weights of the bundled model are not trained yet")
def test_demo_writes_one_picture_and_tells_in_four_lines_what_it_shows(home: Path) -> None:
    folder = new_folder(home, "demo")
    done = run_alone(["demo"], folder)
    assert (done.code, done.err) == (0, "")
    assert tree(folder) == {"tokentm-demo.png"}
    *lines, path = done.out.splitlines()
    assert len(lines) == 4
    assert path == "Picture: tokentm-demo.png"
    with Image.open(folder / "tokentm-demo.png") as picture_of_all:
        picture_of_all.load()
        assert min(picture_of_all.size) > 300
