"""Bad input, typed into the real command: exit code 2, one sentence that names it, nothing left behind."""

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import run_alone, save_classifier, save_timm_folder, tree
from tests.support.fork_server import run


@dataclass(frozen=True)
class Case:
    """What is typed behind ``tokentm``, and what the answer must hold."""

    typed: tuple[str, ...]
    says: tuple[str, ...]


def explain(*typed: str, says: tuple[str, ...], photo: str = "../good.png", model: str = "../classifier") -> Case:
    return Case(("explain", photo, "--model", model, *typed), says)


CASES = {
    "missing file": explain(photo="../absent.jpg", says=("no file ../absent.jpg",)),
    "text named jpg": explain(photo="../text.jpg", says=("../text.jpg", "expected JPEG")),
    "truncated JPEG": explain(photo="../cut.jpg", says=("../cut.jpg", "damaged or incomplete")),
    "empty file": explain(photo="../empty.png", says=("../empty.png", "0 bytes")),
    "decompression bomb": explain(photo="../bomb.png", says=("../bomb.png", "pixels")),
    "folder without images": explain(photo="../barren", says=("../barren holds no images",)),
    "output below a file": explain("--out", "../good.png/new/deep", says=("'../good.png/new/deep'", "output folder")),
    "target out of range": explain("--target", "5", says=("Target 5", "0 to 4")),
    "target unknown": explain("--target", "tigercat", "--out", "a/b", says=("'tigercat'", "mean 'tiger cat'?")),
    "target of another model": explain("--target", "zebra", says=("'zebra'", "models --classes MODEL", "robin, gold")),
    "targets with commas": explain("--target", "robin,tabby", says=("'robin,tabby'", "write 'robin; tabby'")),
    "an option twice": explain("--model", "shapes", says=("--model", "2 times", "tokentm explain --help")),
    "known architecture of another kind": explain(model="resnet10t", says=("ResNet", "convolutional")),
    "target and top": explain("--target", "robin", "--top", "2", says=("--target and --top",)),
    "convolutional network": explain(model="../cnn", says=("ResNet", "convolutional", "timm ViT")),
    "Swin": explain(model="../swin", says=("SwinTransformer", "windowed", "timm ViT")),
    "hub unreachable": explain(
        model="vit_tiny_patch16_224", says=("'vit_tiny_patch16_224'", "local folder", "--model shapes")
    ),
    "unknown model": explain(model="vit_base_patch61_224", says=("'vit_base_patch61_224'", "'vit_base_patch16_224'")),
    "folder that is not there": explain(model="../[/classifer]", says=("'../[/classifer]'",)),
    "unknown method": explain("--method", "gea", says=("'gea'", "mean 'gae'")),
    "bad choice": explain("--set", "direction=up", says=("direction='up'", "'softmax', 'scaled', 'none'")),
    "unknown colour map": explain("--cmap", "vridis", says=("'vridis'", "'viridis'")),
    "unusable device": explain("--device", "meta", says=("'meta'", "'cpu'")),
    "opacity above 1": explain("--opacity", "2", says=("--opacity", "'2'", "0 to 1", "tokentm explain --help")),
    "batch of nothing": explain("--batch-size", "few", says=("--batch-size", "'few'", "1 or more")),
    "unknown precision": explain("--precision", "half", says=("--precision", "'half'", "bfloat16")),
    "unknown option": explain("--modle", "vit", says=("--modle", "--model", "tokentm explain --help")),
    "no photo": Case(("explain",), ("PHOTO", "tokentm explain --help")),
    "unknown command": Case(("expain", "a.jpg"), ("'expain'", "mean 'explain'?")),
    "demo seed": Case(("demo", "--seed", "-1"), ("--seed", "'-1'", "0 to 4294967295")),
    "demo below a file": Case(("demo", "--out", "../good.png/new.png"), ("good.png", "output folder")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the cases name."""
    place = tmp_path_factory.mktemp("cli-errors")
    save_classifier(place / "classifier")
    save_timm_folder(place / "cnn", "resnet10t", 3)
    save_timm_folder(
        place / "swin",
        "swin_tiny_patch4_window7_224",
        3,
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(1, 1),
    )
    good = Image.linear_gradient("L").resize((60, 40))
    good.save(place / "good.png")
    good.save(place / "cut.jpg")
    content = (place / "cut.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(content[:-20])
    (place / "text.jpg").write_text("no picture")
    (place / "empty.png").touch()
    (place / "bomb.png").write_bytes(png_of_one_colour(30_000))
    (place / "barren").mkdir()
    (place / "barren" / "notes.txt").write_text("no picture")
    return place


def png_of_one_colour(side: int) -> bytes:
    """A valid black-and-white PNG of ``side`` × ``side``, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + (side + 7) // 8)
    compress = zlib.compressobj()
    pixels = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_one_sentence(name: str, place: Path) -> None:
    folder = place / f"in {name}"
    folder.mkdir()
    done = run(CASES[name].typed, folder)
    assert done.code == 2, done
    assert done.out == ""
    (sentence,) = done.err.splitlines()
    assert re.fullmatch(r"Error: .*[.?]", sentence)
    assert all(words in sentence for words in CASES[name].says), sentence
    assert list(folder.iterdir()) == []
    # Nor anything beside the photos.
    assert {file for file in tree(place) if "/" not in file} == {
        "bomb.png", "cut.jpg", "empty.png", "good.png", "text.jpg",
    }  # fmt: skip


def test_debug_shows_where_the_error_comes_from(tmp_path: Path) -> None:
    done = run_alone(["explain", "photo.jpg", "--target", "1", "--top", "1", "--debug"], tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.splitlines()[-1].startswith("Error: --target and --top")


def test_what_nobody_foresaw_has_another_code_and_no_traceback(place: Path, tmp_path: Path) -> None:
    """A variable of the user's that matplotlib refuses when it is imported."""
    done = run_alone(["explain", place / "good.png", "--cmap", "viridis"], tmp_path, MPLBACKEND="a broken screen")
    assert done.code == 3
    (sentence,) = done.err.splitlines()
    assert sentence.startswith("Unexpected ValueError: ")
    assert "'a broken screen'" in sentence
    assert "--debug" in sentence


def test_when_no_photo_of_several_can_be_read_each_is_told(place: Path, tmp_path: Path) -> None:
    done = run(["explain", place / "cut.jpg", place / "text.jpg", "--model", place / "classifier"], tmp_path)
    assert (done.code, done.out) == (2, "")
    first, second, last = done.err.splitlines()
    assert first.startswith(f"Not explained: {place / 'cut.jpg'} ")
    assert second.startswith(f"Not explained: {place / 'text.jpg'} ")
    assert last == "Error: None of the 2 images could be explained."
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_commands_are_listed(tmp_path: Path) -> None:
    done = run([], tmp_path)
    assert (done.code, done.err) == (2, "")
    assert all(command in done.out for command in ("demo", "explain", "methods", "models"))
