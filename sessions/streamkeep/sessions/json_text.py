"""JSON as others may read it, too: neither deep nor with numbers that only some of them know."""

from __future__ import annotations

import json
import math
from typing import Any

from streamkeep.sessions.nesting import is_deeper

MAX_DEPTH = 64

# What the longest number that every reader of JSON understands has at most.
_MAX_DIGITS = 300


class TooDeep(ValueError):
    """Arrays and objects are nested more than `MAX_DEPTH` times."""


def json_value(text: str) -> Any:
    """A JSON value that can be handed on. Raises: ValueError, TooDeep."""
    if is_deeper(text, MAX_DEPTH):
        raise TooDeep("this is too deep")
    return _DECODER.decode(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _short(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(text)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# Made once: a decoder that refuses something takes longer to make than a small event to decode.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, parse_int=_short)
