"""The data stream's own frames of a live read, taken in bulk.

Nearly everything that a live read brings is one pattern: a `data` event with its offset and base64, and the `control`
event that repeats that offset. It is taken here as a whole. Whatever looks different, or is not whole yet, is left to
the decoder of all events and to the reader of all control events; both ways say the same.
"""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

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


_WHOLE_FRAME = re.compile(
    rb"event: data\nid: (0{16}_[0-9]{16})\ndata: ?([^\n]+)\n\n"
    rb'event: control\ndata: ?\{"streamNextOffset":"\1"'
    rb'(?:,"streamCursor":"([0-9]{1,32})")?(,"upToDate":true)?\}\n\n'
)


class Frames(NamedTuple):
    """What frames that came together bring: their data, and where the first and the last of them end. The rest is the last's."""

    data: bytes
    first_offset: str
    last_offset: str
    cursor: str | None
    is_up_to_date: bool


def take_whole_frames(piece: bytes) -> tuple[Frames | None, int]:
    """Take the frames that are whole, with their control events, at the beginning of a piece that begins between two events.

    Returns what they bring, and how many bytes of the piece that was.
    """
    data: list[bytes] = []
    first = last = told = up_to_date = None
    taken = 0
    while taken < len(piece) and (found := _WHOLE_FRAME.match(piece, taken)) is not None:
        offset, encoded, cursor, up_to_date_here = found.groups()
        # What leads back, or is not base64, is for the reader of all events to refuse.
        if last is not None and offset <= last:
            break
        try:
            data.append(binascii.a2b_base64(encoded, strict_mode=True))
        except binascii.Error:
            break
        first, last = first or offset, offset
        told, up_to_date = cursor or told, up_to_date_here
        taken = found.end()
    if first is None or last is None:
        return None, 0
    told_cursor = None if told is None else told.decode("ascii")
    joined = data[0] if len(data) == 1 else b"".join(data)
    return Frames(joined, first.decode("ascii"), last.decode("ascii"), told_cursor, up_to_date is not None), taken
