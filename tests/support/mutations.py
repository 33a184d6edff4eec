"""Damaged files: what disks, networks, editors and other programs do to them, drawn from a seed."""

import json
import random
from pathlib import Path
from typing import Any

__all__ = ["damage"]

# What stands where something else should: of another type, empty, out of range, absurd.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 1e308, 10**12, -(10**30), 0.5, float("nan"), float("inf"), "", "x", "\x00", "é\ud800",
    "../../etc/passwd", [], [[]], [None], {}, {"a": {"b": []}}, [1, 2, 3, 4, 5, 6, 7, 8],
)  # fmt: skip


def damage(path: Path, seed: int) -> str:
    """Change the file in one way, the same for the same seed; returns what was done, in words."""
    chance = random.Random(seed)  # noqa: S311  (nothing secret is drawn)
    before = path.read_bytes()
    for _ in range(20):  # some changes leave a file as it was
        name, content = _changed(path, before, chance)
        if content != before:
            path.write_bytes(content)
            return name
    path.write_bytes(before[:-1])
    return "last byte lost"


def _changed(path: Path, before: bytes, chance: random.Random) -> tuple[str, bytes]:
    if path.suffix == ".json" and chance.random() < 0.8:
        return _json(before, chance)
    if path.suffix == ".safetensors" and chance.random() < 0.5:
        length = int.from_bytes(before[:8], "little")
        name, header = _json(before[8 : 8 + length], chance)
        return f"header: {name}", len(header).to_bytes(8, "little") + header + before[8 + length :]
    kinds = (_flipped, _cut, _zeroed, _doubled, _swapped, _noise, _text, _head)
    return chance.choice(kinds)(before, chance)


def _flipped(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    changed, count = bytearray(content), chance.choice((1, 1, 3, 30))
    # Headers say what the rest is, so half of the damage is done there.
    for _ in range(count):
        end = len(changed) if chance.random() < 0.5 else min(len(changed), 200)
        changed[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return f"{count} bits flipped", bytes(changed)


def _cut(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    length = chance.choice((0, 1, 8, len(content) // 2, len(content) - 1, chance.randrange(len(content))))
    return f"cut to {length} bytes", content[:length]


def _zeroed(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    start, length = _part(content, chance)
    return f"{length} bytes zeroed at {start}", content[:start] + bytes(length) + content[start + length :]


def _doubled(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    start, length = _part(content, chance)
    return f"{length} bytes doubled at {start}", content[: start + length] + content[start:]


def _swapped(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    start, length = _part(content, chance)
    return f"{length} bytes moved from {start} to the end", content[:start] + content[start + length :] + content[
        start : start + length
    ]


def _noise(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    return "noise instead", chance.randbytes(len(content) % 5000)


def _text(content: bytes, chance: random.Random) -> tuple[str, bytes]:  # noqa: ARG001
    page = b"<!DOCTYPE html><html><body>404: not found</body></html>"
    return "a page or text instead", chance.choice((page, b"\n", b"{}", b"[]", b"null", b"version https://git-lfs\n"))


def _head(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    return "bytes before it", chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\x00" * 8)) + content


def _part(content: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(content))
    return start, min(len(content) - start, chance.choice((1, 4, 16, 256, len(content) // 3 + 1)))


def _json(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """One value, somewhere in the tree, changed, removed or renamed."""
    tree = json.loads(content)
    places = list(_places(tree))
    holder, key = chance.choice(places)
    kind = chance.choice(("strange", "strange", "strange", "removed", "renamed", "doubled"))
    if kind == "removed":
        del holder[key]
    elif kind == "renamed" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "doubled" and isinstance(holder[key], int | float | str | list):
        holder[key] = holder[key] * 2
    else:
        kind = "strange"
        holder[key] = chance.choice(STRANGE)
    return f"{kind} at {key!r}", json.dumps(tree, ensure_ascii=True).encode()


def _places(tree: Any) -> Any:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(entries):
        yield tree, key
        yield from _places(value)
