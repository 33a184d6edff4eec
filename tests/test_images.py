import os
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.nobody import as_nobody
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tokentm.errors import ImageError
from tokentm.models.images import IMAGE_SUFFIXES, MAX_PIXELS, find_images, open_image

Pixel = tuple[int, ...]


def first_pixel(image: Image.Image) -> Pixel:
    assert image.mode == "RGB"
    return tuple(int(value) for value in np.asarray(image)[0, 0])


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    content = b""
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + content


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("RGBX", (2, 2), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
        (Image.new("YCbCr", (2, 2), (77, 128, 128)), (77, 77, 77)),
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), (0, 255, 255)),
        (palette(None), (10, 20, 30)),
        # over white: opacity 51/255 is one fifth, so 100 becomes (100 + 4 * 255) / 5 = 224
        (Image.new("RGBA", (2, 2), (100, 0, 255, 51)), (224, 204, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (100, 51)), (224, 224, 224)),
        (Image.new("RGBA", (2, 2), (100, 0, 255, 51)).convert("RGBa"), (224, 204, 255)),
        (Image.new("LA", (2, 2), (100, 51)).convert("La"), (224, 224, 224)),
        (palette(0), (255, 255, 255)),
        (palette(1), (10, 20, 30)),
        (palette(bytes([51, 255])), (206, 208, 210)),
        (palette(bytes([51, 255])).convert("PA"), (206, 208, 210)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_the_rgb_a_person_would_see(image: Image.Image, expected: Pixel) -> None:
    assert first_pixel(open_image(image)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 32768, 65535]], dtype=np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 257, 32768, 65535]], dtype=np.dtype(">u2")), [0, 1, 128, 255]),
        (np.array([[0, 1, 128, 255]], dtype=np.int32), [0, 1, 128, 255]),
        (np.array([[0, 1, 257, 65535]], dtype=np.int32), [0, 0, 1, 255]),
        (np.array([[0, 0.2, 0.5, 1]], dtype=np.float32), [0, 51, 128, 255]),
        (np.array([[0, 1, 128, 254.6]], dtype=np.float32), [0, 1, 128, 255]),
    ],
    ids=["I;16", "I;16B", "I as 8 bit", "I as 16 bit", "F as 0..1", "F as 0..255"],
)
def test_wide_grey_is_scaled_and_not_clipped(values: np.ndarray, expected: list[int]) -> None:
    rgb = np.asarray(open_image(Image.fromarray(values)))
    np.testing.assert_array_equal(rgb[0], np.repeat(expected, 3).reshape(-1, 3))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_file_is_scaled(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.full((2, 2), 65535 // 5, dtype=np.uint16)).save(tmp_path / f"grey{suffix}")
    assert first_pixel(open_image(tmp_path / f"grey{suffix}")) == (51, 51, 51)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.array([[0, 70000]], dtype=np.int32),
            "values from 0 to 70000; expected intensities from 0 to 65535",
        ),
        (np.array([[-1, 7]], dtype=np.int32), "values from -1 to 7"),
        (np.array([[0, 256]], dtype=np.float32), "values from 0 to 256; expected intensities from 0 to 255"),
        (np.array([[0, np.nan]], dtype=np.float32), "values from nan to nan; .*, no NaN"),
        (np.array([[0, np.inf]], dtype=np.float32), "values from 0 to inf"),
    ],
)
def test_numbers_that_are_no_intensities_are_refused(values: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_image(Image.fromarray(values))


def test_an_image_whose_file_was_closed_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ImageError, match=r"The RGB image given is damaged .*; load\(\) it before its file is closed"):
        open_image(image)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, 0), (3, 3), (6, 2), (8, 1)])
def test_the_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int, corner: int) -> None:
    # the stored quarters are 0 1 over 2 3 in brightness steps; upright, this one must come top left
    stored = Image.fromarray(np.kron([[20, 80], [140, 200]], np.ones((16, 24))).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"photo{suffix}", exif=exif)
    upright = open_image(tmp_path / f"photo{suffix}")
    assert upright.size == ((48, 32) if orientation in {1, 3} else (32, 48))
    assert first_pixel(upright)[0] == pytest.approx([20, 80, 140, 200][corner], abs=4)


def test_an_unreadable_exif_block_does_not_cost_the_photo(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (50, 60, 70)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert first_pixel(open_image(tmp_path / "a.png")) == (50, 60, 70)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:])
    assert first_pixel(open_image(str(tmp_path / f"moving{suffix}"))) == (255, 255, 255)


def test_the_result_is_loaded_and_a_given_image_is_neither_changed_nor_shared(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    copy = open_image(image)
    copy.paste("blue", (0, 0, 4, 4))
    assert first_pixel(image) == (255, 0, 0)


def test_a_missing_file_a_folder_and_nonsense_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no file .*gone\.jpg; give the path of an image file\."):
        open_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="is a folder; give the path of one image file in it"):
        open_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"is empty \(0 bytes\); download or copy it again"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"cannot be opened \(embedded null byte\)"):
        open_image("a\0.jpg")
    with pytest.raises(ImageError, match=r"cannot be opened \(File name too long\)"):
        open_image("a" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is not a regular file"):
        open_image(tmp_path / "pipe.jpg")


def test_a_text_file_called_jpg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a photo")
    with pytest.raises(ImageError, match=r"notes\.jpg is not in an image format .*; expected JPEG, PNG") as caught:
        open_image(tmp_path / "notes.jpg")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif", ".bmp"])
def test_a_file_cut_short_anywhere_gives_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in np.linspace(1, len(whole) * 9 // 10, 25).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"photo\.\w+ (is damaged|is not in|cannot be opened).*\.$"):
            open_image(path)


def test_a_png_with_a_damaged_chunk_gives_one_sentence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    start, found, rest = (tmp_path / "photo.png").read_bytes().rpartition(b"IDAT")
    assert start.count(b"IDAT") > 0
    (tmp_path / "photo.png").write_bytes(start + found.replace(b"I", b"\xff") + rest)
    with pytest.raises(ImageError, match=r"photo\.png is damaged or incomplete \(broken PNG file"):
        open_image(tmp_path / "photo.png")


def sentence_or_none(path: Path) -> str | None:
    try:
        open_image(path)
    except ImageError as told:
        return str(told)
    return None


def test_files_with_random_damage_open_or_give_one_sentence(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for suffix in (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp", ".ppm"):
        path = tmp_path / f"photo{suffix}"
        picture.save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 4):
                damaged[place] = random.integers(0, 256)
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                told = sentence_or_none(path)
            assert told is None or told.endswith(".")


@pytest.mark.parametrize("side", [9_500, 30_000])  # Pillow itself warns about the first and refuses the second
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    start = time.perf_counter()
    with pytest.raises(ImageError, match=r"bomb\.png has more than the 89,478,485 pixels that are read"):
        open_image(tmp_path / "bomb.png")
    assert time.perf_counter() - start < 0.5


def test_the_limit_holds_for_those_who_lifted_that_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with pytest.raises(ImageError, match="has 30000 × 30000 pixels; at most 89,478,485 are read"):
            open_image(tmp_path / "bomb.png")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert before is not None
    assert before >= MAX_PIXELS


def test_an_array_is_a_picture() -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for array in (colours, colours[:, ::-1], colours[..., 0]):
        image = open_image(array)
        expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)
        assert np.array_equal(np.asarray(image), expected)
    image = open_image(colours)
    colours[:] = 99
    assert first_pixel(image) == (0, 1, 2)


@pytest.mark.parametrize("given", [None, 3, b"\x89PNG", [1, 2]])
def test_what_is_neither_a_path_nor_a_picture_is_refused(given: Any) -> None:
    with unchecked(), pytest.raises(ImageError, match=rf"Got a {type(given).__name__} as an image; a path") as caught:
        open_image(given)
    assert_one_sentence(caught.value)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="The RGB image given is 0 × 5 pixels; expected at least one pixel"):
        open_image(Image.new("RGB", (0, 5)))


def test_no_filter_for_warnings_is_left_behind(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    open_image(tmp_path / "a.png")
    assert list(warnings.filters) == before


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_are_found_below_a_folder_in_order(tmp_path: Path) -> None:
    found = [
        tmp_path / "a" / "2.jpg",
        tmp_path / "a" / "b" / "1.PNG",
        tmp_path / "a.jpeg",
        tmp_path / "c.webp",
    ]
    touch(*found, tmp_path / ".hidden" / "x.jpg", tmp_path / "a" / "._2.jpg", tmp_path / "notes.txt")
    touch(tmp_path / "jpg", tmp_path / "folder.png" / "readme")
    assert find_images(tmp_path) == found
    assert {".jpg", ".jpeg", ".png", ".webp"} <= IMAGE_SUFFIXES


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "data" / "1.jpg", tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert find_images(tmp_path / "data") == [
        tmp_path / "data" / "1.jpg",
        tmp_path / "data" / "linked" / "2.jpg",
    ]


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match=r"holds no images; expected files ending in \.bmp, \.gif"):
        find_images(tmp_path)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"gone cannot be searched for images \(No such file"):
        find_images(tmp_path / "gone")
    with pytest.raises(ImageError, match=r"a\.jpg cannot be searched for images \(Not a directory\); give a folder"):
        find_images(tmp_path / "a.jpg")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_file_or_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "locked" / "a.jpg")
    (tmp_path / "locked").chmod(0)
    with as_nobody(), pytest.raises(ImageError, match=r"cannot be searched for images \(Permission denied\)"):
        find_images(tmp_path / "locked")
    with as_nobody(), pytest.raises(ImageError, match=r"cannot be opened \(Permission denied\)"):
        open_image(tmp_path / "locked" / "a.jpg")
    (tmp_path / "locked").chmod(0o700)
