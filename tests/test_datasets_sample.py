"""A random part of a data set."""

from tests.support.data_files import check_contract, keys, photos
from tests.support.scenes import Scenes
from tokentm.datasets.labels import Labelled
from tokentm.datasets.open_dataset import open_dataset
from tokentm.datasets.sample import Sample


def test_a_sample_is_drawn_by_its_seed_alone_and_keeps_the_order() -> None:
    whole = open_dataset("examples")
    drawn = Sample.draw(whole, 4, 7)
    check_contract(drawn)
    assert keys(drawn) == keys(Sample.draw(whole, 4, 7)) == sorted(keys(drawn))
    assert [drawn[at].label for at in range(4)] == list(drawn.labels())
    assert [drawn.class_names[label] + ".png" for label in drawn.labels()] == keys(drawn)
    assert {tuple(keys(Sample.draw(whole, 4, seed))) for seed in range(9)} != {tuple(keys(drawn))}
    assert keys(Sample.draw(whole, 99, 0)) == keys(whole)


def test_objects_of_one_photo_stay_together() -> None:
    scenes = open_dataset("shapes:30")
    drawn = Sample.draw(scenes, 25, 3)
    assert photos(drawn) == [key.rpartition("-")[0] for key in keys(drawn)]
    assert 1 < len(set(photos(drawn))) < 25


def test_where_photos_are_not_told_each_example_has_its_own() -> None:
    for whole in (open_dataset("examples"), Scenes(8)):
        assert photos(whole) == keys(whole)
        drawn = Sample.draw(whole, 5, 0)
        assert photos(drawn) == keys(drawn)


def test_every_example_is_as_likely_as_any_other() -> None:
    whole = open_dataset("examples")
    times = [0] * 10
    for seed in range(2_000):
        for index in Sample.draw(whole, 3, seed).indices:
            times[index] += 1
    assert all(abs(count - 600) < 90 for count in times)  # more than four standard deviations


def test_what_was_drawn_is_part_of_the_fingerprint() -> None:
    whole = open_dataset("examples")
    prints = {Sample(whole, indices).fingerprint() for indices in ((0, 1), (0, 2), tuple(range(10)))}
    assert len(prints | {whole.fingerprint()}) == 4


def test_labels_that_the_whole_does_not_know_stay_unknown() -> None:
    scenes = open_dataset("shapes:3")
    assert not isinstance(scenes, Labelled)
    assert Sample.draw(scenes, 2, 0).labels() == ()
