"""An upstream that plays a script: a real HTTP server whose every byte, pause and break is said by the test.

async def play(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    await exchange.chunk(b"data: hello\\n\\n")
    await gate.wait()
    await exchange.end()

async with upstream(play) as server: ...
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False)
class Exchange:
    """One request as upstream got it, and the pen for its answer. `is_gone` is set when the caller's socket closes."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    writer: asyncio.StreamWriter
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)

    async def send(self, data: bytes) -> None:
        """Raw bytes on the socket."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(
        self, status: int = 200, headers: Mapping[str, str] | None = None, *, is_chunked: bool = True
    ) -> None:
        # Each connection serves one exchange; whoever was not told might call the next one on it.
        fields = {"Connection": "close", **(headers or {})}
        if is_chunked:
            fields["Transfer-Encoding"] = "chunked"
        lines = [f"HTTP/1.1 {status} Fine", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await self.send("\r\n".join(lines).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The last chunk."""
        await self.send(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer with its length."""
        await self.head(status, {**(headers or {}), "Content-Length": str(len(body))}, is_chunked=False)
        await self.send(body)

    def reset(self) -> None:
        """Break the connection with RST."""
        peer = self.writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """The server: its base `url`, and every exchange so far in `calls`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Exchange] = []
        self.url = ""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    async def called(self, times: int = 1) -> Exchange:
        """Wait until upstream was called so often; the last call."""
        async with asyncio.timeout(60):
            while len(self.calls) < times:
                await asyncio.sleep(0.005)
        return self.calls[times - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                exchange = await self._read(reader, writer)
                self.calls.append(exchange)
                watch = asyncio.create_task(self._watch(reader, exchange))
                try:
                    await self.script(exchange)
                finally:
                    watch.cancel()
                writer.close()
                await writer.wait_closed()
        finally:
            _abort(writer)

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, exchange: Exchange) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
        exchange.is_gone.set()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        known = {name.lower(): value for name, value in headers}
        body = b""
        if known.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        elif "content-length" in known:
            body = await reader.readexactly(int(known["content-length"]))
        return Exchange(method, path, headers, body, writer)


@asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    """A scripted upstream on a free port of 127.0.0.1."""
    scripted = Upstream(script)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(scripted.serve(reader, writer))
        tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before it begins runs no `finally` of its own.
            tasks.discard(task)
            _abort(writer)

        task.add_done_callback(ended)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield scripted
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _abort(writer: asyncio.StreamWriter) -> None:
    # A transport that took a while to flush and then closed cannot be aborted any more: it has let go of its loop.
    with suppress(AttributeError):
        writer.transport.abort()


def whole(body: bytes, content_type: str = "text/event-stream", *, chunk_bytes: int | None = None) -> Script:
    """A script that sends one body, in one chunk or in pieces."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type})
        step = chunk_bytes or max(len(body), 1)
        for start in range(0, len(body), step):
            await exchange.chunk(body[start : start + step])
        await exchange.end()

    return play


def ticking(body: bytes, *, pieces: int, seconds: float, then: asyncio.Event | None = None) -> Script:
    """Send a body in equal pieces over some time, then wait if told to."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        step = len(body) // pieces
        for start in range(0, len(body), step):
            await exchange.chunk(body[start : start + step])
            await asyncio.sleep(seconds / pieces)
        if then is not None:
            waiting = [asyncio.ensure_future(event.wait()) for event in (then, exchange.is_gone)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in waiting:
                future.cancel()
        await exchange.end()

    return play


@contextmanager
def full_server(host: str, port: int) -> Iterator[int]:
    """A server whose queue is full, so that the kernel drops what knocks; gives its port."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server((host, port), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]
