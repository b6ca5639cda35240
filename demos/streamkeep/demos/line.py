"""The line between a browser and its servers: it can be cut and slowed, as a real one is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_PIECE_BYTES = 16 * 1024
_SLOW_PIECE_BYTES = 256
_SLOW_BYTES_PER_SECOND = 3000


class Line:
    """TCP connections from this machine to servers on it. Cut, all that are open are reset, and so is each new one."""

    def __init__(self) -> None:
        self.is_slow = False
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def is_cut(self) -> bool:
        return self._is_cut

    @is_cut.setter
    def is_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        if is_cut:
            for writer in self._open:
                _reset(writer)

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        """Lead a port, whose number this gives, to another one."""

        async def carry(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
            if self._is_cut:
                _reset(near_writer)
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                _reset(near_writer)
                return
            writers = {near_writer, far_writer}
            self._open |= writers
            try:
                up = asyncio.create_task(self._pump(near_reader, far_writer))
                down = asyncio.create_task(self._pump(far_reader, near_writer))
                # One side's end is the end of both: HTTP needs no half of a connection.
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                for task in (up, down):
                    task.cancel()
                await asyncio.wait({up, down})
            finally:
                self._open -= writers
                for writer in writers:
                    writer.close()

        server = await asyncio.start_server(carry, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in list(self._open):
                _reset(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_SLOW_PIECE_BYTES if self.is_slow else _PIECE_BYTES):
                if self.is_slow:
                    await asyncio.sleep(len(piece) / _SLOW_BYTES_PER_SECOND)
                writer.write(piece)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection with a TCP reset, which is what lingering for zero seconds makes of a close."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
