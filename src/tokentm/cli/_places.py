"""Where photos come from and where results go."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tokentm.errors import ImageError, InputError

__all__ = ["find_photos", "output_folder"]


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create ``folder`` at once, so that a refusal comes before minutes of work; what stays empty is removed again."""
    from tokentm.files import writable_folder

    missing = [part for part in (folder, *folder.parents) if not os.path.lexists(part)]
    try:
        writable_folder(folder)
        yield
    finally:
        for part in missing:
            with suppress(OSError):  # it holds something, as it should
                part.rmdir()


def find_photos(
    given: Sequence[str | Path], results: Path, written: Sequence[str] | None = None
) -> dict[str, str | Path]:
    """Every photo in ``given`` once, with the name its results get in the folder ``results``.

    What is given are paths, or addresses in object stores, of photos and folders.

    The name is the path below the folder it was found in, without suffix; of several folders given, the folder's own
    name stands before it. Photos that would get the same name (``a.jpg`` and ``a.png``) keep their suffix as part of
    it. Results of an earlier run are not taken for photos.

    Args:
        given: As users type it.
        results: The folder of the results.
        written: Names of the results without suffix, if they are not those of the photos.

    Raises:
        ImageError: There is no such file, or no image in a folder.
        InputError: Results would replace photos or lie among them.
    """
    from tokentm.models.images import is_image_name
    from tokentm.models.urls import is_url

    places = [place if is_url(place) else Path(place) for place in given]
    several = sum(not is_image_name(place) if isinstance(place, str) else _is_folder(place) for place in places) > 1
    photos: dict[str | Path, str | Path] = {}  # where each really is, so that none comes twice: as the user wrote it
    below: dict[str | Path, Path] = {}  # the same: what its name is made of
    for place in places:
        if isinstance(place, str):
            for url, whence in _photos_below(place, several):
                photos.setdefault(url, url)
                below.setdefault(url, whence)
            continue
        for path in _photos_at(place, results):
            real = path.resolve()
            photos.setdefault(real, path)
            below.setdefault(real, _below(place, path, several))
    named = dict(zip(_distinct(list(below.values())), photos.values(), strict=True))
    for name in named if written is None else written:
        picture, *numbers = (results / f"{name}{suffix}" for suffix in (".png", ".npz", ".json"))
        if picture.resolve() in photos or (os.path.lexists(picture) and not any(map(os.path.lexists, numbers))):
            whose = f"of {named[name]} " if written is None else ""
            raise InputError(
                f"The result {whose}would replace {picture}, which is no earlier result; give another --out."
            )
    return named


def _photos_below(url: str, several: bool) -> Iterator[tuple[str, Path]]:
    """Address of each photo at or below an address, and what its name is made of."""
    from tokentm.models.images import find_urls, is_image_name

    named = several and not is_image_name(url)
    for file in find_urls(url):
        yield file.url, Path(url.rstrip("/").rpartition("/")[2] if named else "") / file.below


def _photos_at(place: Path, results: Path) -> list[Path]:
    from tokentm.models.images import find_images

    if not _is_folder(place):
        if not os.path.lexists(place):
            raise ImageError(f"There is no file {place}; give images or folders of images.")
        return [place]
    root, skipped = place.resolve(), results.resolve()
    if skipped == root:
        raise InputError(f"Results would lie among the photos in {str(place)!r}; give another --out.")
    if not skipped.is_relative_to(root):
        return find_images(place)
    photos = [path for path in find_images(place) if not path.resolve().is_relative_to(skipped)]
    if not photos:
        raise ImageError(f"{place} holds no images beside the results in {results}; give images or folders of images.")
    return photos


def _below(place: Path, photo: Path, several: bool) -> Path:
    if not _is_folder(place):
        return Path(photo.name)
    return (place.resolve().name if several else Path()) / photo.relative_to(place)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises for a name that is too long)


def _distinct(paths: list[Path]) -> list[str]:
    """A name for each path, none twice, not even where upper and lower case are the same."""
    choices = [(str(path.with_suffix("")), str(path.with_name(path.name.replace(".", "_")))) for path in paths]
    wanted = Counter(choice.casefold() for both in choices for choice in set(both))
    names: dict[str, str] = {}
    for stem, whole in choices:
        name = next((choice for choice in (stem, whole) if wanted[choice.casefold()] == 1), stem)
        count = 2
        while name.casefold() in names:
            name, count = f"{stem}-{count}", count + 1
        names[name.casefold()] = name
    return list(names.values())
