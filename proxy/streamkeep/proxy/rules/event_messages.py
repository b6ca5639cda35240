"""The JSON view: a body of server-sent events as JSON messages, one for each event that has data.

An event ends where one line end follows another. That is a matter of the two bytes before a position, so any byte position
is a legal place to begin: behind an event's end the next event begins, and inside an event the rest of it is passed over.
What `decode` holds back is an event that is not complete; a reader goes on from where that event begins.

A CR that may be the first half of CR LF ends its line at once. The LF is then an empty line before the next event, which
means nothing; so bounds do not depend on how the body was cut.

Messages come out in the form in which message streams are stored. What the events hold is written as it came when it is
JSON; anything else becomes `{"type":"text","text":…}`. Empty data and `[DONE]` say nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from streamkeep.proxy.rules.json_mode import is_one_value
from streamkeep.storage.rules.json_messages import encode_message

MAX_EVENT_BYTES = 4 * 1024 * 1024
CONTEXT_BYTES = 2
"""How many bytes before a position tell whether an event begins there."""

_EVENT_ENDS = (b"\n\n", b"\n\r", b"\r\r")
_EVENT_END = re.compile(b"|".join(_EVENT_ENDS))
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_ENDS = (b"\n", b"\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END_MARK = "[DONE]"
# Parts smaller than this are joined as they come, so that a peer that sends single bytes costs no object for each.
_PART_BYTES = 4 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The newest part of an open event, and those before it: kept apart, since joining at each step would be quadratic."""

    data: bytes
    before: _Part | None

    def followed_by(self, data: bytes) -> _Part:
        if len(self.data) + len(data) <= _PART_BYTES:
            return _Part(self.data + data, self.before)
        return _Part(data, self)

    def joined(self) -> bytes:
        parts: list[bytes] = []
        part: _Part | None = self
        while part is not None:
            parts.append(part.data)
            part = part.before
        return b"".join(reversed(parts))


_NOTHING = _Part(b"", None)


@dataclass(frozen=True, slots=True)
class Held:
    """Where a decoding stands. Two that stand at the same place of the same body are equal, and hold the same.

    `position` is where a reader goes on; `received` is the position behind the last byte that was looked at.
    """

    position: int
    received: int
    is_skipping: bool = field(default=False, compare=False)
    seam: bytes = field(default=b"", compare=False)
    event: _Part = field(default=_NOTHING, compare=False, repr=False)


def begin(position: int, before: bytes) -> Held:
    """Begin at a position; `before` are the `CONTEXT_BYTES` that precede it, fewer at the start of the body."""
    if position == 0 or _EVENT_END.fullmatch(before[-CONTEXT_BYTES:]):
        return Held(position, position)
    return Held(position, position, is_skipping=True, seam=_seam(before))


def decode(held: Held, data: bytes) -> tuple[bytes, Held]:
    """The messages of the events that `data` completes, and what is held back then.

    An event of more than `MAX_EVENT_BYTES` becomes one error message, and the rest of it is passed over.
    """
    text = held.seam + data
    origin = held.received - len(held.seam)
    position, event, is_skipping = held.position, held.event, held.is_skipping
    start, seam = len(held.seam), held.seam
    messages: list[bytes] = []
    for found in _EVENT_END.finditer(text):
        if not is_skipping:
            messages.append(_message(position, event, text[start : found.end()]))
        start = found.end()
        position, event, is_skipping, seam = origin + start, _NOTHING, False, b""
    received = held.received + len(data)
    rest = text[start:]
    if rest:
        seam = _seam(rest)
    if not is_skipping and received - position > MAX_EVENT_BYTES:
        messages.append(_too_large())
        is_skipping = True
    if is_skipping:
        return b"".join(messages), Held(received, received, is_skipping=True, seam=seam)
    return b"".join(messages), Held(position, received, seam=seam, event=event.followed_by(rest))


def finish(held: Held) -> bytes:
    """The message of a last event that lacks its empty line, when its data are whole JSON; what broke off is none."""
    text = _data(held.position, held.event.joined())
    return encode_message(text.encode()) if text and is_one_value(text) else b""


def last_end(data: bytes) -> int | None:
    """Behind the last end of an event in `data`, if there is one."""
    found = max(data.rfind(end) for end in _EVENT_ENDS)
    return None if found < 0 else found + CONTEXT_BYTES


def ending_message(terminal_event: bytes) -> bytes:
    """The message that tells of an ending other than `done`: a bare close would look finished."""
    ending = json.loads(terminal_event)
    return b"" if ending["event"] == "done" else _error(ending["message"])


def _message(position: int, event: _Part, rest: bytes) -> bytes:
    whole = event.followed_by(rest).joined()
    if len(whole) > MAX_EVENT_BYTES:
        return _too_large()
    text = _data(position, whole)
    if not text:
        return b""
    if is_one_value(text):
        return encode_message(text.encode())
    return encode_message(_json({"type": "text", "text": text}))


def _data(position: int, event: bytes) -> str:
    """What an event's `data` lines say; nothing for an event without any, and for the end mark."""
    if position == 0:
        event = event.removeprefix(_BYTE_ORDER_MARK)
    lines: list[bytes] = []
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    text = b"\n".join(lines).decode("utf-8", "replace").strip(" \t\r\n")
    return "" if text == _END_MARK else text


def _seam(data: bytes) -> bytes:
    """The last byte, when it may be the first half of an event's end."""
    return data[-1:] if data.endswith(_LINE_ENDS) else b""


def _too_large() -> bytes:
    return _error(f"an event of more than {MAX_EVENT_BYTES} bytes was left out")


def _error(text: str) -> bytes:
    return encode_message(_json({"type": "error", "errorText": text}))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
