"""Readers by server-sent events that keep what they get as it comes, each read with its time, and look at it afterwards.

So a delivery costs the load side little more than it costs the kernel, and every byte is compared all the same.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from array import array
from collections.abc import Iterator, Mapping
from typing import Self, cast

import httptools

from bench.http_client import Address

_LAST_CHUNK = b"0\r\n\r\n"
_UP_TO_DATE = re.compile(rb'"upToDate": ?true')
_NO_HEADERS: Mapping[str, str] = {}
_SHOWN_BYTES = 300


class Listener(asyncio.Protocol):
    """One reader, over a connection of its own. `caught_up` is done once the tail was reached, `ended` with the answer."""

    def __init__(self, head: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.caught_up: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._head = head
        self._transport: asyncio.Transport | None = None
        # Bytes and plain numbers: a pair for each read would keep the garbage collector busy.
        self._pieces: list[bytes] = []
        self._times_ns = array("q")

    @classmethod
    async def open(cls, url: str, target: str, headers: Mapping[str, str] = _NO_HEADERS) -> Self:
        """Connect and ask. Raises: OSError."""
        address, loop = Address.of(url), asyncio.get_running_loop()
        fields = {"Host": address.name, "Accept": "text/event-stream", **headers}
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        head = "\r\n".join(lines).encode("ascii")
        _, listener = await loop.create_connection(lambda: cls(head), address.host, address.port, ssl=address.tls)
        return listener

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def received(self) -> list[tuple[bytes, int]]:
        """What stood in the data events, in order, and the monotonic nanosecond at which each was here.

        Raises:
            ValueError: the answer was not a stream of events.
        """
        return list(_Answer().events(zip(self._pieces, self._times_ns, strict=True)))

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no class of asyncio.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        _settle(self.caught_up)
        _settle(self.ended)

    def data_received(self, data: bytes) -> None:
        self._times_ns.append(time.monotonic_ns())
        self._pieces.append(data)
        if not self.caught_up.done() and _UP_TO_DATE.search(b"".join(self._pieces[-2:])):
            _settle(self.caught_up)
        if data.endswith(_LAST_CHUNK):
            _settle(self.ended)


class _Answer:
    """Takes the bytes of an answer apart."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._is_base64 = False

    def events(self, pieces: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
        rest = b""
        for piece, at_ns in pieces:
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserError as exc:
                raise ValueError(f"the answer cannot be read: {exc.__context__ or exc}") from exc
            *events, rest = b"".join((rest, *self._body)).split(b"\n\n")
            self._body.clear()
            if (status := self._parser.get_status_code()) != 200:
                raise ValueError(f"{status} {piece[:_SHOWN_BYTES]!r}")
            for event in events:
                if event.startswith(b"event: data\n"):
                    yield self._payload(event), at_ns

    def _payload(self, event: bytes) -> bytes:
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        return base64.b64decode(b"".join(lines)) if self._is_base64 else b"\n".join(lines)

    # Called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"stream-sse-data-encoding":
            self._is_base64 = value == b"base64"

    def on_body(self, body: bytes) -> None:
        self._body.append(body)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
