"""RawServer: the far end of a connection in the test's own hands, byte by byte, for what no honest server does.

    async with RawServer() as server:
        answer = asyncio.create_task(client.get(server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\\r\\n")      # wait for whatever the test waits for, then go on
        await peer.send(b"Content-Length: 9\\r\\n\\r\\nabc")
        peer.reset()

or, where no step has to wait for the test, with a script that every connection plays:

    async with RawServer(answering(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")) as server: ...

Every wait has a deadline of its own. TLS is pumped by hand, so that a connection can end without `close_notify`.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import ssl
import struct
import tempfile
import termios
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Script = Callable[["Peer"], Awaitable[None]]

DEADLINE_SECONDS = 30.0
_READ_BYTES = 64 * 1024

# Good for `localhost` and 127.0.0.1, from 2020 to 2119, and worth nothing: it signs for nobody but these tests.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmjCCAUCgAwIBAgIBATAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBzdHJlYW1r
ZWVwIHRlc3RzMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBzdHJlYW1rZWVwIHRlc3RzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAE6Afajzt+4DjGYPr5pi2xCS5cSnR8sm3blSY6ynya9qUdtsPX0YvJFROMXzbU
s8jTB4+vs0PZayfvTYMwSSQWtKNzMHEwGgYDVR0RBBMwEYIJbG9jYWxob3N0hwR/
AAABMA4GA1UdDwEB/wQEAwIChDAPBgNVHRMBAf8EBTADAQH/MBMGA1UdJQQMMAoG
CCsGAQUFBwMBMB0GA1UdDgQWBBRyd3YLbEJyG+MxeyDr0GbHm3yE3DAKBggqhkjO
PQQDAgNIADBFAiApVlvl8jRoc2+kX3Or6OqxTPb+u7yLauTdN9cMHJlmWwIhAOOF
KrFnBMOi7UVe2ugbkwTwOj75zXbSfUVX3GqsS3pm
-----END CERTIFICATE-----
"""
_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqJYKX8FDSeibvoTM
XIKyyP2LaM10HbmIggfx63JetlmhRANCAAToB9qPO37gOMZg+vmmLbEJLlxKdHyy
bduVJjrKfJr2pR22w9fRi8kVE4xfNtSzyNMHj6+zQ9lrJ+9NgzBJJBa0
-----END PRIVATE KEY-----
"""


def server_tls() -> ssl.SSLContext:
    """A server's side for `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(_KEY + CERTIFICATE)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def client_tls() -> ssl.SSLContext:
    """A client's side that trusts that server and nobody else."""
    return ssl.create_default_context(cadata=CERTIFICATE)


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._received = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=True) if tls is not None else None

    async def handshake(self) -> None:
        """TLS only."""
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
        await self._flush()

    async def head(self) -> bytes:
        """The request's head, without the empty line."""
        return (await self.until(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")

    async def until(self, mark: bytes) -> bytes:
        """What came up to a mark and with it."""
        while mark not in self._received:
            await self._receive()
        return self._take(self._received.index(mark) + len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._receive()
        return self._take(size)

    async def rest(self) -> bytes:
        """What comes until the other side closes; `ConnectionResetError` if it aborts."""
        while True:
            try:
                await self._receive()
            except EOFError:
                return self._take(len(self._received))

    async def closed(self) -> None:
        """Return when the other side has closed or aborted the connection; what it sent before is dropped."""
        try:
            await self.rest()
        except ConnectionError:
            return

    async def send(self, data: bytes) -> None:
        """Send, and return when the kernel has it."""
        if self._tls is None:
            await self._send_raw(data)
        else:
            self._tls.write(data)
            await self._flush()

    def send_now(self, data: bytes) -> int:
        """Hand the kernel as much as it takes at once, without waiting; return how much that was. Not for TLS."""
        assert self._tls is None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def can_send(self) -> bool:
        """Whether the kernel would take something now."""
        return bool(select.select([], [self._socket], [], 0)[1])

    async def delivered(self) -> None:
        """Return when the other side's kernel has everything that was sent: a reset can take nothing back then."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
                await asyncio.sleep(0.001)

    async def finish_tls(self) -> None:
        """Send `close_notify`, the orderly end of what this side has to say."""
        assert self._tls is not None
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            await self._flush()

    def finish(self) -> None:
        """End this side's half of the connection: FIN."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close, in order as far as TCP is concerned unless received bytes were not read."""
        self._socket.close()

    def reset(self) -> None:
        """Close with RST; what was not delivered yet is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _take(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _receive(self) -> None:
        if self._tls is None:
            self._received += await self._read_raw()
            return
        while True:
            try:
                data = self._tls.read(_READ_BYTES)
                break
            except ssl.SSLWantReadError:
                await self._fill()
        if not data:
            raise EOFError
        self._received += data

    async def _fill(self) -> None:
        self._incoming.write(await self._read_raw())

    async def _flush(self) -> None:
        await self._send_raw(self._outgoing.read())

    async def _read_raw(self) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            data = await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES)
        if not data:
            raise EOFError
        return data

    async def _send_raw(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)


class RawServer:
    """Listens on 127.0.0.1. Without a script, `accept` gives the connections one by one; with one, each plays it."""

    def __init__(self, script: Script | None = None, *, tls: ssl.SSLContext | None = None, backlog: int = 100) -> None:
        self.accepted = 0
        self._script = script
        self._tls = tls
        self._peers: list[Peer] = []
        self._plays: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        if self._script is not None:
            self._accepting = asyncio.create_task(self._accept_for_ever(self._script))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything; what a script raised is raised here, unless the test fails already."""
        tasks = [task for task in (self._accepting, *self._plays) if task is not None]
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for peer in self._peers:
            peer.close()
        self._socket.close()
        for outcome in outcomes:
            if exc is None and isinstance(outcome, Exception):
                raise outcome

    async def accept(self) -> Peer:
        """The next connection, its TLS handshake done."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            peer = await self._accept()
        if self._tls is not None:
            await peer.handshake()
        return peer

    async def _accept(self) -> Peer:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        self.accepted += 1
        peer = Peer(connection, self._tls)
        self._peers.append(peer)
        return peer

    async def _accept_for_ever(self, script: Script) -> None:
        while True:
            self._plays.add(asyncio.create_task(self._play(script, await self._accept())))

    async def _play(self, script: Script, peer: Peer) -> None:
        try:
            if self._tls is not None:
                await peer.handshake()
            await script(peer)
        except (ConnectionError, EOFError, ssl.SSLError):
            return  # the client went away: what that means is for the test to say
        finally:
            peer.close()


def answering(*pieces: bytes) -> Script:
    """Read a request's head, send these pieces, close."""

    async def play(peer: Peer) -> None:
        await peer.head()
        for piece in pieces:
            await peer.send(piece)

    return play
