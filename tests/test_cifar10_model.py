"""The bundled model of small photos: what its card says, and that it is what ``load_model`` gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tokentm
from tokentm.datasets.examples import example_photos
from tokentm.datasets.open_dataset import open_dataset

WEIGHTS = Path(tokentm.__file__).parent / "models" / "weights" / "cifar10"


def card() -> dict[str, str]:
    text = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    return dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))


def test_it_is_small_and_knows_its_classes_and_its_input() -> None:
    model = tokentm.load_model("cifar10")
    assert (WEIGHTS / "model.safetensors").stat().st_size < 12e6
    assert model.class_names == tuple(example_photos())
    assert model.anatomy.readout.name == "cls"
    assert model.transform is not None
    photo = open_dataset("examples")[0].photo
    pixels = torch.from_numpy(np.asarray(photo).copy())
    torch.testing.assert_close(model.transform(photo), pixels.permute(2, 0, 1) / 127.5 - 1)


def test_the_card_says_how_often_it_is_right_and_who_trained_it() -> None:
    rows = card()
    assert rows["test images"] == "10,000"
    assert float(rows["top class is right"].rstrip("%")) > 85
    assert float(rows["expected calibration error (15 bins)"].rstrip("%")) < 5
    assert rows["recipe"].startswith("pool token, width 192, depth 6")


def test_it_names_most_of_the_bundled_photos() -> None:
    explained = tokentm.explain(tokentm.load_model("cifar10"), list(example_photos().values()))
    assert sum(name == label for name, label in zip(explained.class_name, example_photos(), strict=True)) >= 8


def test_the_accuracy_on_the_card_is_that_of_the_weights(kit: Path) -> None:
    """On 500 test images: within four standard deviations of what the card says."""
    from tokentm.datasets.sample import Sample
    from tokentm.recorder import predict

    model = tokentm.load_model("cifar10")
    drawn = Sample.draw(open_dataset(f"cifar10:{kit / 'cifar10_jpeg.tar.xz'}"), 500, 0)
    assert model.transform is not None
    photos = torch.stack([model.transform(drawn[at].photo) for at in range(500)])
    hits = (predict(model, photos).argmax(1) == torch.tensor(drawn.labels())).float().mean()
    assert abs(float(hits) - float(card()["top class is right"].rstrip("%")) / 100) < 4 * (0.85 * 0.15 / 500) ** 0.5


@pytest.mark.parametrize("label", range(10))
def test_every_class_is_a_target(label: int) -> None:
    explained = tokentm.explain(tokentm.load_model("cifar10"), open_dataset("examples")[label].photo, label)
    assert explained.class_name == (tuple(example_photos())[label],)
    assert float(explained.relevance.max()) > 0
