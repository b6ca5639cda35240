"""The last lines of what is read once, in bounded memory."""

from __future__ import annotations

from collections import deque

MAX_BYTES = 16 * 1024 * 1024


class LastLines:
    """Keep the last `lines` whole lines and what came of the next, `max_bytes` at most: of more, the end."""

    def __init__(self, lines: int, *, max_bytes: int = MAX_BYTES) -> None:
        self._lines = lines
        self._max_bytes = max_bytes
        self._last: deque[bytes] = deque()
        self._last_bytes = 0
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what comes next, in pieces of any size."""
        ended, end, begun = data.rpartition(b"\n")
        if end:
            for line in (self._rest + ended).split(b"\n"):
                self._last.append(bytes(line[-self._max_bytes :]))
                self._last_bytes += len(self._last[-1]) + 1
            self._rest.clear()
        self._rest += begun
        del self._rest[: -self._max_bytes]
        while self._last and (len(self._last) > self._lines or self._last_bytes + len(self._rest) > self._max_bytes):
            self._last_bytes -= len(self._last.popleft()) + 1

    def shown(self) -> bytes:
        """The lines, oldest first, and the beginning of one that has no end yet."""
        return b"".join(line + b"\n" for line in self._last) + bytes(self._rest)
