"""What every message to users must be: one sentence, perhaps with the nearest known names behind it."""

import re

__all__ = ["assert_one_sentence"]

_HINT = re.compile(r" Did you mean '[^?]*\?$")
_BOUNDARY = re.compile(r"(?<!\be\.g)(?<!\bi\.e)[.?!] +(?=[A-Z])")


def assert_one_sentence(error: BaseException) -> None:
    """Fail unless the text of ``error`` is a sentence that a person can read at once."""
    text = str(error)
    sentence = _HINT.sub("", text)
    assert "\n" not in text, text
    assert len(text) < 400, text
    assert text.isprintable(), text
    assert sentence.endswith("."), text
    assert not _BOUNDARY.search(sentence), text
    first = sentence.split()[0]
    assert first[0].isupper() or set(first) & set("'/=.@"), text  # a path, name or argument may begin it
