"""Offsets: opaque tokens for byte positions, which sort as strings (design, Decided; protocol 8)."""

from __future__ import annotations

import re

from streamkeep.storage._errors import InvalidOffset

START = "-1"
NOW = "now"

_FORM = re.compile(r"[0-9]{16}_[0-9]{16}")
_MAX_POSITION = 10**16 - 1


def format_offset(position: int) -> str:
    """Write a byte position as an offset.

    Raises:
        ValueError: the position is negative or has more than 16 digits.
    """
    if not 0 <= position <= _MAX_POSITION:
        raise ValueError(f"no offset for position {position}")
    return "0000000000000000_" + str(position).zfill(16)


def parse_offset(token: str) -> int | None:
    """Read an offset: the byte position, with `-1` as 0, or None for `now`.

    Raises:
        InvalidOffset: the token has any other form.
    """
    if token == START:
        return 0
    if token == NOW:
        return None
    # ASCII digits only, matched whole: `$` and `\d` would let a newline and other scripts' digits through.
    if not _FORM.fullmatch(token) or token[:16].strip("0"):
        raise InvalidOffset(f"not an offset: {token[:64]!r}")
    return int(token[17:])
