"""A wire between a client and a server, mostly Postgres, that can be cut at the worst moment: a real TCP relay on 127.0.0.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit


class Wire:
    """Relays every connection to a database. `cut_after_answer` lets one more request through, waits until the server
    has answered it, and breaks all connections without passing the answer on: the client cannot know. `hold` swallows
    what either side says, as a network does that drops every packet, until `release` breaks what was there. `lose` does so
    for good to the one connection that was answered last, and to no other."""

    def __init__(self, database_url: str) -> None:
        self._target = urlsplit(database_url)
        self._armed = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._latest: asyncio.StreamWriter | None = None
        self._lost: set[asyncio.StreamWriter] = set()
        self.answered_bytes = 0
        self.cuts = 0
        self.port = 0

    @property
    def url(self) -> str:
        user = self._target.username or "postgres"
        return f"postgresql://{user}@127.0.0.1:{self.port}{self._target.path}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def turn_to(self, url: str) -> None:
        """Lead new connections to another server, and break those that there are."""
        self._target = urlsplit(url)
        self.cut()

    def cut_after_answer(self) -> None:
        self._armed = True

    def cut(self) -> None:
        """Break every connection now."""
        self._armed = False
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Pass nothing on, and connect nobody."""
        self._flows.clear()

    def lose(self) -> None:
        """Swallow what comes for the one who was answered last; nobody is told."""
        assert self._latest is not None
        self._lost.add(self._latest)

    def release(self) -> None:
        """Break what was held, and pass on again."""
        self.cut()
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flows.wait()
            try:
                server_reader, server_writer = await self._connect()
            except OSError:
                return
            self._writers |= {writer, server_writer}
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass_on(reader, server_writer, is_answer=False))
                    tasks.create_task(self._pass_on(server_reader, writer, is_answer=True))
            finally:
                self._writers -= {writer, server_writer}
                server_writer.transport.abort()
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if is_answer and self._armed:
                    self.cut()
                    return
                await self._flows.wait()
                if writer in self._lost:
                    continue
                if is_answer:
                    self._latest = writer
                    self.answered_bytes += len(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = parse_qs(self._target.query)
        host = query.get("host", [self._target.hostname or ""])[0]
        port = int(query.get("port", [str(self._target.port or 5432)])[0])
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)


@asynccontextmanager
async def wire_to(database_url: str) -> AsyncIterator[Wire]:
    """A wire to that database, with an address of its own."""
    wire = Wire(database_url)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(wire.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
