"""The frames of a live read, taken in bulk.

Nearly everything that a live read of bytes brings is one pattern: a `data` event with its offset and base64, and the
`control` event that repeats that offset. It is taken here as a whole. Whatever looks different, or is not whole yet, is
left to the decoder of all events and to the reader of all control events; both ways say the same.
"""

from __future__ import annotations

import re
from binascii import a2b_base64

_FRAME = re.compile(
    r"event: data\nid: (0{16}_[0-9]{16})\ndata: ?([^\n]+)\n\n"
    r'event: control\ndata: ?\{"streamNextOffset":"\1"'
    r'(?:,"streamCursor":"([0-9]{1,32})")?(,"upToDate":true)?\}\n\n'
)

Frame = tuple[bytes, str, str | None, bool]
"""Data, never none; the offset after them; the cursor, where one is told; whether the tail is there. A class costs more than the match."""


def take_frames(piece: bytes) -> tuple[list[Frame], int]:
    """Take the frames that are whole, at the beginning of a piece that begins between two events.

    Returns them, and how many bytes of the piece that was.
    """
    text = piece.decode("latin-1")
    frames: list[Frame] = []
    taken = 0
    while taken < len(text) and (found := _FRAME.match(text, taken)) is not None:
        offset, encoded, cursor, up_to_date = found.groups()
        try:
            data = a2b_base64(encoded, strict_mode=True)
        except ValueError:  # not base64, which is for the reader of all events to refuse
            break
        frames.append((data, offset, cursor, up_to_date is not None))
        taken = found.end()
    return frames, taken
