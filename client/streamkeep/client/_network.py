"""The sync client's way to the network: httpx's own transport, but for many small chunks that come together.

What httpx's sync transport reads at once comes out chunk by chunk, each after a parser's whole turn, and nobody behind it
can tell whether there is more. So the stream below the parser merges them; see `_rules/chunks.py`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import httpcore
import httpx

from streamkeep.client._rules.chunks import ChunkMerger

# As the parser finds it.
_HEAD_END = re.compile(rb"\n\r?\n")
_SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]


@cache
def certificates() -> ssl.SSLContext:
    """Those of all authorities, as httpx chooses them, read once: it takes longer than most requests."""
    return httpx.create_ssl_context()


class Network(httpx.BaseTransport):
    """HTTP/1.1, with as many connections as are asked for; 20 are kept for half a minute. `trust` is whom to, if not httpx's choice."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=certificates() if trust is None else trust,
            max_connections=None,
            max_keepalive_connections=20,
            keepalive_expiry=30,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises: httpx.TransportError."""
        url = request.url
        with _httpx_errors():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=cast("Iterable[bytes]", request.stream),
                    extensions=request.extensions,
                )
            )
        made = httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )
        connection = response.extensions["network_stream"]
        if isinstance(connection, _Connection) and made.headers.get("Transfer-Encoding", "").lower() == "chunked":
            connection.body_begins()
        return made

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _httpx_errors():
            yield from cast("Iterable[bytes]", self._response.stream)

    def close(self) -> None:
        self._response.close()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """httpx's errors of the network have the names of those that they stand for."""
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as exc:
        counterpart: type[httpx.TransportError] = getattr(httpx, type(exc).__name__)
        raise counterpart(str(exc)) from exc


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        return _Connection(self._sockets.connect_tcp(host, port, timeout, local_address, socket_options))


class _Connection(httpcore.NetworkStream):
    """A connection whose bodies are read with their chunks merged, once it is told that one has begun."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._last_read = b""
        self._merger: ChunkMerger | None = None

    def body_begins(self) -> None:
        """The head of an answer in chunks was parsed, and its body, of which there may be something already, was not."""
        # Where the head came in several reads, or behind another, the body is parsed as it is.
        end = _HEAD_END.search(self._last_read)
        if end is not None and self._last_read.startswith(b"HTTP/1.1 2"):
            merger = ChunkMerger()
            merger.feed(self._last_read[end.end() :])
            self._merger = None if merger.holds_back else merger
        self._last_read = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, timeout)
        if self._merger is None:
            self._last_read = data
            return data
        while data and not (merged := self._merger.feed(data)):
            data = self._stream.read(max_bytes, timeout)
        return merged if data else b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._merger = None
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Connection(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
