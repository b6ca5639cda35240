"""UpstreamTransport: the way out, below httpx, and the only place of the proxy that opens sockets to upstreams.

It does what a recorder needs and nothing besides: HTTP/1.1, one attempt, no redirects, no cookies, no environment, no
limit on connections, no decoding. What holds for callers:

- *Sent or not sent.* `httpx.ConnectError` and `httpx.ConnectTimeout` (and `RequestRefused`) say that no byte of the
  request has left. After any other exception upstream may have acted on it. Nothing is ever sent twice from here.
- *Addresses are checked where sockets are made.* A host is resolved once, every address found is checked, and the
  socket goes to a checked address, never to the name again. That covers all spellings of an address, and names whose
  answers change. Only an origin that says so lets a request reach addresses that are not public, as far as
  `rules/addresses.py` says.
- *Time-outs.* `connect` covers resolving, connecting and TLS; `write` each wait for upstream to take bytes; `read` the
  wait for the response's head alone. How long a body may take, or be silent, is for its reader to say. Nobody ever waits
  for a place in the pool.
- *Bodies* come as described in `connections.py`: as many bytes as have arrived, buffered ones before any failure.

`send` takes a URL as the allowlist took it apart, and gives what came; `handle_async_request` does the same for whoever
speaks httpx. A client would add headers, cookies and layers around each chunk.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import httpx

from streamkeep.proxy.connections import Connection, ResponseBody
from streamkeep.proxy.http1 import (
    LAST_CHUNK,
    Framing,
    Headers,
    InvalidRequest,
    ResponseHead,
    encode_head,
    framing_of,
    in_chunks,
    is_closing,
)
from streamkeep.proxy.rules.addresses import may_reach
from streamkeep.proxy.rules.allowlist import DEFAULT_PORTS, Origin

logger = logging.getLogger(__name__)

PRIVATE = "streamkeep.private"
"""The request extension that admits addresses that are not public; only `True` counts."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port in, numeric addresses out, in the order to try them. Raises: OSError, UnicodeError."""

# With these a body is expected, and an empty one has a length (RFC 9110, 8.6).
_WITH_CONTENT = frozenset({"PATCH", "POST", "PUT"})
# Upstream counts an idle connection's time from its own side and earlier than we do.
_KEEP_ALIVE_MARGIN_SECONDS = 1.0


class RequestRefused(httpx.LocalProtocolError):
    """The request cannot be sent as it is. Unless its body differs from its Content-Length, nothing was sent."""


class AddressRefused(httpx.ConnectError):
    """The host leads to an address that is not public, and the request may not go to one. Nothing was sent."""


async def system_resolver(host: str, port: int) -> list[str]:
    """What the machine's own resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


@cache
def _system_trust() -> ssl.SSLContext:
    """Whom the machine trusts, read once: it takes as long as to build all the rest of the proxy."""
    return ssl.create_default_context()


class UpstreamTransport(httpx.AsyncBaseTransport):
    """Sends requests to upstreams and keeps finished connections for the next one to the same origin.

    Idle connections are kept for `idle_seconds`, or less where upstream says so, and `max_idle` of them at most. A
    response buffers up to `max_buffered_bytes` of its body. `tls` replaces the system's trust store; its ALPN protocols
    are set here. What `resolve` answers is checked, and trusted no further.
    """

    def __init__(
        self,
        *,
        max_buffered_bytes: int = 64 * 1024,
        idle_seconds: float = 3.0,
        max_idle: int = 100,
        tls: ssl.SSLContext | None = None,
        resolve: Resolver = system_resolver,
    ) -> None:
        self._idle_seconds = idle_seconds
        self._max_idle = max_idle
        self._scratch = memoryview(bytearray(max_buffered_bytes))
        self._tls = tls or _system_trust()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._resolve = resolve
        self._open: set[Connection] = set()
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"UpstreamTransport(open={self.open_connections}, idle={self.idle_connections})"

    @property
    def open_connections(self) -> int:
        """Sockets that exist, the idle ones among them."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        """Connections that wait for another request."""
        return len(self._idle)

    async def send(
        self,
        method: str,
        origin: Origin,
        resource: bytes,
        headers: Headers,
        content: bytes | AsyncIterable[bytes],
        *,
        connect_seconds: float | None = None,
        read_seconds: float | None = None,
        write_seconds: float | None = None,
    ) -> tuple[ResponseHead, ResponseBody]:
        """Send a request; returns when the head of its answer is there. The body is to be closed.

        Raises:
            RequestRefused: it is not a request that can be sent.
            AddressRefused, httpx.ConnectError, httpx.ConnectTimeout: nothing was sent.
            httpx.TransportError: any other kind; upstream may have received the request.
        """
        if self._is_closed:
            raise RuntimeError("the transport is closed")
        message = _Message.of(method, origin, resource, headers, content)
        connection = self._take_idle(origin) or await self._connect(origin, connect_seconds)
        try:
            head = await connection.exchange(
                message.prelude,
                message.upload(),
                is_head_request=method == "HEAD",
                read_seconds=read_seconds,
                write_seconds=write_seconds,
            )
        except BaseException:
            connection.abort()
            raise

        may_persist = message.may_persist

        def release(connection: Connection) -> None:
            # Not `message` itself, which would keep the request's body for as long as the response lasts.
            self._release(connection, head if may_persist else None)

        return head, ResponseBody(connection, release)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """`send` a request of httpx's; of its extensions `timeout` and `streamkeep.private` count."""
        seconds: Mapping[str, float | None] = request.extensions.get("timeout", {})
        head, body = await self.send(
            request.method,
            _origin_of(request),
            request.url.raw_path,
            request.headers.raw,
            _content_of(request),
            connect_seconds=seconds.get("connect"),
            read_seconds=seconds.get("read"),
            write_seconds=seconds.get("write"),
        )
        return httpx.Response(
            head.status,
            headers=list(head.headers),
            stream=body,
            extensions={"http_version": f"HTTP/{head.version}".encode(), "reason_phrase": head.reason},
        )

    async def aclose(self) -> None:
        """Close every connection, those in use too; returns when their sockets are closed."""
        self._is_closed = True
        connections = list(self._open)
        for connection in connections:
            self._retire(connection)
        await asyncio.gather(*(connection.lost for connection in connections))

    # Idle connections

    def _take_idle(self, origin: Origin) -> Connection | None:
        """The youngest fit connection: the one that upstream is least likely to be closing."""
        while True:
            connection = next((connection for connection in reversed(self._idle) if connection.origin == origin), None)
            if connection is None:
                return None
            if connection.is_quiet():
                self._idle.pop(connection).cancel()
                return connection
            self._retire(connection)

    def _release(self, connection: Connection, head: ResponseHead | None) -> None:
        """A response is over: keep its connection, or close it at once."""
        seconds = self._idle_seconds
        if head is not None and head.keep_alive_seconds is not None:
            seconds = min(seconds, head.keep_alive_seconds - _KEEP_ALIVE_MARGIN_SECONDS)
        if head is None or seconds <= 0 or self._is_closed or not self._max_idle or not connection.rest():
            connection.abort()
            return
        if len(self._idle) >= self._max_idle:
            self._retire(next(iter(self._idle)))
        self._idle[connection] = asyncio.get_running_loop().call_later(seconds, self._retire, connection)

    def _retire(self, connection: Connection) -> None:
        timer = self._idle.pop(connection, None)
        if timer is not None:
            timer.cancel()
        connection.abort()

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        timer = self._idle.pop(connection, None)
        if timer is not None:
            timer.cancel()

    # New connections

    async def _connect(self, origin: Origin, seconds: float | None) -> Connection:
        """Raises: AddressRefused, httpx.ConnectError, httpx.ConnectTimeout."""
        try:
            async with asyncio.timeout(seconds) as deadline:
                addresses = await self._addresses(origin)
                return await self._connect_to_any(origin, addresses, deadline.when())
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {origin.host} in time") from None

    async def _addresses(self, origin: Origin) -> list[str]:
        """The addresses of a host, in the order to try them.

        Raises:
            AddressRefused: one of them may not be reached. Not even the others are: who mixes them has a plan.
            httpx.ConnectError: there are none.
        """
        try:
            addresses = list(await self._resolve(origin.host, origin.port))
        except (OSError, UnicodeError) as exc:
            raise httpx.ConnectError(f"{origin.host} does not resolve: {exc}") from exc
        if not addresses:
            raise httpx.ConnectError(f"{origin.host} does not resolve to any address")
        for address in addresses:
            _check(origin, address)
        return addresses

    async def _connect_to_any(self, origin: Origin, addresses: list[str], deadline: float | None) -> Connection:
        """Try one address after the other, each with a fair share of the time that is left."""
        failure: OSError | None = None
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            share = None if deadline is None else (deadline - asyncio.get_running_loop().time()) / untried
            try:
                async with asyncio.timeout(share):
                    return await self._connect_to(origin, address)
            except OSError as exc:
                failure = exc
        if isinstance(failure, TimeoutError):
            raise httpx.ConnectTimeout(f"no connection to {origin.host} in time") from failure
        raise httpx.ConnectError(f"no connection to {origin.host}: {failure}") from failure

    async def _connect_to(self, origin: Origin, address: str) -> Connection:
        is_tls = origin.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(origin, self._scratch, self._lost),
            address,
            origin.port,
            ssl=self._tls if is_tls else None,
            server_hostname=origin.host.removesuffix(".") if is_tls else None,
        )
        if not connection.lost.done():
            self._open.add(connection)
        peer = connection.peer_address
        if self._is_closed:
            connection.abort()
            raise httpx.ConnectError("the transport was closed meanwhile")
        if peer is not None:
            try:
                _check(origin, peer)
            except AddressRefused:
                connection.abort()
                raise
        return connection


@dataclass(frozen=True, slots=True)
class _Message:
    """A request as it goes over the wire: the head and whatever of the body is known, and how the rest is framed."""

    prelude: bytes
    framing: Framing
    stream: AsyncIterable[bytes] | None
    may_persist: bool

    @classmethod
    def of(
        cls, method: str, origin: Origin, resource: bytes, given: Headers, content: bytes | AsyncIterable[bytes]
    ) -> _Message:
        """Raises: RequestRefused."""
        headers = [(name, value) for name, value in given if name.lower() != b"expect"]
        names = {name.lower() for name, _ in headers}
        if b"host" not in names:
            headers.insert(0, (b"Host", origin.authority.encode()))
        try:
            framing = framing_of(headers)
            if framing is None and isinstance(content, bytes):
                framing = Framing(content_length=len(content))
                if content:
                    headers.append((b"Content-Length", b"%d" % len(content)))
                elif method in _WITH_CONTENT:
                    headers.insert(1, (b"Content-Length", b"0"))
            elif framing is None:
                framing = Framing(is_chunked=True)
                headers.append((b"Transfer-Encoding", b"chunked"))
            if b"accept-encoding" not in names:
                headers.append((b"Accept-Encoding", b"identity"))
            prelude = encode_head(method, resource, headers)
        except InvalidRequest as exc:
            raise RequestRefused(str(exc)) from exc
        may_persist = not is_closing(headers)
        if not isinstance(content, bytes):
            return cls(prelude, framing, content, may_persist)
        if framing.is_chunked:
            prelude += in_chunks(content) + LAST_CHUNK
        elif framing.content_length != len(content):
            raise RequestRefused(f"the body has {len(content)} bytes, and its Content-Length says otherwise")
        else:
            prelude += content
        return cls(prelude, framing, None, may_persist)

    def upload(self) -> AsyncGenerator[bytes, None] | None:
        """The rest of the body, in pieces for the wire; None when the prelude is all there is."""
        return None if self.stream is None else self._framed(self.stream)

    async def _framed(self, stream: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        sent_bytes = 0
        async for piece in stream:
            sent_bytes += len(piece)
            if self.framing.is_chunked:
                if piece:
                    yield in_chunks(piece)
                continue
            if sent_bytes > (self.framing.content_length or 0):
                raise RequestRefused("the body is longer than its Content-Length")
            yield piece
        if self.framing.is_chunked:
            yield LAST_CHUNK
        elif sent_bytes != self.framing.content_length:
            raise RequestRefused("the body is shorter than its Content-Length")


def _origin_of(request: httpx.Request) -> Origin:
    url = request.url
    if url.scheme not in DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol("only http and https can be called")
    if url.userinfo:
        raise RequestRefused("the URL holds user information")
    if not url.raw_host:
        raise RequestRefused("the URL names no host")
    return Origin(
        scheme=url.scheme,
        host=url.raw_host.decode("ascii"),
        port=url.port or DEFAULT_PORTS[url.scheme],
        may_be_private=request.extensions.get(PRIVATE) is True,
    )


def _content_of(request: httpx.Request) -> bytes | AsyncIterable[bytes]:
    """The whole body, if it is at hand."""
    try:
        return request.content
    except httpx.RequestNotRead:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        return request.stream


def _check(origin: Origin, address: str) -> None:
    """Raises: AddressRefused, without the address: whoever asked is not to learn how private names resolve."""
    if not may_reach(origin.host, address, may_be_private=origin.may_be_private):
        logger.warning("%s leads to %s, where no request of this kind may go", origin.host, address)
        raise AddressRefused(
            f"{origin.host} leads to an address that is not public; only a rule that spells a private host, or one "
            "marked `private:`, admits such"
        )
