"""The load side's HTTP: one connection, one request at a time, bytes handed on as they arrive. It costs little.

What belongs to a stream is read with its time and looked at behind all that can be read now: what one reader's bytes cost
this process must not make those of the next one late.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

_SHOWN_BYTES = 300
_NO_HEADERS: Mapping[str, str] = {}

Deliver = Callable[[bytes, int], None]
"""Takes bytes of a body, and the monotonic nanosecond at which they were here."""


class RequestFailed(Exception):
    """The answer was not the one that was wanted, or it broke off; then there is no `status`."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Whom to connect to, and what to call it in a request."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    name: str

    @classmethod
    def of(cls, base_url: str) -> Self:
        url = urlsplit(base_url)
        is_secure = url.scheme == "https"
        port = url.port or (443 if is_secure else 80)
        return cls(url.hostname or "", port, ssl.create_default_context() if is_secure else None, url.netloc)


class Connection(asyncio.Protocol):
    """One connection, kept open between requests. `headers` go with each of them."""

    def __init__(self, host: str, headers: Mapping[str, str]) -> None:
        self._fields = {"Host": host, **headers}
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._received_at_ns = 0
        self._arrived: list[tuple[bytes, int]] = []
        self._is_stream = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._deliver: Deliver = _ignore
        self._on_head: Callable[[int], None] = _nothing
        self._answered: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, base_url: str, headers: Mapping[str, str] = _NO_HEADERS) -> Self:
        """Connect to the host and port of a URL. Raises: OSError."""
        address, loop = Address.of(base_url), asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: cls(address.name, headers), address.host, address.port, ssl=address.tls
        )
        return connection

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def header(self, name: str) -> str:
        """A header of the last answer, by its name in lower case; "" where there is none."""
        return self._headers.get(name, "")

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        deliver: Deliver | None = None,
        on_head: Callable[[int], None] | None = None,
        wanted: Collection[int] = (200,),
    ) -> bytes:
        """Send a request; returns the body when the answer is complete, or b"" where `deliver` took it.

        `on_head` gets the instant at which the answer's head was here.

        Raises:
            RequestFailed: the status is none of those `wanted`, or the connection ended.
        """
        assert self._transport is not None
        collected: list[bytes] = []
        self._status = 0
        self._headers = {}
        self._on_head = on_head or _nothing
        self._is_stream = deliver is not None
        self._deliver = lambda data, at_ns: (
            deliver(data, at_ns) if deliver is not None and self._status in wanted else collected.append(data)
        )
        self._answered = asyncio.get_running_loop().create_future()
        fields = {**self._fields, **(headers or {})}
        if body:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self._transport.write("\r\n".join(lines).encode("ascii") + body)
        await self._answered
        answer = b"".join(collected)
        if self._status not in wanted:
            message = f"{method} {target.partition('?')[0]}: {self._status} {answer[:_SHOWN_BYTES]!r}"
            raise RequestFailed(message, self._status)
        return answer

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no class of asyncio.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look()
        self._fail(RequestFailed(f"the connection ended: {exc or 'closed by the server'}"))

    def data_received(self, data: bytes) -> None:
        if not self._is_stream:
            self._parse(data, time.monotonic_ns())
            return
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._look)
        self._arrived.append((data, time.monotonic_ns()))

    def _look(self) -> None:
        arrived, self._arrived = self._arrived, []
        for data, at_ns in arrived:
            self._parse(data, at_ns)

    def _parse(self, data: bytes, at_ns: int) -> None:
        self._received_at_ns = at_ns
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(RequestFailed(f"the answer cannot be read: {exc.__context__ or exc}"))
            self.close()

    # Called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._on_head(self._received_at_ns)

    def on_body(self, body: bytes) -> None:
        self._deliver(body, self._received_at_ns)

    def on_message_complete(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _fail(self, exc: RequestFailed) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc)


def _ignore(data: bytes, at_ns: int) -> None:
    pass


def _nothing(at_ns: int) -> None:
    pass
