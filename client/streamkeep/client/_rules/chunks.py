"""The chunks of an HTTP/1.1 body, merged where several came together.

A parser in Python takes longer for a chunk than we take for what is in it, and a server that streams makes a chunk of
every event. So chunks that came whole in one read of the network are made one before they are parsed. The body stays the
same to the byte. What does not look as usual (RFC 9112, 7.1, without extensions) is left alone from there on: the parser
judges it.
"""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,8}\r?")


class ChunkMerger:
    """Merge the chunks of one body, whose first byte is the first that is fed."""

    def __init__(self) -> None:
        self._is_usual = True
        # Of a chunk that the last read cut: how much is still to come, or all there is of its size.
        self._left_bytes = 0
        self._size_begun = b""

    @property
    def holds_back(self) -> bool:
        """Whether something that was fed is still to be given."""
        return bool(self._size_begun)

    def feed(self, piece: bytes) -> bytes:
        """What to parse in the place of these bytes: nothing where they only begin a chunk's size."""
        if not self._is_usual:
            return piece
        piece = self._size_begun + piece
        self._size_begun = b""
        start = at = min(self._left_bytes, len(piece))
        self._left_bytes -= start
        merged: list[bytes] = []
        while self._is_usual and at < len(piece):
            size = _SIZE.match(piece, at)
            if size is None:
                self._is_usual = _SIZE_BEGUN.fullmatch(piece, at) is not None
                if self._is_usual:
                    piece, self._size_begun = piece[:at], piece[at:]
                break
            data_at = size.end()
            end = data_at + int(size[1], 16)
            if end + 2 > len(piece) and end > data_at:
                self._left_bytes = end + 2 - len(piece)
                break
            # After the last chunk, which is empty, comes what is not a chunk.
            self._is_usual = end > data_at and piece.startswith(b"\r\n", end)
            if self._is_usual:
                merged.append(piece[data_at:end])
                at = end + 2
        if len(merged) < 2:
            return piece
        data = b"".join(merged)
        return b"%b%x\r\n%b\r\n%b" % (piece[:start], len(data), data, piece[at:])
