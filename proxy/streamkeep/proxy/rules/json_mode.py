"""JSON mode on the way in (protocol 9.1): a posted body becomes messages, each kept as it was written.

Nothing is parsed and written again, so big integers, number spelling, key order and repeated keys stay. An array is
flattened by exactly one level. What Python's parser accepts beyond JSON (`NaN`, `Infinity`) is refused.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

# The decoder lets no other thread run while it makes arrays: at this number it is done within some 30 ms.
MAX_ARRAYS = 100_000

_WHITESPACE = re.compile(r"[ \t\n\r]*")


class InvalidJson(ValueError):
    """The body is not one JSON text in UTF-8, is nested too deeply, or holds too many arrays."""


def split_messages(body: bytes) -> list[bytes]:
    """The messages of a body: the elements of its array, or the one value that is no array. `[]` gives none.

    Raises:
        InvalidJson: nothing of the body may be stored.
    """
    try:
        text = body.decode("utf-8")
        _check_arrays(text)
        messages, end = _array(text) if text.startswith("[", _after_whitespace(text, 0)) else _one(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise InvalidJson(f"the body is not JSON: {exc}") from None
    except RecursionError:
        raise InvalidJson("the body's JSON is nested too deeply") from None
    if _WHITESPACE.fullmatch(text, end) is None:
        raise InvalidJson("the body holds more than one JSON text")
    return [message.encode() for message in messages]


def is_one_value(text: str) -> bool:
    """Whether a text is one JSON value, not nested too deeply and without too many arrays."""
    try:
        _check_arrays(text)
        _, end = _one(text)
    except (json.JSONDecodeError, InvalidJson, RecursionError):
        return False
    return _WHITESPACE.fullmatch(text, end) is not None


def _check_arrays(text: str) -> None:
    if text.count("[") > MAX_ARRAYS:
        raise InvalidJson(f"the body holds more than {MAX_ARRAYS} arrays; send it in parts")


def _one(text: str) -> tuple[list[str], int]:
    start = _after_whitespace(text, 0)
    end = _value_end(text, start)
    return [text[start:end]], end


def _array(text: str) -> tuple[list[str], int]:
    position = _after_whitespace(text, _after_whitespace(text, 0) + 1)
    messages: list[str] = []
    if text.startswith("]", position):
        return messages, position + 1
    while True:
        end = _value_end(text, position)
        messages.append(text[position:end])
        position = _after_whitespace(text, end)
        if text.startswith("]", position):
            return messages, position + 1
        if not text.startswith(",", position):
            raise json.JSONDecodeError("expected ',' or ']'", text, position)
        position = _after_whitespace(text, position + 1)


def _after_whitespace(text: str, position: int) -> int:
    found = _WHITESPACE.match(text, position)
    return position if found is None else found.end()


def _value_end(text: str, position: int) -> int:
    _, end = _DECODER.raw_decode(text, position)
    return end


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is not JSON")


def _drop(found: object) -> None:
    """A number or object that is only checked. Numbers are never made: Python refuses to make the largest. And a function
    of Python's lets other threads run, which the decoder itself does not until it has read a whole value."""


_DECODER = json.JSONDecoder(
    object_pairs_hook=_drop, parse_int=_drop, parse_float=_drop, parse_constant=_refuse_constant
)
