import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tokentm.errors import ImageError, InputError, ModelLoadError
from tokentm.models.transforms import ImageTransform

KIT = Path(os.environ.get("TOKENTM_KIT", Path(__file__).parents[1].parent / "shared" / "kit"))
# (width, height): odd and even margins on either side, upscaling, one that needs no resizing
SIZES = [(333, 250), (250, 333), (341, 256), (343, 256), (97, 131), (256, 256)]
SQUARE = {"input_size": (3, 224, 224)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def noise(size: tuple[int, int]) -> Image.Image:
    """Uncorrelated pixels: whatever is shifted by one or interpolated otherwise comes out different."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def coordinates(size: tuple[int, int]) -> Image.Image:
    """Red is the column, green the row: linear, so that an interpolated pixel still says whence it comes."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "config",
    [
        SQUARE | IMAGENET | {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
        SQUARE | INCEPTION | {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center"},
        SQUARE | INCEPTION | {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"},
        SQUARE | IMAGENET | {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": (3, 96, 96), "interpolation": "lanczos", "crop_pct": 0.95, "crop_mode": "squash"},
        {"input_size": (3, 128, 64), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
        {"input_size": (3, 64, 160), "interpolation": "nearest", "crop_pct": None, "crop_mode": None},
        SQUARE,
    ],
    ids=["center .875", "center .9", "center 1.0", "squash 1.0", "squash .95", "tall", "wide", "defaults"],
)
def test_pixels_equal_those_of_timm(config: dict[str, Any], size: tuple[int, int]) -> None:
    from timm.data import create_transform

    expected = create_transform(**config, is_training=False)(noise(size))
    assert_close(ImageTransform.from_timm(config)(noise(size)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "deit_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_what_timm_says_of_its_models_can_be_followed(name: str) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = create_transform(**config, is_training=False)(noise((333, 250)))
    assert_close(ImageTransform.from_timm(config)(noise((333, 250))), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"resize_size": 232}, {"resize_size": 128, "crop_size": 160}, {"mean": (0, 0, 0), "std": (1, 1, 1)}],
)
def test_pixels_equal_those_of_the_torchvision_preset(changes: dict[str, Any], size: tuple[int, int]) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(**{"crop_size": 224, "interpolation": InterpolationMode.BICUBIC} | changes)
    actual = ImageTransform.from_torchvision(preset)(noise(size))
    assert_close(actual, preset(noise(size)), rtol=0, atol=1e-6)


VIT, DEIT, BIT, CLIP = ({"image_processor_type": f"{kind}ImageProcessor"} for kind in ("ViT", "DeiT", "Bit", "CLIP"))
PROCESSORS = [
    VIT | {"size": {"height": 224, "width": 224}, "resample": 2},
    VIT | {"image_processor_type": "ViTImageProcessorFast", "size": 224, "image_mean": [0.4, 0.5, 0.6]},
    VIT | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60] * 3, "resample": 0},
    {"feature_extractor_type": "ViTFeatureExtractor", "size": [96, 128], "do_normalize": False},
    {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3},
    DEIT | {"size": {"height": 255, "width": 256}, "resample": 3},
    BIT | {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    BIT | {"size": {"shortest_edge": 96}, "crop_size": {"height": 128, "width": 100}},
    BIT | {"size": 256, "crop_size": 225, "do_rescale": None},
    CLIP | {"do_resize": False, "resample": None, "crop_size": 160, "rescale_factor": 1 / 127.5},
]


def transformers_class(config: dict[str, Any]) -> Callable[..., Any]:
    transformers = pytest.importorskip("transformers")
    name = config.get("image_processor_type") or config["feature_extractor_type"]
    processor: Callable[..., Any] = getattr(
        transformers, name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    )
    return processor


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", PROCESSORS, ids=lambda config: "-".join(map(str, config.values()))[:40])
def test_pixels_equal_those_of_the_transformers_processor(config: dict[str, Any], size: tuple[int, int]) -> None:
    processor = transformers_class(config)(**config)
    expected = processor(noise(size), return_tensors="pt")["pixel_values"][0]
    actual = ImageTransform.from_processor(config)(noise(size))
    assert_close(actual, expected, rtol=1e-6, atol=2e-6)
    # the dictionary that transformers itself writes says the same
    assert ImageTransform.from_processor(processor.to_dict()) == ImageTransform.from_processor(config)


@pytest.mark.parametrize("kind", ["Beit", "Bit", "CLIP", "DINOv3ViT", "DeiT", "Siglip", "ViT"])
def test_absent_keys_default_as_in_the_processor_class(kind: str) -> None:
    config = {"image_processor_type": f"{kind}ImageProcessor"}
    processor = transformers_class(config)()
    assert ImageTransform.from_processor(config) == ImageTransform.from_processor(processor.to_dict())


@pytest.mark.parametrize(
    ("config", "levels"),
    [
        # DINOv3 resizes floats, so it alone does not round to whole levels, twice (once per axis)
        ({"image_processor_type": "DINOv3ViTImageProcessor", "size": 224}, 1.1),
        # transformers resizes tensors by Lanczos, which clips between the axes in another order than Pillow
        ({"image_processor_type": "BitImageProcessor", "resample": 1}, 2.1),
    ],
)
def test_pixels_are_close_to_processors_that_round_otherwise(config: dict[str, Any], levels: float) -> None:
    image = Image.fromarray(np.asarray(noise((40, 30)).resize((333, 250), Image.Resampling.BICUBIC)))
    expected = transformers_class(config)(**config)(image, return_tensors="pt")["pixel_values"][0]
    transform = ImageTransform.from_processor(config)
    assert_close(transform(image), expected, rtol=0, atol=levels / 255 / min(transform.std))


def test_photos_of_the_kit_come_out_as_from_timm() -> None:
    photos = sorted((KIT / "photos").glob("*.jpg"))[:5]
    if not photos:
        pytest.skip(f"no photos in {KIT / 'photos'}; set TOKENTM_KIT")
    from timm.data import create_transform

    config = SQUARE | IMAGENET | {"interpolation": "bicubic", "crop_pct": 0.875}
    for photo in photos:
        with Image.open(photo) as image:
            rgb = image.convert("RGB")
        expected = create_transform(**config, is_training=False)(rgb)
        assert_close(ImageTransform.from_timm(config)(rgb), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(200, 150), (150, 201), (255, 97), (60, 60)])
@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(resize=64, crop=(56, 56)),
        ImageTransform(resize=65, crop=(48, 56), convention="transformers"),
        ImageTransform(resize=(70, 90), crop=(60, 61), interpolation="bilinear"),
        ImageTransform(resize=(70, 90), crop=(64, 64), fit="cover"),
        ImageTransform(resize=(70, 90)),
        ImageTransform(resize=None, crop=(50, 53)),
        ImageTransform(resize=64),
        ImageTransform(resize=None),
    ],
    ids=str,
)
def test_the_box_is_where_the_pixels_come_from(transform: ImageTransform, size: tuple[int, int]) -> None:
    seen = np.asarray(transform.seen(coordinates(size))).astype(np.float64)
    left, top, right, bottom = transform.box(size)
    height, width = seen.shape[:2]
    # pixel i of the original covers i..i+1, so its centre, whose value is i, lies at i + 1/2
    columns = left + (np.arange(width) + 0.5) * (right - left) / width - 0.5
    rows = top + (np.arange(height) + 0.5) * (bottom - top) / height - 0.5
    inner = (slice(4, -4), slice(4, -4))  # at the border of the image a kernel has nothing to average with
    np.testing.assert_allclose(seen[..., 0][inner], np.tile(columns, (height, 1))[inner], atol=1.1)
    np.testing.assert_allclose(seen[..., 1][inner], np.tile(rows[:, None], (1, width))[inner], atol=1.1)


def test_the_box_of_a_known_case() -> None:
    # 400 × 300 becomes 341 × 256; the crop leaves 16 rows above and round(58.5) = 58 columns to the left
    left, top, right, bottom = ImageTransform(resize=256, crop=(224, 224)).box((400, 300))
    assert (top, bottom) == (18.75, 281.25)
    assert left == pytest.approx(58 * 400 / 341)
    assert right == pytest.approx(282 * 400 / 341)
    # torchvision rounds 59.5 to the even 60, transformers down to 59
    assert ImageTransform(resize=None, crop=(1, 1)).box((120, 1))[0] == 60
    assert ImageTransform(resize=None, crop=(1, 1), convention="transformers").box((120, 1))[0] == 59


def test_a_crop_larger_than_the_image_is_padded_with_black_and_so_is_its_box() -> None:
    transform = ImageTransform(resize=None, crop=(55, 80))
    image = Image.new("RGB", (100, 50), "white")
    seen = np.asarray(transform.seen(image))
    # five rows are missing: two above (5 // 2), three below
    np.testing.assert_array_equal(seen[:, :, 0], np.repeat([0, 255, 0], [2, 50, 3])[:, None] * np.ones(80))
    assert transform.box(image.size) == (10, -2, 90, 53)


def test_normalisation_is_by_channel_and_can_be_undone() -> None:
    transform = ImageTransform(resize=None, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    tensor = transform(Image.new("RGB", (1, 1), (255, 51, 0)))
    assert_close(tensor, torch.tensor([1.0, 0.0, -2.0])[:, None, None])
    assert tensor.dtype == torch.float32
    images = [noise((9, 7)), Image.new("RGB", (9, 7), "white")]
    pictures = transform.denormalise(torch.stack([transform(image) for image in images]))
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(picture, np.asarray(image))


def test_values_beyond_the_range_of_bytes_are_clipped() -> None:
    transform = ImageTransform(resize=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    batch = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    np.testing.assert_array_equal(transform.denormalise(batch), [[[[0, 128, 255]]]])


def test_the_image_given_is_left_alone() -> None:
    image = noise((30, 30))
    before = image.tobytes()
    ImageTransform(resize=None).seen(image).paste("white", (0, 0, 30, 30))
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"input_size": (1, 28, 28)}, r"1 channels; expected 3, for RGB"),
        (SQUARE | {"crop_mode": "border"}, r"crop_mode='border' .* expected 'center' or 'squash'"),
        (SQUARE | {"interpolation": "random"}, r"interpolation='random' .* expected one of nearest"),
        (SQUARE | {"mean": (0.5,)}, r"mean=\(0\.5,\) .* expected three numbers"),
    ],
)
def test_timm_configurations_that_cannot_be_followed_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        ImageTransform.from_timm(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, r"Image processor '' is not supported; expected that of Beit, Bit, .*, ViT\."),
        ({"image_processor_type": "ConvNextImageProcessor"}, "'ConvNextImageProcessor' is not supported"),
        (VIT | {"do_pad": True}, "do_pad=True is not supported"),
        (VIT | {"size": {"longest_edge": 9}}, r"size=\{'longest_edge': 9\}"),
        (VIT | {"resample": 4}, "interpolation=4 is not supported"),
        (VIT | {"image_std": 0.5}, "image_std=0.5 is not supported"),
        (VIT | {"size": None}, "size=None is not supported"),
        (VIT | {"rescale_factor": 0}, "rescale_factor=0 is not supported"),
        (VIT | {"resample": None}, "interpolation=None is not supported"),
        (CLIP | {"crop_size": {"shortest_edge": 9}}, r"crop_size=.*height and width"),
    ],
)
def test_processors_that_cannot_be_followed_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        ImageTransform.from_processor(config)


def test_other_presets_than_that_for_classification_are_refused() -> None:
    from torchvision.transforms._presets import ObjectDetection

    with pytest.raises(ModelLoadError, match="ObjectDetection is not a torchvision preset for image classification"):
        ImageTransform.from_torchvision(ObjectDetection())


@pytest.mark.parametrize(
    "values",
    [
        {"resize": 0},
        {"resize": (224, 0)},
        {"resize": None, "crop": (0, 1)},
        {"resize": 1, "std": (1.0, 0.0, 1.0)},
        {"resize": 1, "mean": (float("nan"), 0.0, 0.0)},
    ],
)
def test_senseless_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        ImageTransform(**values)


def test_images_that_are_not_rgb_or_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(ImageError, match=r"mode 'L'; expected 'RGB'"):
        ImageTransform(resize=None)(Image.new("L", (2, 2)))
    with pytest.raises(ImageError, match=r"2 × 9000 pixels, too narrow to be resized to 256"):
        ImageTransform(resize=256)(Image.new("RGB", (2, 9000)))


def test_importing_costs_none_of_the_libraries_it_follows() -> None:
    code = (
        "import sys, tokentm.models.transforms\n"
        "print({'timm', 'transformers', 'torchvision', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
