"""Server-sent event frames (protocol 5.8): what a reader of a stream gets on the wire.

Text frames carry the payload with every line end as a new `data:` line, so content cannot forge events. They cannot
carry CR, invalid UTF-8 or half a character; `split_text` holds an incomplete character back. Base64 frames carry bytes.
"""

from __future__ import annotations

import binascii
from enum import StrEnum

from streamkeep.storage.rules.json_messages import to_array

HEARTBEAT = b":\n\n"


class Encoding(StrEnum):
    """How a stream's bytes travel in `data` events."""

    TEXT = "text"
    JSON = "json"
    BASE64 = "base64"
    JSON_BASE64 = "json-base64"

    @property
    def is_base64(self) -> bool:
        return self in (Encoding.BASE64, Encoding.JSON_BASE64)


def encoding_for(content_type: str | None, *, is_message_stream: bool = False, is_base64: bool = False) -> Encoding:
    """Text for `text/*` and JSON types, base64 for all others, where it is asked for, and while the type is unknown."""
    if is_message_stream:
        return Encoding.JSON_BASE64 if is_base64 else Encoding.JSON
    if is_base64:
        return Encoding.BASE64
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("text/") or media_type == "application/json":
        return Encoding.TEXT
    return Encoding.BASE64


def split_text(data: bytes) -> tuple[str, bytes]:
    """Decode all complete characters; return the text and the up to three bytes of a character still incomplete."""
    held = _incomplete_suffix(data)
    whole, rest = (data[:-held], data[-held:]) if held else (data, b"")
    return whole.decode("utf-8", "replace"), rest


def data_frame(payload: str, event_id: str) -> bytes:
    """A `data` event; `event_id` is the offset after it, which an EventSource gives back as `Last-Event-ID`.

    A line that begins with a space gets another one before it, since a reader takes one away.
    """
    # Line by line it would take a hundred times as long for a megabyte of line ends.
    lines = f"\n{payload}"
    if "\r" in lines:
        lines = lines.replace("\r\n", "\n").replace("\r", "\n")
    if "\n " in lines:
        lines = lines.replace("\n ", "\n  ")
    lines = lines.replace("\n", "\ndata:")
    return f"event: data\nid: {event_id}{lines}\n\n".encode()


def base64_frame(data: bytes, event_id: str) -> bytes:
    """A `data` event that carries bytes: one line of base64, which needs none of the care that text does."""
    return b"event: data\nid: %b\ndata:%b\n\n" % (event_id.encode("ascii"), binascii.b2a_base64(data, newline=False))


def json_payload(data: bytes) -> str:
    return to_array(data).decode("utf-8", "replace")


def control_frame(next_offset: str, cursor: str, *, is_up_to_date: bool) -> bytes:
    """The `control` event after data: where to go on, and whether that is the tail. Both tokens are digits and `_`."""
    up_to_date = ',"upToDate":true' if is_up_to_date else ""
    return (
        f'event: control\ndata:{{"streamNextOffset":"{next_offset}","streamCursor":"{cursor}"{up_to_date}}}\n\n'
    ).encode("ascii")


def closing_frame(final_offset: str) -> bytes:
    """The last `control` event of a closed stream."""
    return (
        f'event: control\ndata:{{"streamNextOffset":"{final_offset}","upToDate":true,"streamClosed":true}}\n\n'
    ).encode("ascii")


def _incomplete_suffix(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not complete yet."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue
        needs = 2 if 0xC2 <= byte <= 0xDF else 3 if 0xE0 <= byte <= 0xEF else 4 if 0xF0 <= byte <= 0xF4 else 1
        return back if needs > back else 0
    return 0
