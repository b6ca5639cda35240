"""Postgres stores in tests: opened ones, third parties that hold locks, and wires that can be held and cut."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, urlsplit

import asyncpg

from streamkeep.storage import Generation, Retention
from streamkeep.storage.contract import Ears
from streamkeep.storage.encryption import Keyring
from streamkeep.storage.postgres import PostgresStore

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Wire: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

DEADLINE_SECONDS = 60.0


@asynccontextmanager
async def opened(
    url: str,
    *,
    ears: Ears | None = None,
    direct_dsn: str | None = None,
    retention: Retention = Retention(),  # noqa: B008
    pool_size: int = 10,
    deadline_seconds: float = 10.0,
    merge_after_seconds: float = 0.0,
    keyring: Keyring = Keyring(),  # noqa: B008
    warms_up: bool = False,
) -> AsyncIterator[PostgresStore]:
    """A store that is open, as one instance of the proxy has it; its ears hear what others do from now on."""
    store = PostgresStore(
        url,
        direct_dsn=direct_dsn,
        retention=retention,
        pool_size=pool_size,
        deadline_seconds=deadline_seconds,
        merge_after_seconds=merge_after_seconds,
        keyring=keyring,
        warms_up=warms_up,
    )
    if ears is not None:
        store.listen(ears)
    await store.open()
    try:
        if ears is not None:
            await until(lambda: None in ears.changed)
            ears.changed.clear()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A third party's connection: it looks, and it gets in the way."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def role(connection: Connection, url: str, options: str) -> AsyncIterator[str]:
    """The URL of the same database for a role that exists for as long as this lasts."""
    name = f"{urlsplit(url).path[1:]}_app"
    await connection.execute(f"create role {name} login password 'app' {options}")
    try:
        parts = urlsplit(url)
        yield parts._replace(netloc=f"{name}:app@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        await connection.execute(f"drop role {name}")


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; it must, soon."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def until_waiting(connection: Connection, sessions: int = 1) -> None:
    """Return when that many sessions of the database wait for a lock."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            # A transaction looks once and remembers.
            await connection.execute("select pg_stat_clear_snapshot()")
            if await connection.fetchval(_WAITING) == sessions:
                return
            await asyncio.sleep(0.005)


_WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


async def take_key(connection: Connection, generation: Generation, position: int) -> None:
    """Insert a chunk within the connection's transaction: whoever appends there waits until that ends."""
    await connection.execute(
        "insert into streamkeep.chunks (stream_id, position, size, data) values ($1, $2, 5, 'rival')",
        generation.data_stream,
        position,
    )


def server_address(url: str) -> tuple[str, int] | str:
    """Where the server of a URL listens: host and port, or the path of a Unix socket."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    host = parts.hostname or query.get("host", ["127.0.0.1"])[0]
    port = parts.port or int(query.get("port", ["5432"])[0])
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


async def dial(url: str) -> Wire:
    address = server_address(url)
    if isinstance(address, str):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)


def _url_through(url: str, server: asyncio.Server) -> str:
    """The same database, reached through a server of ours."""
    parts: SplitResult = urlsplit(url)
    _, port = server.sockets[0].getsockname()
    user, _, _ = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}@127.0.0.1:{port}{parts.path}"


@dataclass
class Relay:
    """The network between a store and its server: `hold` and `release` what clients send, `cut` them off.

    A cut takes the client's connection away and leaves the server's: what was sent still arrives, once released, and
    what the server answers is only counted.
    """

    url: str = ""
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _clients: list[asyncio.StreamWriter] = field(default_factory=list)
    _servers: list[asyncio.StreamWriter] = field(default_factory=list)
    held_bytes: int = 0
    unheard_bytes: int = 0

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        for client in self._clients:
            client.transport.abort()
        self._clients.clear()

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Relay]:
        relay = cls()
        relay.release()
        links: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            links.add(_current_task())
            with suppress(OSError, asyncio.CancelledError):
                await relay._link(url, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        relay.url = _url_through(url, server)
        try:
            yield relay
        finally:
            server.close()
            for link in links:
                link.cancel()
            await asyncio.gather(*links)
            for writer in relay._clients + relay._servers:
                writer.transport.abort()

    async def _link(self, url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await dial(url)
        self._clients.append(writer)
        self._servers.append(server_writer)
        back = asyncio.create_task(self._answer(server_reader, writer))
        try:
            # Deaf to the client's going away on purpose: the server side ends with the relay.
            while data := await reader.read(65536):
                self.held_bytes += len(data)
                await self._flowing.wait()
                self.held_bytes -= len(data)
                server_writer.write(data)
            if writer in self._clients:
                self._clients.remove(writer)
                server_writer.close()
            await back
        finally:
            back.cancel()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer.transport.is_closing():
                self.unheard_bytes += len(data)
            else:
                writer.write(data)
        writer.transport.abort()


def _current_task() -> asyncio.Task[None]:
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    return task


class Pooler:
    """A transaction-mode pooler: each transaction runs on another server connection, which forgets all in between.

    It knows as much of the protocol as asyncpg speaks, refuses start-up parameters that it does not know, as real ones
    do, and lets everybody in, so the server has to trust it.
    """

    _KNOWN_PARAMETERS = frozenset({"user", "database", "client_encoding", "application_name", "DateStyle", "TimeZone"})

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self.transactions = 0
        self._target = url
        self._size = size
        self._idle: asyncio.Queue[Wire] = asyncio.Queue()
        self._wires: list[asyncio.StreamWriter] = []
        self._greeting = b""

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str, size: int = 3) -> AsyncIterator[Pooler]:
        pooler = cls(url, size)
        links: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            links.add(_current_task())
            with suppress(OSError, EOFError, asyncio.CancelledError):
                await pooler._serve(reader, writer)
            writer.close()

        for _ in range(size):
            await pooler._idle.put(await pooler._log_in())
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pooler.url = _url_through(url, server)
        try:
            yield pooler
        finally:
            server.close()
            for link in links:
                link.cancel()
            await asyncio.gather(*links)
            for wire in pooler._wires:
                wire.transport.abort()

    async def _log_in(self) -> Wire:
        reader, writer = await dial(self._target)
        self._wires.append(writer)
        parts = urlsplit(self._target)
        names = [b"user", (parts.username or "postgres").encode(), b"database", parts.path[1:].encode()]
        body = struct.pack("!i", 196608) + b"\0".join([*names, b"client_encoding", b"utf-8"]) + b"\0\0"
        writer.write(struct.pack("!i", len(body) + 4) + body)
        greeting = b""
        while True:
            kind, message = await _message(reader)
            assert kind != b"E", message
            if kind in b"RS":
                assert kind != b"R" or message[5:9] == b"\0\0\0\0", (
                    "the pooler of the tests needs a server that trusts it"
                )
                greeting += message
            if kind == b"Z":
                self._greeting = greeting
                return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._greet(reader, writer):
            return
        wire: Wire | None = None
        try:
            while True:
                kind, message = await _message(reader)
                if kind == b"X":
                    return
                if wire is None:
                    wire = await self._idle.get()
                    self.transactions += 1
                wire[1].write(message)
                if kind in b"SQ":
                    if await self._answer(wire, writer, until=b"Z") == b"I":
                        await self._give_back(wire)
                        wire = None
                elif kind == b"H":
                    # The driver flushes only after it has asked for a statement's description.
                    await self._answer(wire, writer, until=b"TnE")
        finally:
            if wire is not None:
                wire[1].transport.abort()
                await self._idle.put(await self._log_in())

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code == 80877103:  # "May we speak TLS?"
                writer.write(b"N")
                continue
            if code != 196608:  # A request to cancel, which nobody answers.
                return False
            fields = body[4:].rstrip(b"\0").decode().split("\0")
            unknown = set(fields[::2]) - self._KNOWN_PARAMETERS
            if unknown:
                text = f"SFATAL\0C08P01\0Munsupported startup parameter: {min(unknown)}\0\0".encode()
                writer.write(b"E" + struct.pack("!i", len(text) + 4) + text)
                return False
            key = b"K" + struct.pack("!iii", 12, 1, 1)
            writer.write(self._greeting + key + b"Z" + struct.pack("!i", 5) + b"I")
            return True

    async def _answer(self, wire: Wire, writer: asyncio.StreamWriter, *, until: bytes) -> bytes:
        """Pass answers on until one of these kinds; return the byte after its length."""
        while True:
            kind, message = await _message(wire[0])
            writer.write(message)
            if kind in until:
                return message[5:6]

    async def _give_back(self, wire: Wire) -> None:
        reader, writer = wire
        query = b"DISCARD ALL\0"
        writer.write(b"Q" + struct.pack("!i", len(query) + 4) + query)
        while (await _message(reader))[0] != b"Z":
            pass
        # To the end of the queue: the next transaction gets another one.
        await self._idle.put(wire)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The kind of the next message, and the message."""
    head = await reader.readexactly(5)
    (size,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(size - 4)
