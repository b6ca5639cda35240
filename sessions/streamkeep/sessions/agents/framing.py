"""The bytes of an agent's answer as JSON objects, whatever frames them: server-sent events, lines of JSON, or one value.

Which of these it is, the first byte tells: no line of an event stream begins with a brace or a bracket. Lines end with LF,
CR LF or CR. How the bytes were cut changes nothing. What is no JSON object that all can read is left out. After an event
that is too large, nothing more is read: what follows would have a hole in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from streamkeep.sessions.json_text import json_value

Event = Mapping[str, Any]
EndMark = Literal["[DONE]"]

MAX_EVENT_BYTES = 1024 * 1024

END_MARK: Final = "[DONE]"
"""What stands in the place of a last event, in many formats."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_MAX_ERROR_CHARACTERS = 500


class AnswerEvents:
    """The events of one body. `is_too_large` is set with the event that is."""

    def __init__(self) -> None:
        self.is_too_large = False
        self._opening: bytes | None = b""
        self._lines = _Lines()
        self._framing: _EventStream | _JsonLines = _EventStream()

    @property
    def held_bytes(self) -> int:
        """How much there is of an event that is not complete."""
        return self._lines.rest_bytes + self._framing.size_bytes

    def feed(self, data: bytes) -> Iterator[Event | EndMark]:
        """The events that the next bytes complete."""
        if self._opening is not None:
            data = self._open(data)
        if self.is_too_large or not data:
            return
        for line in self._lines.feed(data):
            if len(line) > MAX_EVENT_BYTES:
                self.is_too_large = True
            else:
                yield from self._framing.take(line)
                self.is_too_large = self._framing.size_bytes > MAX_EVENT_BYTES
            if self.is_too_large:
                return
        self.is_too_large = self._lines.rest_bytes > MAX_EVENT_BYTES

    def end(self) -> Iterator[Event | EndMark]:
        """The bytes are over: a last event counts without its end, if it is whole."""
        if self.is_too_large:
            return
        rest = self._lines.end()
        if rest:
            yield from self._framing.take(rest)
        yield from self._framing.end()

    def _open(self, data: bytes) -> bytes:
        """Hold bytes back until it is known how they are framed."""
        held = (self._opening or b"") + data
        if _BYTE_ORDER_MARK.startswith(held):
            self._opening = held
            return b""
        held = held.removeprefix(_BYTE_ORDER_MARK).lstrip()
        # Blank lines are nothing in all framings.
        self._opening = None if held else b""
        if held.startswith((b"{", b"[")):
            self._framing = _JsonLines()
        return held


class _Lines:
    """Lines out of pieces."""

    def __init__(self) -> None:
        self.rest_bytes = 0
        self._rest: list[bytes] = []
        self._is_after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        if self._is_after_cr:
            data = data.removeprefix(b"\n")
        self._is_after_cr = data.endswith(b"\r")
        first, *others = _LINE_END.split(data)
        self._rest.append(first)
        if not others:
            self.rest_bytes += len(first)
            return []
        *lines, rest = (b"".join(self._rest), *others)
        self._rest, self.rest_bytes = [rest], len(rest)
        return lines

    def end(self) -> bytes:
        return b"".join(self._rest)


class _EventStream:
    """Server-sent events."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._name = b""
        self._data: list[bytes] = []

    def take(self, line: bytes) -> Iterator[Event | EndMark]:
        if not line:
            yield from self.end()
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self.size_bytes += len(value) + 1
        elif field == b"event":
            self._name = value.strip()

    def end(self) -> Iterator[Event | EndMark]:
        name, lines = self._name.decode("utf-8", "replace"), self._data
        self._name, self._data, self.size_bytes = b"", [], 0
        text = b"\n".join(lines).strip()
        if not text:
            return
        if text == END_MARK.encode():
            yield END_MARK
            return
        found = _parsed(text)
        if found is None and len(lines) > 1:
            # Some write an event in each line, and no blank line between two.
            for line in lines:
                yield from _named(name, line.strip(), _parsed(line))
        else:
            yield from _named(name, text, found)


class _JsonLines:
    """A JSON value in each line, or, when the first line holds none, a single one in all of them. Of an array the elements
    count."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._has_lines = False
        self._whole: list[bytes] = []

    def take(self, line: bytes) -> Iterator[Event]:
        if not self._has_lines:
            if not self._whole and (found := _parsed(line)) is not None:
                self._has_lines = True
                yield from _objects(found)
            else:
                self._whole.append(line)
                self.size_bytes += len(line) + 1
        elif line:
            yield from _objects(_parsed(line))

    def end(self) -> Iterator[Event]:
        yield from _objects(_parsed(b"\n".join(self._whole)))


def _parsed(line: bytes) -> Any:
    """None for what is no JSON, and for `null`."""
    try:
        return json_value(line.decode("utf-8", "replace"))
    except ValueError:
        return None


def _named(name: str, text: bytes, found: object) -> Iterator[Event]:
    """An event whose kind may stand in its name."""
    if isinstance(found, dict):
        yield found if "type" in found or name in ("", "message") else {**found, "type": name}
    elif name == "error":
        yield {"type": "error", "error": text.decode("utf-8", "replace")[:_MAX_ERROR_CHARACTERS]}


def _objects(found: object) -> Iterator[Event]:
    yield from (one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict))
