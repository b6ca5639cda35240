"""Where one JSON value ends and the next one begins, in text that comes in pieces. The values' own bytes are kept."""

from __future__ import annotations

import json
import re

_DEFAULT_MAX_BYTES = 16 * 1024 * 1024

_IN_STRING = re.compile(rb'["\\]')
_IN_VALUE = re.compile(rb'["{}\[\]]')
_BETWEEN = re.compile(rb'["{}\[\],\s]')


class JsonValues:
    """Values one after the other, with white space between them; with `of_arrays`, the items of arrays.

    Each is checked when it is whole. Only one that is not holds memory, `max_bytes` of it at most.
    """

    def __init__(self, *, of_arrays: bool = False, max_bytes: int = _DEFAULT_MAX_BYTES) -> None:
        self._base = 1 if of_arrays else 0
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._begin = 0
        self._at = 0
        self._depth = 0
        self._is_in_string = False
        self._count = 0

    @property
    def holds_back(self) -> bool:
        """Whether the beginning of something waits for its rest."""
        return self._depth > 0 or bool(self._buffer.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """What is whole now. Raises: ValueError: it is not JSON, or a value is too large."""
        self._buffer += data
        found: list[bytes] = []
        while (match := self._pattern.search(self._buffer, self._at)) is not None:
            self._at = match.end()
            self._step(match[0], found)
        # What follows a backslash may not be here yet, and is not to be looked at when it comes.
        self._at = max(self._at, len(self._buffer))
        del self._buffer[: self._begin]
        self._at -= self._begin
        self._begin = 0
        if len(self._buffer) > self._max_bytes:
            raise ValueError(f"message {self._count + 1} has more than {self._max_bytes} bytes")
        return found

    def end(self) -> list[bytes]:
        """What is left. Raises: ValueError: it is not whole."""
        found: list[bytes] = []
        if self._depth or self._is_in_string:
            raise ValueError(f"the input ends inside of message {self._count + 1}")
        if not self._base:
            self._take(len(self._buffer), found)
        elif self._buffer.strip():
            raise ValueError("the input is not a JSON array")
        return found

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._is_in_string:
            return _IN_STRING
        return _BETWEEN if self._depth <= self._base else _IN_VALUE

    def _step(self, token: bytes, found: list[bytes]) -> None:
        if self._is_in_string:
            self._is_in_string = token != b'"'
            self._at += token == b"\\"
        elif token == b'"':
            self._is_in_string = True
        elif token in b"{[":
            self._open(token)
        elif token in b"}]":
            self._shut(token, found)
        elif self._depth == self._base and (token == b"," if self._base else token.isspace()):
            self._take(self._at - 1, found)
            self._begin = self._at

    def _open(self, token: bytes) -> None:
        self._depth += 1
        if self._depth == self._base:
            if token != b"[" or self._buffer[self._begin : self._at - 1].strip():
                raise ValueError("the input is not a JSON array")
            self._begin = self._at

    def _shut(self, token: bytes, found: list[bytes]) -> None:
        self._depth -= 1
        if self._depth < 0 or (self._depth < self._base and token != b"]"):
            raise ValueError(f"message {self._count + 1} is not JSON")
        if self._depth < self._base:
            self._take(self._at - 1, found)
            self._begin = self._at
        elif self._depth == 0:
            self._take(self._at, found)
            self._begin = self._at

    def _take(self, end: int, found: list[bytes]) -> None:
        value = bytes(self._buffer[self._begin : end]).strip()
        if not value:
            return
        self._count += 1
        try:
            json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"message {self._count} is not JSON") from exc
        found.append(value)
