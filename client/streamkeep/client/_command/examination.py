"""What `doctor` does: use a server through whatever stands before it, as readers do, and note what comes.

It asks httpx itself, since the client of streams would get over much of what is to be found.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from streamkeep.client._errors import ConnectionFailed, ProtocolError
from streamkeep.client._handles import OCTETS
from streamkeep.client._rules import diagnosis, protocol, wire
from streamkeep.client._rules.diagnosis import Answer, Finding, Live, Quiet
from streamkeep.client._rules.sse import EventDecoder
from streamkeep.client._server import USER_AGENT

_ANSWER_SECONDS = 10.0
_HELD_BACK_SECONDS = 3.0
_POLL_PAUSE_SECONDS = 0.3
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
_UPLOAD_BYTES = 2 * 1024 * 1024
_EVENTS = 5
_POLLS = 3
_SPARE_TTL_SECONDS = 300
# Every byte there is, and text that a filter would want to compress or to rewrite.
_BODY = bytes(range(256)) * 4 + b"<html><head></head><body>\r\n line\r line\n \xff\xfe</body></html>" * 50
_LIKE_A_BROWSER = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, deflate"}
_ALPN_SECONDS = 5.0
_TOO_LATE = "too late"

Report = Callable[[Finding], None]


async def examine(url: str, headers: Mapping[str, str], *, origin: str, seconds: float, report: Report) -> None:
    """Check a server on two streams of our own, `url` and one beside it; report each finding as it is made.

    `origin` is that of a page which reads; quiet connections are watched for `seconds`. The streams are gone at the end.

    Raises:
        ServerError, ProtocolError, ConnectionFailed: there is no stream to measure with.
    """
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
    within, named = httpx.Timeout(_ANSWER_SECONDS, read=None), {"User-Agent": USER_AGENT}
    async with httpx.AsyncClient(transport=transport, timeout=within, headers=named, trust_env=False) as client:
        await _Examination(client, url, headers, origin, seconds).run(report)


class _Examination:
    def __init__(
        self, client: httpx.AsyncClient, url: str, headers: Mapping[str, str], origin: str, seconds: float
    ) -> None:
        self._client = client
        self._url = url
        self._quiet_url = f"{url}-quiet"
        self._headers = dict(headers)
        self._origin = origin
        self._seconds = seconds

    async def run(self, report: Report) -> None:
        async with self._stream(self._quiet_url) as created, self._stream(self._url):
            events, poll = asyncio.create_task(self._quiet_events()), asyncio.create_task(self._quiet_poll())
            try:
                report(diagnosis.connection(self._url, created, await _protocol_offered(self._url)))
                report(diagnosis.address(self._url, await self._made_url() or created.headers.get("Location")))
                await self._whole_answers(report)
                report(diagnosis.polls(await self._polls()))
                report(diagnosis.events(await self._events()))
                report(diagnosis.quiet_events(await events))
                report(diagnosis.quiet_poll(await poll))
            finally:
                await _cancel(events, poll)

    async def _made_url(self) -> str | None:
        """A URL out of an answer's body, where gateways correct none; other servers than ours do not make any."""
        base, _, path = self._url.partition("/v1/stream/")
        asked = json.dumps({"path": path, "rights": ["read"], "seconds": 60}).encode()
        answer = await self._ask("POST", f"{base}/api/share", {"Content-Type": protocol.JSON}, asked)
        try:
            found = json.loads(answer.body)["url"] if answer.is_success else None
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return found if isinstance(found, str) else None

    async def _whole_answers(self, report: Report) -> None:
        appended, sent = await self._append(_BODY), _BODY
        if not appended.is_success:
            report(diagnosis.append(appended))
            sent = b""
        read = await self._read()
        report(diagnosis.body(sent, read))
        if read.is_success:
            report(diagnosis.headers(read))
            tag = read.headers.get("ETag", "").encode("ascii", "replace").decode()
            report(diagnosis.revalidation(await self._read({"If-None-Match": tag})))
            report(diagnosis.ranges(sent, await self._read({"Range": "bytes=0-3"})))
            page = {"Origin": self._origin}
            preflight = {**page, "Access-Control-Request-Method": "POST"}
            asked = await self._ask("OPTIONS", self._url, preflight, is_known=False)
            report(diagnosis.cross_origin(self._origin, await self._read(page), asked))
        if self._headers:
            report(diagnosis.strangers(await self._read(is_known=False)))
        large = await self._append(bytes(_UPLOAD_BYTES))
        report(diagnosis.upload(_UPLOAD_BYTES, large))
        tail = (large if large.is_success else appended).headers.get(wire.NEXT_OFFSET)
        report(diagnosis.head(tail, await self._ask("HEAD", self._url)))

    async def _polls(self) -> Live:
        """Append while a long-poll waits, some times."""
        delays: list[float] = []
        offset = (await self._ask("HEAD", self._url)).headers.get(wire.NEXT_OFFSET, protocol.NOW)
        for _ in range(_POLLS):
            payload = os.urandom(48)
            url = wire.read_url(self._url, offset=offset, live="long-poll")
            begun_at = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(self._ask("GET", url, {"Accept-Encoding": "identity"}))
                # Nothing tells that it waits over there; one that is late finds the data, which is as well.
                await asyncio.wait([waiting], timeout=_POLL_PAUSE_SECONDS)
                is_early = waiting.done()
                sent_at = time.monotonic()
                appended = await self._append(payload)
            answer = waiting.result()
            if is_early:
                return Live(_POLLS, tuple(delays), failure=f"it does not wait: {answer.shown}")
            if not (answer.is_success and appended.is_success):
                failed = appended if answer.is_success else answer
                return Live(_POLLS, tuple(delays), failure=failed.shown)
            delays.append(begun_at + answer.seconds - sent_at)
            if answer.body != payload:
                return Live(_POLLS, tuple(delays), is_equal=False)
            offset = answer.headers.get(wire.NEXT_OFFSET, offset)
        return Live(_POLLS, tuple(delays))

    async def _events(self) -> Live:
        """Append while server-sent events are read, each when the one before was seen; then close the stream."""
        offset = (await self._ask("HEAD", self._url)).headers.get(wire.NEXT_OFFSET, protocol.NOW)
        url = wire.read_url(self._url, offset=offset, live="sse")
        reading = _Events()
        sent, delays = b"", list[float]()
        task = asyncio.create_task(reading.run(self._client, url, {**self._headers, **_LIKE_A_BROWSER}))
        try:
            if not await reading.opens(_ANSWER_SECONDS):
                return Live(_EVENTS, (), failure=reading.failure or "the answer's head is held back")
            for _ in range(_EVENTS):
                payload = os.urandom(48)
                sent_at = time.monotonic()
                if not (appended := await self._append(payload)).is_success:
                    return Live(_EVENTS, tuple(delays), failure=appended.shown)
                sent += payload
                if not await reading.comes(len(sent), _HELD_BACK_SECONDS):
                    break
                delays.append(time.monotonic() - sent_at)
            await self._ask("POST", self._url, {wire.CLOSED: "true"})
            is_whole = await reading.comes(len(sent), _HELD_BACK_SECONDS)
        finally:
            await _cancel(task)
        return Live(
            _EVENTS,
            tuple(delays),
            came_at_end=is_whole and len(delays) < _EVENTS,
            is_equal=sent.startswith(reading.data),
            encoding=reading.encoding,
        )

    async def _quiet_events(self) -> Quiet:
        """Read a stream to which nothing comes, for as long as that may go on."""
        begun_at, heartbeats = time.monotonic(), 0
        try:
            async with asyncio.timeout(self._seconds):
                async with self._client.stream(
                    "GET",
                    wire.read_url(self._quiet_url, offset=protocol.NOW, live="sse"),
                    headers={**self._headers, **_LIKE_A_BROWSER},
                ) as response:
                    if response.status_code != 200:
                        return Quiet(time.monotonic() - begun_at, f"status {response.status_code}")
                    async for piece in response.aiter_bytes():
                        heartbeats += piece.startswith(b":")
        except TimeoutError:
            return Quiet(self._seconds, heartbeats=heartbeats)
        except httpx.HTTPError as exc:
            return Quiet(time.monotonic() - begun_at, type(exc).__name__, heartbeats=heartbeats)
        return Quiet(time.monotonic() - begun_at, "its end", is_clean=True, heartbeats=heartbeats)

    async def _quiet_poll(self) -> Quiet:
        """One long-poll to which nothing comes."""
        wait = wire.read_url(self._quiet_url, offset=protocol.NOW, live="long-poll")
        answer = await self._ask("GET", wait, within=self._seconds)
        if answer.failure == _TOO_LATE:
            return Quiet(self._seconds)
        is_clean = answer.status == 204 and wire.NEXT_OFFSET in answer.headers
        return Quiet(answer.seconds, answer.shown, is_clean=is_clean)

    async def _read(self, headers: Mapping[str, str] | None = None, *, is_known: bool = True) -> Answer:
        """All there is of the stream, as it was sent."""
        asked = {"Accept-Encoding": "identity", **(headers or {})}
        return await self._ask("GET", wire.read_url(self._url, offset=protocol.START), asked, is_known=is_known)

    async def _append(self, data: bytes) -> Answer:
        return await self._ask("POST", self._url, {"Content-Type": OCTETS}, data)

    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        *,
        is_known: bool = True,
        within: float = _ANSWER_SECONDS,
    ) -> Answer:
        """One request and its whole answer, or why there is none."""
        sent = {**(self._headers if is_known else {}), **(headers or {})}
        begun_at = time.monotonic()
        try:
            async with (
                asyncio.timeout(within),
                self._client.stream(method, url, headers=sent, content=content) as response,
            ):
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > _MAX_ANSWER_BYTES:
                        return Answer(failure="it has no end")
        except TimeoutError:
            return Answer(failure=_TOO_LATE)
        except httpx.HTTPError as exc:
            return Answer(failure=type(exc).__name__, seconds=time.monotonic() - begun_at)
        seconds = time.monotonic() - begun_at
        return Answer(response.status_code, response.headers, bytes(body), seconds, response.http_version)

    @asynccontextmanager
    async def _stream(self, url: str) -> AsyncIterator[Answer]:
        """A new stream, deleted at the end. Raises: ServerError, ProtocolError, ConnectionFailed."""
        ttl = str(round(self._seconds) + _SPARE_TTL_SECONDS)
        created = await self._ask("PUT", url, {"Content-Type": OCTETS, protocol.TTL: ttl})
        if created.failure is not None:
            raise ConnectionFailed(f"PUT at {wire.without_query(url)}: {created.shown}")
        if 300 <= created.status < 400:
            raise ProtocolError("the server answered with a redirect: ask the address that it leads to")
        if not created.is_success:
            raise protocol.refusal(
                created.status,
                created.headers,
                created.body,
                url=url,
                method="PUT",
                is_sequenced=False,
                retry_after_seconds=None,
            )
        try:
            yield created
        finally:
            await self._ask("DELETE", url)


class _Events:
    """One connection of server-sent events: what has come, and somebody who waits for more."""

    def __init__(self) -> None:
        self.is_open = False
        self.encoding: str | None = None
        self.failure: str | None = None
        self.data = b""
        self._is_over = False
        self._news = asyncio.Event()

    async def run(self, client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> None:
        """Read until the end, or until it is cancelled."""
        try:
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code != 200 or "text/event-stream" not in response.headers.get("Content-Type", ""):
                    self.failure = f"{response.status_code}, and no event stream"
                    return
                self.encoding = response.headers.get("Content-Encoding")
                is_base64 = response.headers.get(wire.SSE_DATA_ENCODING) == "base64"
                self.is_open = True
                self._news.set()
                decoder = EventDecoder(max_event_bytes=_MAX_ANSWER_BYTES)
                async for piece in response.aiter_bytes():
                    told = [event.data for event in decoder.feed(piece) if event.name == "data"]
                    self.data += b"".join(map(b64decode, told) if is_base64 else told)
                    self._news.set()
                    if len(self.data) > _MAX_ANSWER_BYTES:
                        return
        except (httpx.HTTPError, ProtocolError, ValueError) as exc:
            self.failure = type(exc).__name__
        finally:
            self._is_over = True
            self._news.set()

    async def opens(self, seconds: float) -> bool:
        """Wait for the answer's head, for so long at most; whether it came."""
        return await self._wait(lambda: self.is_open, seconds)

    async def comes(self, size_bytes: int, seconds: float) -> bool:
        """Wait until there is so much data, for so long at most; whether it came."""
        return await self._wait(lambda: len(self.data) >= size_bytes, seconds)

    async def _wait(self, is_there: Callable[[], bool], seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_there() and not self._is_over:
                    self._news.clear()
                    await self._news.wait()
        return is_there()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _protocol_offered(url: str) -> str | None:
    """What TLS agrees on when HTTP/2 is asked for; None without TLS."""
    scheme, host, port = wire.origin(url)
    if scheme != "https":
        return None
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with suppress(OSError):
        async with asyncio.timeout(_ALPN_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        offered: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.transport.abort()
        return offered
    return None
