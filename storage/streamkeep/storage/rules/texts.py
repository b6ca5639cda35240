"""Which text every engine can keep: Unicode without NUL and without halves of characters."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
