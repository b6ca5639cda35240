"""How deep a text of JSON is nested, told without reading it: readers of JSON differ in what they can take."""

from __future__ import annotations

import re

# A text that never ends is one too, so that no text is looked at twice.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(r"[][{}]")


def is_deeper(text: str, most: int) -> bool:
    """Whether arrays and objects are nested more than `most` times in it."""
    if text.count("[") + text.count("{") <= most:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > most:
            return True
    return False
