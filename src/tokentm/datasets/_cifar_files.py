"""CIFAR-10 and CIFAR-100 as people have them on disk, read into arrays; nothing is extracted, nothing is executed.

Read are trees of images ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, and the Python batches of the original
publication (``cifar-10-batches-py``, ``cifar-100-python``), either as a folder or inside a tar archive.
"""

import hashlib
import io
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokentm.errors import InputError

__all__ = ["SIDE", "SPLITS", "CifarFiles", "read_cifar"]

SIDE: Final = 32
SPLITS: Final = ("train", "test")
_IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png"})
_BATCH_FOLDERS: Final = ("cifar-10-batches-py", "cifar-100-python")
# Names of the batches with the md5 that their publisher gives; "test" and "train" alone are CIFAR-100's.
_MD5: Final = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_NAMES_KEY: Final = {"batches.meta": "label_names", "meta": "fine_label_names"}
_LABELS_KEY: Final = {"train": "fine_labels", "test": "fine_labels"}  # "labels" in all others
_BROKEN: Final = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)

_Read = Callable[[], bytes]
_Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CifarFiles:
    """What was read: per split the images, (n, 32, 32, 3) uint8, and labels, (n,) int64; and the class names.

    Images of a tree are ordered by class, then by file name; those of batches as published.
    """

    splits: dict[str, _Split]
    class_names: tuple[str, ...]


def read_cifar(path: str | Path, splits: Collection[str] = SPLITS, *, published: bool = False) -> CifarFiles:
    """Read CIFAR-10 or CIFAR-100 (fine labels) from a folder or an archive.

    Args:
        path: A tar archive (of any compression) or a folder; of images, or of the original Python batches.
        splits: Which of "train" and "test" to read.
        published: Also require that Python batches are, byte by byte, those of the original publication.

    Raises:
        InputError: There is no such file, something in it is broken or not as expected; the text says what.
    """
    path = Path(path)
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"CIFAR has the splits 'train' and 'test', got {min(unknown)!r}.")
    images: dict[tuple[str, str, str], np.ndarray] = {}
    batches: dict[str, dict[str, Any]] = {}
    class_names: set[str] = set()
    try:
        for name, read in _entries(path):
            where = f"'{name}' in '{path}'"
            if _is_image(name):
                split, class_name, file = name.parts[-3:]
                class_names.add(class_name)
                if split in splits:
                    images[split, class_name, file] = _decode(read(), where)
            elif name.name in _NAMES_KEY or _split_of(name.name) in splits:
                batches[name.name] = _unpickle(read(), name.name, where, published=published)
    except _BROKEN as error:
        raise InputError(f"'{path}' cannot be read to its end ({error}); copy or download it again.") from error
    if batches:
        return _from_batches(path, batches, splits)
    return _from_images(path, images, tuple(sorted(class_names)), splits)


def _entries(path: Path) -> Iterator[tuple[PurePosixPath, _Read]]:
    """Yield the name of every file that matters, with what reads it; an archive can be read in this order only."""
    if path.is_dir():
        for pattern in ("*", *(f"{folder}/*" for folder in _BATCH_FOLDERS), *(f"{split}/*/*" for split in SPLITS)):
            for file in sorted(path.glob(pattern)):
                name = PurePosixPath(file.relative_to(path).as_posix())
                if file.is_file() and (_is_image(name) or name.name in _MD5):
                    yield name, file.read_bytes
        return
    if not path.is_file():
        raise InputError(f"There is no file or folder '{path}'; give CIFAR's archive or the folder it holds.")
    if not tarfile.is_tarfile(path):
        raise InputError(f"'{path}' is no tar archive; give cifar-10-python.tar.gz or a tar of train/<class>/*.jpg.")
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None and (_is_image(name) or name.name in _MD5):
                yield name, content.read


def _is_image(name: PurePosixPath) -> bool:
    return len(name.parts) >= 3 and name.parts[-3] in SPLITS and name.suffix.lower() in _IMAGE_SUFFIXES


def _split_of(batch: str) -> str:
    return "test" if batch.startswith("test") else "train"


def _decode(content: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.size != (SIDE, SIDE):  # before decoding: the file may claim any size
                raise InputError(f"{where} has {image.width}×{image.height} pixels, expected {SIDE}×{SIDE}.")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no readable JPEG or PNG image.") from error


def _from_images(
    path: Path, images: dict[tuple[str, str, str], np.ndarray], class_names: tuple[str, ...], splits: Collection[str]
) -> CifarFiles:
    found: dict[str, _Split] = {}
    for split in splits:
        keys = sorted(key for key in images if key[0] == split)
        if not keys:
            raise InputError(
                f"'{path}' holds no {split} images; expected {split}/<class>/*.jpg, or CIFAR's Python batches."
            )
        labels = np.array([class_names.index(class_name) for _, class_name, _ in keys])
        found[split] = np.stack([images[key] for key in keys]), labels
    return CifarFiles(found, class_names)


def _from_batches(path: Path, batches: dict[str, dict[str, Any]], splits: Collection[str]) -> CifarFiles:
    meta = next((name for name in _NAMES_KEY if name in batches), None)
    if meta is None:
        raise InputError(f"'{path}' holds neither batches.meta nor meta, where the names of CIFAR's classes are.")
    names = batches[meta].get(_NAMES_KEY[meta])
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise InputError(f"'{meta}' in '{path}' has no list {_NAMES_KEY[meta]!r} of class names.")
    class_names = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)
    found: dict[str, _Split] = {}
    for split in splits:
        parts = [name for name in sorted(batches) if name not in _NAMES_KEY and _split_of(name) == split]
        if not parts:
            raise InputError(f"'{path}' holds none of CIFAR's {split} batches.")
        columns = [_rows(batches[name], name, f"'{name}' in '{path}'", len(class_names)) for name in parts]
        found[split] = np.concatenate([images for images, _ in columns]), np.concatenate([row for _, row in columns])
    return CifarFiles(found, class_names)


def _rows(batch: dict[str, Any], name: str, where: str, classes: int) -> _Split:
    """Return images and labels of one batch, whose rows hold the red, then the green, then the blue plane."""
    data, key = batch.get("data"), _LABELS_KEY.get(name, "labels")
    labels = batch.get(key)
    if not isinstance(data, _Array) or len(data.shape) != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise InputError(f"{where} has no array 'data' of {3 * SIDE * SIDE} bytes per image.")
    if not isinstance(labels, list) or len(labels) != data.shape[0] or not labels:
        raise InputError(f"{where} has no list {key!r} with one label for each of its {data.shape[0]} images.")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise InputError(f"{where} has labels that are no numbers from 0 to {classes - 1}.")
    images = data.array().reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


# --- pickles ------------------------------------------------------------------------------------------------------


def _unpickle(content: bytes, name: str, where: str, *, published: bool) -> dict[str, Any]:
    # md5 guards against a broken download, not against an attacker: the reader below trusts no file either way.
    if published and hashlib.md5(content, usedforsecurity=False).hexdigest() != _MD5[name]:
        raise InputError(f"{where} is not the published file (its md5 is not {_MD5[name]}); download it again.")
    try:
        batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except Exception as error:  # a damaged pickle can make the machine raise nearly anything
        raise InputError(f"{where} is damaged or no batch of CIFAR ({type(error).__name__}).") from error
    if not isinstance(batch, dict):
        raise InputError(f"{where} holds a {type(batch).__name__}, expected CIFAR's dictionary.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


class _Kind:
    """Stands in for numpy's dtype: remembers its name and ignores its state."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, _: object) -> None:
        pass


class _Array:
    """Stands in for numpy's array: takes only bytes, and only as many as its shape asks for."""

    shape: tuple[int, ...] = ()
    content: bytes = b""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _, shape, kind, by_columns, content = state
        if kind.name != "u1" or by_columns or len(content) != int(np.prod(shape, dtype=object)):
            _refuse("has an array that is not of plain bytes, row by row")
        self.shape, self.content = shape, content

    def array(self) -> np.ndarray:
        return np.frombuffer(self.content, np.uint8).reshape(self.shape)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        _refuse(f"asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _refuse(why: str) -> NoReturn:
    raise InputError(f"{why}, which no batch of CIFAR has; it was not read on.")


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and arrays of bytes; whatever else a pickle names is refused."""

    _STAND_INS: Final = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, so that nothing outside this file is ever called."""
        found = self._STAND_INS.get((module, name))
        return found if found is not None else _refuse(f"asks for {module}.{name}")
