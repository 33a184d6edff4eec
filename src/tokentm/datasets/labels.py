"""From the labels of a data set to the classes of a model."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from tokentm.datasets._synsets import imagenet_names, imagenet_synsets, is_synset
from tokentm.datasets.registry import Dataset
from tokentm.errors import DatasetError, nearest
from tokentm.models.vision_model import VisionModel

__all__ = ["Labelled", "match_labels"]

_UNMATCHED: Final = -1
_SHOWN: Final = 60  # letters of a class name in an error


@runtime_checkable
class Labelled(Protocol):
    """A data set that knows all its labels without reading an example."""

    def labels(self) -> Sequence[int | None]:
        """Label of every example."""
        ...


def match_labels(dataset: Dataset, model: VisionModel, *, partial: bool = False) -> tuple[int, ...] | None:
    """Return the model's class for each label of a data set.

    Names are compared without regard to upper and lower case, ``_`` counts as a space, and of several names separated
    by commas one in common is enough. WordNet ids (n01440764) count as the names ImageNet gives them; a model of
    ImageNet's 1,000 classes has them in alphabetical order. If all names agree in their order the labels are the
    classes, even where a name occurs twice (ImageNet has two cranes).

    Args:
        dataset: Whose labels to translate.
        model: Whose classes to find.
        partial: Return −1 for labels the model does not know rather than raise. Examples with such a label still have
            their mask, and the predicted class can be explained.

    Returns:
        One class per name in ``dataset.class_names``, or None where the labels already are indices into the model's
        classes.

    Raises:
        DatasetError: A label is no class of the model, or could be several.
    """
    names, classes = dataset.class_names, model.anatomy.num_classes
    if names is None:
        _check_range(dataset, model)
        return None
    if found := _imagenet(names, model):
        return found
    if model.class_names is None:
        if partial:
            return (_UNMATCHED,) * len(names)
        raise DatasetError(
            f"Data set {dataset.name!r} names its {len(names)} classes ({_short(names[0])!r}, …) and {model.name} only "
            f"counts its {classes}; load the model with class_names=."
        )
    if len(names) == classes and all(
        _synonyms(name) & _synonyms(known) for name, known in zip(names, model.class_names, strict=True)
    ):
        return tuple(range(classes))
    return _by_name(dataset, names, model, model.class_names, partial)


def _check_range(dataset: Dataset, model: VisionModel) -> None:
    classes = model.anatomy.num_classes
    known = dataset.labels() if isinstance(dataset, Labelled) else ()
    if strange := next((label for label in known if label is not None and not 0 <= label < classes), None):
        raise DatasetError(
            f"Data set {dataset.name!r} has the label {strange} and {model.name} has {classes} classes, 0 to "
            f"{classes - 1}; give labels of this model, or class names."
        )


def _imagenet(names: tuple[str, ...], model: VisionModel) -> tuple[int, ...] | None:
    """Return the classes of WordNet ids in a model of ImageNet's 1,000 classes, None if they or it are something else.

    A model says that it is one by its number of classes, and by its names if it has any: custom models have 1,000
    classes too.
    """
    if model.anatomy.num_classes != 1000 or not all(map(is_synset, names)):
        return None
    order = {synset: index for index, synset in enumerate(imagenet_synsets())}
    if not order.keys() >= set(names):
        return None
    if model.class_names is not None:
        words = imagenet_names()
        alike = sum(
            bool(_synonyms(f"{synset}, {words[synset]}") & _synonyms(name))
            for synset, name in zip(order, model.class_names, strict=True)
        )
        if 2 * alike < len(order):  # publishers spell a few names differently
            return None
    return tuple(order[name] for name in names)


def _by_name(
    dataset: Dataset, names: tuple[str, ...], model: VisionModel, known: tuple[str, ...], partial: bool
) -> tuple[int, ...]:
    whole, single = _index(known, lambda name: {_plain(name)}), _index(known, _synonyms)
    words = imagenet_names() if any(map(is_synset, names)) else {}
    result = []
    for name in names:
        found = whole.get(_plain(name), set())
        # A name and what ImageNet calls it: a model may have either.
        meant = _synonyms(f"{name}, {words[name]}") if name in words else _synonyms(name)
        if len(found) != 1:
            found = found or set().union(*(single.get(word, set()) for word in meant))
        if len(found) != 1 and not partial:
            raise DatasetError(_mismatch(dataset, model, known, words.get(name, name), sorted(found)))
        result.append(next(iter(found)) if len(found) == 1 else _UNMATCHED)
    return tuple(result)


def _index(known: tuple[str, ...], words: Callable[[str], set[str]]) -> Mapping[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for index, name in enumerate(known):
        for word in words(name):
            found[word].add(index)
    return found


def _mismatch(dataset: Dataset, model: VisionModel, known: tuple[str, ...], name: str, found: list[int]) -> str:
    first = name.partition(",")[0]
    masks = "; its masks can still be used with the predicted class" if dataset.has_masks else ""
    if found:
        several = " and ".join(f"{index} ({_short(known[index])})" for index in found[:3])
        return f"The class {_short(first)!r} of {dataset.name} could be {several} of {model.name}{masks}."
    words = {word for entry in known for word in _synonyms(entry)}
    return (
        f"Data set {dataset.name!r} has the class {_short(first)!r}, which is none of the {len(known)} of {model.name}"
        f"{masks}.{nearest(_plain(first), words)}"
    )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _synonyms(name: str) -> set[str]:
    return {plain for part in name.split(",") if (plain := _plain(part))}


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…"
