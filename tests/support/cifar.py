"""Tiny CIFARs: random pictures as trees of images and as Python batches, packed or not."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("airplane", "bird", "cat")


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """PNG by default: unlike JPEG it gives every pixel back."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def tree(archive: Path, *, per_class: int = 4, kind: str = "JPEG") -> Path:
    """Write a tar of train/<class>/NNNN.jpg and test/<class>/NNNN.jpg, classes and files in no order."""
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    with tarfile.open(archive, "w:xz") as file:
        for split, seed in (("test", 7), ("train", 3)):
            for label, name in reversed(list(enumerate(NAMES))):
                for number, picture in reversed(list(enumerate(pictures(per_class, seed + label)))):
                    add(file, f"./{split}/{name}/{number:04}.{suffix}", encoded(picture, kind))
    return archive


def planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def batches(folder: Path, *, fine: bool = False, rows: int = 4) -> Path:
    """Write CIFAR-10's Python batches, or CIFAR-100's, as Python 2 would: protocol 2, keys of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ("train", "test") if fine else (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
    names = [name.encode() for name in NAMES]
    for seed, part in enumerate(parts):
        labels = [(seed + row) % len(NAMES) for row in range(rows)]
        held = {b"fine_labels": labels, b"coarse_labels": [0] * rows} if fine else {b"labels": labels}
        content = {b"data": planes(pictures(rows, seed)), b"batch_label": part.encode(), **held}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    meta = {b"fine_label_names": names, b"coarse_label_names": [b"x"]} if fine else {b"label_names": names}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    return archive
