"""Presets: that they can be run, and that they are what the papers did, to the pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.support.zoo import build
from tokentm.errors import InputError
from tokentm.evaluate.presets import PRESETS, Preset
from tokentm.evaluate.protocols.perturbation import PerturbationConfig
from tokentm.evaluate.registry import PROTOCOLS
from tokentm.models import ImageTransform, VisionModel, describe

MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def model(transform: ImageTransform | None) -> VisionModel:
    return describe(build("timm-vit"), transform=transform)


def own() -> ImageTransform:
    return ImageTransform(resize=36, crop=(32, 32), interpolation="bicubic", mean=MEAN, std=DEVIATION)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_run(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.explained in ("predicted", "target", "both")
    assert preset.configs
    for protocol, config in preset.configs:
        assert type(config) is PROTOCOLS[protocol].config
    transform = preset.transform_for(model(own()))
    assert transform is not None
    assert transform(photo()).shape == (3, 32, 32)
    hash(preset)


def test_the_published_perturbation_is_word_for_word() -> None:
    for name in ("tokentm-paper", "chefer-2021"):
        preset = PRESETS[name]
        assert preset.explained == "both"
        assert preset.transform == "squash"
        assert dict(preset.configs)["perturbation"] == PerturbationConfig(
            fractions=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            fill="black",
            ranking="pixels",
            label="true",
            auc="trapezoid",
        )


def test_squash_is_torchvisions_bilinear_resize_of_the_whole_photo() -> None:
    transform = PRESETS["chefer-2021"].transform_for(model(own()))
    assert transform is not None
    published = v2.Compose(
        [v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    )
    torch.testing.assert_close(transform(photo()), torch.Tensor(published(photo())), rtol=1e-6, atol=1e-6)


def test_crop_is_the_second_convention() -> None:
    preset = Preset("mine", "", "crop", "predicted", (), "")
    # 256 to 224 is as 37 to 32, rounded.
    published = v2.Compose(
        [
            v2.Resize(37), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )  # fmt: skip
    transform = preset.transform_for(model(own()))
    assert transform is not None
    torch.testing.assert_close(transform(photo()), torch.Tensor(published(photo())), rtol=1e-6, atol=1e-6)


def test_the_models_own_transform_is_left_alone() -> None:
    assert PRESETS["libragrad-2025"].transform_for(model(own())) == own()


def test_a_model_that_takes_any_size_gets_the_one_it_was_made_for() -> None:
    free = describe(build("timm-vit-dynamic"), transform=own())
    transform = PRESETS["saco-2024"].transform_for(free)
    assert transform is not None
    assert (transform.resize, transform.crop, transform.fit) == ((32, 32), None, "stretch")


def test_a_model_without_normalisation_is_refused() -> None:
    bare = VisionModel(build("timm-vit"), describe(build("timm-vit")).anatomy, None, None, "bare")
    with pytest.raises(InputError, match="the model bare does not say how its input is normalised"):
        PRESETS["chefer-2021"].transform_for(bare)
    assert PRESETS["libragrad-2025"].transform_for(bare) is None


def test_an_unknown_preset_is_told_what_there_is() -> None:
    with pytest.raises(InputError, match=r"Unknown preset 'chefer'; known are: .*Did you mean 'chefer-2021'"):
        PRESETS["chefer"]
