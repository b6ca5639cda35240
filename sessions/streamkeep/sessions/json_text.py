"""JSON that came from elsewhere, as all readers read it: not so deep, nor with such numbers, that only some of them can."""

from __future__ import annotations

import json
import math
import re
from array import array
from itertools import accumulate
from typing import Any, TypeVar

T = TypeVar("T")

MAX_DEPTH = 64

_MAX_DIGITS = 300
# A text that never ends is one too, so that no text is looked at twice.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# So much of a text that other threads need not wait long, and nothing in quotes is cut in two.
_PIECE = re.compile(rf'(?:[^"]{{1,64}}|{_STRING.pattern}){{1,1024}}+', re.DOTALL)
_BRACKETS = b"[]{}"
_STEPS = bytes.maketrans(_BRACKETS, array("b", (1, -1, 1, -1)).tobytes())
_ALL_ELSE = bytes(set(range(256)) - set(_BRACKETS))


class TooDeep(ValueError):
    """Arrays and objects are nested too often."""


def json_value(text: str, *, max_depth: int = MAX_DEPTH) -> Any:
    """What a text of JSON says.

    Raises:
        TooDeep: it is nested more than `max_depth` times.
        ValueError: it is no JSON, or a number is too large for a float.
    """
    if text.count("[") + text.count("{") > max_depth:
        _check_depth(text, max_depth)
    return _DECODER.decode(text)


def let_others_run(found: T) -> T:
    """For the hooks of a decoder. A function of Python's lets other threads run, which the decoder's own code does not until
    it has read a whole text."""
    return found


def whole_number(value: object, least: int, most: int) -> int | None:
    """A whole number of this range, or None. It may be spelled as a float: not all languages know one from the other."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else None


def _check_depth(text: str, max_depth: int) -> None:
    # In a few steps for each piece, whatever it holds: a megabyte of brackets would take a tenth of a second one by one.
    depth = 0
    for piece in _PIECE.finditer(text):
        steps = _STRING.sub("", piece[0]).encode(errors="replace").translate(_STEPS, _ALL_ELSE)
        depths = list(accumulate(array("b", steps), initial=depth))
        if max(depths) > max_depth:
            raise TooDeep(f"it is nested more than {max_depth} times")
        depth = depths[-1]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        _finite(text)
    return int(text)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# Made once: a decoder that refuses something takes longer to make than a small text to decode.
_DECODER = json.JSONDecoder(object_hook=let_others_run, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
