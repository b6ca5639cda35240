"""The data stream's own frames of a live read, taken in bulk.

Nearly everything that a live read brings is one pattern: a `data` event with its offset and base64, and the `control`
event that repeats that offset. It is taken here as a whole. Whatever looks different, or is not whole yet, is left to
the decoder of all events and to the reader of all control events; both ways say the same.
"""

from __future__ import annotations

import binascii
import re

_FRAME = re.compile(
    rb"event: data\nid: 0{16}_([0-9]{16})\ndata: ?([^\n]*)\n\n"
    rb'(?:event: control\ndata: ?\{"streamNextOffset":"0{16}_\1"'
    rb'(?:,"streamCursor":"([0-9]{1,32})")?(?:,"upToDate":true)?\}\n\n)?'
)


def take_frames(piece: bytes) -> tuple[list[tuple[bytes, int]], str | None, int]:
    """Take the frames at the beginning of a piece that begins between two events.

    Returns each frame's data with the position after them, the last cursor, and how many bytes of the piece that was.
    """
    frames: list[tuple[bytes, int]] = []
    cursor: bytes | None = None
    taken = 0
    while taken < len(piece) and (found := _FRAME.match(piece, taken)) is not None:
        position, encoded, told = found.groups()
        try:
            data = binascii.a2b_base64(encoded, strict_mode=True)
        except binascii.Error:
            break
        frames.append((data, int(position)))
        cursor = told or cursor
        taken = found.end()
    return frames, None if cursor is None else cursor.decode("ascii"), taken
