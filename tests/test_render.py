import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from tokentm.errors import InputError
from tokentm.models.transforms import ImageTransform
from tokentm.render import (
    DIVERGING,
    SEQUENTIAL,
    colour_range,
    colourise,
    on_full,
    overlay,
    scale01,
    scale_signed,
    upsample,
    whereabouts,
)

# ends of the two default colour maps; versions of matplotlib round them differently
INFERNO_HIGH = (252, 255, 164)
RED, WHITE, BLUE = (103, 0, 31), (247, 246, 246), (5, 48, 97)


def grey(width: int, height: int, level: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), (level,) * 3)


def full(value: float, height: int = 2, width: int = 3) -> np.ndarray:
    return np.full((height, width), value, dtype=np.float32)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_upsampling_keeps_patch_centres_in_place() -> None:
    row = torch.tensor([[[0.0, 1.0]]])
    # centres of four pixels at 1/4, 3/4, 5/4, 7/4 of a patch; patch centres at 1/2 and 3/2; flat beyond
    assert_close(upsample(row, (1, 4)), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))
    corners = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    assert_close(upsample(corners, (4, 4))[0, 1], torch.tensor([1.0, 1.5, 2.5, 3.0]))


def test_upsampling_keeps_rows_apart_and_widens_half_precision() -> None:
    maps = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    assert_close(upsample(maps, (3, 5)), maps.expand(2, 3, 5))
    assert upsample(maps.bfloat16(), (3, 5)).dtype == torch.float32
    assert upsample(maps.double(), (3, 5)).dtype == torch.float64


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_upsampling_to_nothing_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"A grid of \(2, 2\) cannot be brought to .* sizes of at least 1"):
        upsample(torch.zeros(1, 2, 2), size)


def test_each_map_is_stretched_on_its_own() -> None:
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[10.0, 20.0], [30.0, 50.0]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.25], [0.5, 1.0]]])
    assert_close(scale01(maps), expected)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1e5, 1e-40])
def test_a_constant_map_becomes_zero_even_after_upsampling(value: float) -> None:
    maps = upsample(torch.full((1, 7, 7), value), (37, 53))  # a size at which interpolation does round
    assert_close(scale01(maps), torch.zeros(1, 37, 53), rtol=0, atol=0)


def test_small_but_real_differences_are_kept() -> None:
    assert_close(scale01(torch.tensor([[[1.0, 1.0001]]])), torch.tensor([[[0.0, 1.0]]]))
    assert_close(scale01(torch.tensor([[[0.0, 1e-40]]])), torch.tensor([[[0.0, 1.0]]]))
    assert_close(scale01(torch.tensor([[[-3e38, 0.0, 3e38]]])), torch.tensor([[[0.0, 0.5, 1.0]]]))


def test_signed_scaling_keeps_zero_in_the_middle_and_the_signs_comparable() -> None:
    maps = torch.tensor([[[-2.0, -1.0, 0.0, 4.0]], [[-8.0, 0.0, 2.0, 4.0]], [[0.0] * 4]])
    expected = torch.tensor([[[0.25, 0.375, 0.5, 1.0]], [[0.0, 0.5, 0.625, 0.75]], [[0.5] * 4]])
    assert_close(scale_signed(maps), expected)


@pytest.mark.parametrize("scale", [scale01, scale_signed])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_maps_with_nan_or_infinity_are_refused_by_number(scale: Callable[[Tensor], Tensor], bad: float) -> None:
    maps = torch.zeros(3, 2, 2)
    maps[1, 0, 1] = bad
    with pytest.raises(InputError, match="Map 1 of 3 holds NaN or infinity"):
        scale(maps)


def test_colours_are_those_of_matplotlib() -> None:
    colours = colourise(np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(colours.astype(int), [[(0, 0, 3), INFERNO_HIGH]], atol=1)
    signed = colourise(np.array([[0.0, 0.5, 1.0]]), DIVERGING)
    np.testing.assert_allclose(signed.astype(int), [[BLUE, WHITE, RED]], atol=1)
    np.testing.assert_array_equal(colourise(np.array([[0.0, 1.0]]), "gray"), [[(0, 0, 0), (255, 255, 255)]])


def test_the_default_colours_grow_lighter_all_the_way() -> None:
    ramp = colourise(np.linspace(0, 1, 64)[None], SEQUENTIAL)[0].astype(float)
    assert (np.diff(ramp @ [0.2126, 0.7152, 0.0722]) > 0).all()


def test_an_unknown_colour_map_is_answered_with_near_names() -> None:
    with pytest.raises(InputError, match=r"Unknown colour map 'infernal'\. Did you mean 'inferno'"):
        colourise(full(0.5), "infernal")


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_values_out_of_range_are_refused(value: float) -> None:
    values = full(0.5)
    values[0, 0] = value
    for draw in (
        lambda: colourise(values),
        lambda: overlay(grey(3, 2), values),
        lambda: on_full(grey(3, 2), values, (0.0, 0.0, 3.0, 2.0)),
    ):
        with pytest.raises(InputError, match=r"The map holds values from .*; expected 0 to 1, as scale01"):
            draw()


@pytest.mark.parametrize("opacity", [0.0, 0.4, 1.0])
def test_irrelevant_pixels_show_the_photo_darkened_with_opacity(opacity: float) -> None:
    result = pixels(overlay(grey(3, 2), full(0.0), opacity=opacity, min_side=1))
    np.testing.assert_allclose(result, 200 * (1 - 0.25 * opacity), atol=1)


def test_without_opacity_the_photo_is_untouched() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    result = overlay(photo, np.linspace(0, 1, 72, dtype=np.float32).reshape(8, 9), opacity=0.0, min_side=1)
    np.testing.assert_array_equal(pixels(result), pixels(photo))


def test_the_cover_grows_with_the_square_root_of_relevance() -> None:
    # opacity 1: photo 200 darkened to 150; relevance 1/4 covers half of it, in matplotlib's grey of 1/4 (64)
    result = pixels(overlay(grey(3, 2), full(0.25), opacity=1.0, cmap="gray", min_side=1))
    np.testing.assert_allclose(result, (150 + 64) / 2, atol=1)
    result = pixels(overlay(grey(3, 2), full(1.0), opacity=1.0, min_side=1))
    np.testing.assert_allclose(result, np.broadcast_to(INFERNO_HIGH, (2, 3, 3)), atol=1)


def test_a_signed_map_leaves_the_neutral_alone_and_colours_both_sides() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    result = pixels(overlay(grey(3, 1), values, opacity=1.0, signed=True, min_side=1))
    np.testing.assert_allclose(result, [[BLUE, (150, 150, 150), RED]], atol=1)


def test_a_signed_map_is_laid_on_a_photo_without_colour() -> None:
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    drained = pixels(overlay(red, full(0.5), opacity=1.0, signed=True, min_side=1))
    assert np.ptp(drained, axis=-1).max() == 0
    assert np.ptp(pixels(overlay(red, full(0.0), opacity=1.0, min_side=1)), axis=-1).min() > 40


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_out_of_range_is_refused(opacity: float) -> None:
    with pytest.raises(InputError, match=r"opacity=.*: expected a number from 0 \(photo\) to 1 \(colour\)"):
        overlay(grey(3, 2), full(0.5), opacity=opacity)


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"map has 3 × 2 pixels and the image 2 × 3; expected the same size"):
        overlay(grey(2, 3), full(0.5))
    with pytest.raises(InputError, match="The map is empty"):
        on_full(grey(2, 3), np.zeros((0, 4), dtype=np.float32), (0.0, 0.0, 1.0, 1.0))


def test_small_pictures_are_enlarged_by_a_whole_number() -> None:
    values = np.random.default_rng(0).random((64, 96), dtype=np.float32)
    small = pixels(overlay(grey(96, 64), values, min_side=96))
    large = pixels(overlay(grey(96, 64), values))
    np.testing.assert_array_equal(large, small.repeat(3, axis=0).repeat(3, axis=1))


def test_captions_stand_on_white_below_the_picture() -> None:
    plain = pixels(overlay(grey(224, 224), full(0.5, 224, 224)))
    heights = [224]
    for options in ({"title": "great white shark 87 %"}, {"subtitle": "tokentm"}, {"legend": True}):
        result = pixels(overlay(grey(224, 224), full(0.5, 224, 224), **options))
        np.testing.assert_array_equal(result[:224], plain)
        strip = result[224:]
        assert (strip[0] == 255).all()
        assert (strip[-1] == 255).all()
        assert (strip[:, :4] == 255).all()
        assert (strip[:, -4:] == 255).all()
        assert strip.min() < 120
        heights.append(len(result))
    everything = overlay(grey(224, 224), full(0.5, 224, 224), title="a", subtitle="b", legend=True)
    assert everything.height > max(heights)


def test_the_colour_bar_runs_through_the_colours_of_the_overlay() -> None:
    result = pixels(overlay(grey(400, 300), full(0.5, 300, 400), legend=True))
    strip = result[300:]
    bar = strip[len(strip) // 2]
    coloured = np.flatnonzero((bar != 255).any(-1))
    middle = bar[coloured[len(coloured) // 2]]
    expected = pixels(overlay(grey(1, 1, 128), full(0.5, 1, 1), min_side=1))[0, 0]
    np.testing.assert_allclose(middle, expected, atol=6)


def test_long_names_are_cut_with_an_ellipsis_and_stay_inside() -> None:
    long = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"
    cut = pixels(overlay(grey(224, 32), full(0.5, 32, 224), title=long))
    assert (cut[32:, -5:] == 255).all()
    assert (cut[32:, 150:210] < 120).any()  # but the line is filled
    # what follows the cut does not matter
    same = overlay(grey(224, 32), full(0.5, 32, 224), title=long[:60] + "zzz")
    np.testing.assert_array_equal(cut, pixels(same))


@given(st.text(st.characters(), max_size=40), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_no_text_and_no_size_crashes(text: str, width: int, height: int) -> None:
    values = full(0.5, height, width)
    result = overlay(grey(width, height), values, title=text, subtitle=text, legend=True, min_side=1)
    assert result.width == width


@pytest.mark.parametrize("text", ["Größe · Ärzte", "акула", "鯊魚", "سمك القرش", "a\nb\tc", "x" * 10_000, "\ud800"])
def test_letters_of_every_script_can_be_given(text: str) -> None:
    result = pixels(overlay(grey(224, 32), full(0.5, 32, 224), title=text))
    assert (result[32:, -5:] == 255).all()


def test_scripts_beyond_ascii_are_drawn_as_letters() -> None:
    def strip(title: str) -> np.ndarray:
        return pixels(overlay(grey(224, 32), full(0.5, 32, 224), title=title))[32:]

    # a font without these letters would draw the same box for each
    assert (strip("ж") != strip("ш")).any()
    assert (strip("ä") != strip("ö")).any()


def test_a_map_is_put_where_the_model_looked() -> None:
    values = np.random.default_rng(0).random((50, 80), dtype=np.float32)
    result = pixels(on_full(grey(120, 100), values, (10.0, 20.0, 90.0, 70.0), min_side=1))
    inside = pixels(overlay(grey(80, 50), values, min_side=1))
    np.testing.assert_array_equal(result[20:70, 10:90], inside)
    # outside: 200 at 40 % is 80; the edge is a line one pixel wide
    outside = np.ones((100, 120), dtype=bool)
    outside[19:71, 9:91] = False
    np.testing.assert_allclose(result[outside], 80, atol=1)
    line = ~outside
    line[20:70, 10:90] = False
    np.testing.assert_array_equal(result[line], 192)


def test_a_map_is_stretched_to_its_box() -> None:
    halves = np.repeat([[0.0, 1.0]], 4, axis=1).astype(np.float32)  # 8 wide: left half 0, right half 1
    result = pixels(on_full(grey(200, 50, 0), halves, (40.0, -10.0, 120.0, 60.0), cmap="gray", opacity=1.0, min_side=1))
    row = result[25, :, 0]
    # the middle of the box is at 80; the ramp between two map pixels is 10 wide
    assert row[41:75].max() == 0
    assert row[85:119].min() == 255
    assert row[80] == pytest.approx(128, abs=32)
    assert (row[121:] == 0).all()


def test_a_box_that_reaches_beyond_the_photo_shows_its_inner_part() -> None:
    transform = ImageTransform(resize=None, crop=(60, 60))
    photo = grey(40, 40)
    ramp = np.tile(np.linspace(0, 1, 60, dtype=np.float32), (60, 1))
    result = pixels(on_full(photo, ramp, transform.box(photo.size), min_side=1))
    seen = pixels(overlay(transform.seen(photo), ramp, min_side=1))
    np.testing.assert_allclose(result, seen[10:50, 10:50], atol=1)


@pytest.mark.parametrize("size", [(400, 300), (300, 500), (150, 90)])
@pytest.mark.parametrize("transform", [ImageTransform(resize=128, crop=(112, 112)), ImageTransform(resize=(96, 96))])
def test_what_glows_on_the_crop_glows_at_the_same_place_on_the_photo(
    transform: ImageTransform, size: tuple[int, int]
) -> None:
    photo = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x, y = int(size[0] * 0.4), int(size[1] * 0.55)
    photo[y - 6 : y + 6, x - 6 : x + 6] = 255
    seen = np.asarray(transform.seen(Image.fromarray(photo)))[..., 0].astype(np.float32) / 255
    result = pixels(on_full(grey(*size, 0), seen, transform.box(size), cmap="gray", opacity=1.0, min_side=1))
    rows, columns = np.nonzero(result[..., 0] > 200)
    assert rows.mean() + 0.5 == pytest.approx(y, abs=1.5)
    assert columns.mean() + 0.5 == pytest.approx(x, abs=1.5)


def test_large_photos_are_reduced_and_small_ones_enlarged() -> None:
    values = full(0.0, 10, 10)
    large = on_full(grey(400, 200), values, (100.0, 0.0, 300.0, 200.0), max_side=100)
    np.testing.assert_allclose(pixels(large)[25, [10, 50, 90], 0], [80, 200 * (1 - 0.25 * 0.85), 80], atol=1)
    assert large.size == (100, 50)
    assert on_full(grey(40, 20), values, (10.0, 0.0, 30.0, 20.0), min_side=100).size == (120, 60)


@pytest.mark.parametrize("box", [(50.0, 0.0, 60.0, 9.0), (5.0, 5.0, 5.0, 9.0), (9.0, 0.0, 1.0, 9.0)])
def test_a_box_beside_the_photo_or_without_area_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match=r"covers no pixel of an image of 40 × 20; expected left, top, right"):
        on_full(grey(40, 20), full(0.5), box)


def test_importing_loads_neither_matplotlib_nor_any_model() -> None:
    code = (
        "import sys, tokentm.render\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'matplotlib', 'timm', 'torchvision'}"
        " or name.startswith('tokentm.models')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_colour_range_is_what_scaling_brings_to_its_ends() -> None:
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]])
    assert colour_range(maps, signed=False) == [(-1.0, 3.0), (2.0, 2.0)]
    assert colour_range(maps, signed=True) == [(-3.0, 3.0), (-2.0, 2.0)]
    low, high = colour_range(maps, signed=False)[0]
    assert_close((maps[:1] - low) / (high - low), scale01(maps[:1]))
    low, high = colour_range(maps, signed=True)[0]
    assert_close((maps[:1] - low) / (high - low), scale_signed(maps[:1]))


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [(0, 0, "upper left"), (3, 3, "centre"), (3, 5, "middle right"), (5, 2, "lower centre"), (5, 5, "lower right")],
)
def test_where_a_map_is_highest_in_words(row: int, column: int, words: str) -> None:
    relevance = torch.zeros(6, 6)
    relevance[row, column] = 1
    assert whereabouts(relevance) == words


def test_where_a_single_patch_is() -> None:
    assert whereabouts(torch.ones(1, 1)) == "upper left"
