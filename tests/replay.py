"""Serve the recorded answers of `tests/data/traces` again, byte for byte and at their own pace.

    async with ReplayServer(speed=20) as server:
        await client.post(f"{server.url('chat-short')}/v1/chat/completions", json={...})

The first part of a request's path names the recording, the rest may be anything. A recording ends as it did when it was
made: the connection is closed, or, where the client had hung up, stays silent until the client hangs up again.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TRACES = Path(__file__).parent / "data" / "traces"

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Trace:
    """One recording. `reads` has milliseconds since the request and the number of wire bytes for each piece."""

    name: str
    request: dict[str, object]
    wire: bytes
    body: bytes
    reads: tuple[tuple[float, int], ...]
    is_complete: bool
    was_aborted: bool

    @classmethod
    def load(cls, name: str) -> Trace:
        about = json.loads((TRACES / f"{name}.json").read_text())
        return cls(
            name=name,
            request=about["request"]["body"],
            wire=(TRACES / f"{name}.http").read_bytes(),
            body=(TRACES / f"{name}.sse").read_bytes(),
            reads=tuple((float(ms), int(size)) for ms, size in about["recv_ms_len"]),
            is_complete=about["complete"],
            was_aborted=about["end"] == "client-abort",
        )

    @classmethod
    def names(cls) -> list[str]:
        return sorted(path.stem for path in TRACES.glob("*.http"))


@dataclass(slots=True)
class Played:
    """One call to the server: how many wire bytes went out, and whether the client closed before the end."""

    name: str
    request: bytes
    sent_bytes: int = 0
    was_aborted: bool = False


class ReplayServer:
    """Serves every recording on 127.0.0.1. `speed` divides the recorded pauses; `math.inf` leaves none."""

    def __init__(self, *, speed: float = 1.0) -> None:
        self._speed = speed
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.played: list[Played] = []

    def url(self, name: str) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/{name}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        name = head.split(b" ", 2)[1].decode("ascii").split("/")[1]
        if name not in Trace.names():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        played = Played(name, body)
        self.played.append(played)
        hung_up = asyncio.create_task(_until_closed(reader))
        try:
            await self._play(Trace.load(name), played, writer, hung_up)
        finally:
            hung_up.cancel()

    async def _play(
        self, trace: Trace, played: Played, writer: asyncio.StreamWriter, hung_up: asyncio.Task[None]
    ) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        for ms, size in trace.reads:
            pause = 0.0 if math.isinf(self._speed) else began + ms / 1000 / self._speed - clock()
            await asyncio.wait({hung_up}, timeout=max(pause, 0))
            if hung_up.done():
                played.was_aborted = True
                return
            writer.write(trace.wire[played.sent_bytes : played.sent_bytes + size])
            await writer.drain()
            played.sent_bytes += size
        if trace.was_aborted:
            await hung_up
            played.was_aborted = True


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(65536):
            pass
