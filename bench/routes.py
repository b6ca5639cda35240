"""How a client gets one stream from each kind of system: the requests it makes, and what it does with the answers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from bench.http_client import Connection, Deliver, RequestFailed

_BODY = json.dumps({"model": "bench", "stream": True, "messages": [{"role": "user", "content": "Count."}]}).encode()
_HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer bench"}
_TOO_BUSY = 503
_RETRY_SECONDS = 1


class Taker(Protocol):
    """Who wants a stream, and is told what comes of it."""

    @property
    def stream_id(self) -> str: ...

    def created(self, at_ns: int) -> None:
        """By this instant the caller knew that upstream had accepted."""

    def repeated(self) -> None:
        """The stream has to be asked for again, from where it broke off."""

    def receive(self, data: bytes, at_ns: int) -> None:
        """Bytes of the stream, and when they were here."""


class Route(Protocol):
    """A way from a request to upstream's bytes."""

    @property
    def base_url(self) -> str:
        """Where to connect."""

    async def play(self, connection: Connection, target: str, taker: Taker) -> None:
        """Ask for the stream at upstream's `target`; returns when it has ended.

        Raises:
            RequestFailed: it did not come to its end.
        """


@dataclass(frozen=True, slots=True)
class PlainRoute:
    """One request, whose answer is the stream: upstream itself, or something that passes it through."""

    base_url: str

    async def play(self, connection: Connection, target: str, taker: Taker) -> None:
        await connection.request(
            "POST", target, headers=_HEADERS, body=_BODY, deliver=taker.receive, on_head=taker.created
        )


@dataclass(frozen=True, slots=True)
class DurableRoute:
    """Create a generation, then read its data stream as our clients do: server-sent events that carry base64, asked for
    again when the server ends the connection before the stream, or is too busy for the moment."""

    base_url: str
    upstream_url: str

    async def play(self, connection: Connection, target: str, taker: Taker) -> None:
        stream = urlsplit(await create(connection, self.upstream_url + target, taker.stream_id))
        taker.created(time.monotonic_ns())
        events = EventDecoder(taker.receive)
        while True:
            query = f"{stream.query}&offset={events.next_offset}&live=sse&encoding=base64"
            try:
                await connection.request("GET", f"{stream.path}?{query}", deliver=events.feed)
            except RequestFailed as exc:
                if exc.status != _TOO_BUSY:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            if events.is_closed:
                return
            taker.repeated()


async def create(connection: Connection, upstream_url: str, session_id: str) -> str:
    """Have the proxy make a generation of what upstream answers; the URL of its data stream. Raises: RequestFailed."""
    headers = {**_HEADERS, "X-Proxy-Url": upstream_url, "X-Proxy-Method": "POST"}
    answer = await connection.request("POST", f"/api/{session_id}/1", headers=headers, body=_BODY)
    url: str = json.loads(answer)["streamUrl"]
    return url


class EventDecoder:
    """Takes the bytes of server-sent events and delivers what their base64 stands for."""

    def __init__(self, deliver: Deliver) -> None:
        self.is_closed = False
        self._deliver = deliver
        self._rest = b""
        self._control = b'{"streamNextOffset":"-1"}'

    @property
    def next_offset(self) -> str:
        """Where to go on when the server ends the connection before the stream has ended."""
        offset: str = json.loads(self._control)["streamNextOffset"]
        return offset

    def feed(self, data: bytes, at_ns: int) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            _, _, payload = event.partition(b"\ndata:")
            if event.startswith(b"event: data\n"):
                self._deliver(base64.b64decode(payload), at_ns)
            elif event.startswith(b"event: control\n"):
                self._control = payload
                self.is_closed = b'"streamClosed":true' in payload
