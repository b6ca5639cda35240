"""The few requests that the other server gets, all of the open protocol: create, append, read, tail, delete."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import httpx

from streamkeep.storage._errors import (
    ItemRefused,
    ProducerFenced,
    StoreUnavailable,
    StreamClosed,
    StreamNotFound,
)
from streamkeep.storage._types import Producer

START = "-1"

# Servers hold a long-poll for as long as they like; after that it is asked again, in case that the connection is dead.
_LONG_POLL_SECONDS = 40.0
_BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Page:
    """What a read found: bytes, and the offset of what comes after them. `is_end`: nothing ever will."""

    data: bytes
    next_offset: str
    is_up_to_date: bool
    is_end: bool
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteTail:
    """Where a stream of the other server ends now. Its offsets are opaque, but sort as strings."""

    offset: str
    is_closed: bool


@cache
def _certificates() -> ssl.SSLContext:
    """Those of all authorities, read once: it takes longer than to make all the rest of a store."""
    return httpx.create_ssl_context(trust_env=False)


class Server:
    """Streams below one URL of another server. `token` is sent as a bearer token, to nobody else. `request_seconds` is how
    long it may stay silent, but for long-polls.

    Every call raises `StoreUnavailable` when the server cannot be reached or refuses to serve, and then what was sent may
    or may not have been done; and `StreamNotFound` when the stream is not there.
    """

    def __init__(self, url: str, token: str | None = None, *, request_seconds: float = 5.0) -> None:
        self._url = url.rstrip("/")
        self._request_seconds = request_seconds
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=request_seconds,
            limits=httpx.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=False,
            verify=_certificates(),
        )

    def __repr__(self) -> str:
        return f"Server({httpx.URL(self._url).host})"

    async def close(self) -> None:
        await self._client.aclose()

    async def create(self, path: str, data: bytes = b"") -> bool:
        """Make a stream with its first bytes; False: it was there, and is left as it is."""
        answer = await self._send("PUT", path, content=data, headers={"Content-Type": _BYTES})
        return answer.status_code == 201

    async def append(self, path: str, data: bytes, *, producer: Producer | None = None, is_close: bool = False) -> None:
        """Append, once however often it is called with the same producer and sequence.

        Raises:
            StreamClosed: nothing was stored.
            ProducerFenced: a later epoch has written.
            ItemRefused: it is larger than the server takes.
        """
        headers = {"Content-Type": _BYTES} if data else {}
        if is_close:
            headers["Stream-Closed"] = "true"
        if producer is not None:
            headers |= {
                "Producer-Id": producer.id,
                "Producer-Epoch": str(producer.epoch),
                "Producer-Seq": str(producer.sequence),
            }
        await self._send("POST", path, content=data, headers=headers)

    async def read(self, path: str, offset: str, *, is_live: bool = False, cursor: str | None = None) -> Page:
        """What stands from an offset on; if `is_live`, wait for something for as long as the server does."""
        query = {"offset": offset}
        silence_seconds = self._request_seconds
        if is_live:
            query["live"] = "long-poll"
            silence_seconds = _LONG_POLL_SECONDS
            if cursor is not None:
                query["cursor"] = cursor
        answer = await self._send(
            "GET", path, params=query, timeout=httpx.Timeout(self._request_seconds, read=silence_seconds)
        )
        is_up_to_date = _is_true(answer, "Stream-Up-To-Date")
        return Page(
            answer.content if answer.status_code == 200 else b"",
            _next_offset(answer),
            is_up_to_date,
            _is_true(answer, "Stream-Closed"),
            answer.headers.get("Stream-Cursor"),
        )

    async def tail(self, path: str) -> RemoteTail:
        answer = await self._send("HEAD", path)
        return RemoteTail(_next_offset(answer), _is_true(answer, "Stream-Closed"))

    async def delete(self, path: str) -> None:
        """Delete a stream, if it is there."""
        try:
            await self._send("DELETE", path)
        except StreamNotFound:
            return

    async def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | None = None,  # noqa: ASYNC109
    ) -> httpx.Response:
        request = self._client.build_request(
            method,
            f"{self._url}/{path}",
            content=content,
            headers=headers,
            params=params,
            timeout=timeout or httpx.Timeout(self._request_seconds),
        )
        try:
            answer = await self._client.send(request)
        except httpx.HTTPError as exc:
            # The message may quote the URL.
            raise StoreUnavailable(f"the stream server cannot be reached: {type(exc).__name__}") from exc
        if answer.is_success:
            return answer
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> Exception:
    status = answer.status_code
    if status in (404, 410):
        return StreamNotFound("the stream server has no such stream")
    if status == 409 and _is_true(answer, "Stream-Closed"):
        return StreamClosed(0)
    if status == 403 and answer.headers.get("Producer-Epoch", "").isdecimal():
        return ProducerFenced(int(answer.headers["Producer-Epoch"]))
    if status == 413:
        return ItemRefused("the stream server takes no request of this size")
    return StoreUnavailable(f"the stream server answered {status}")


def _next_offset(answer: httpx.Response) -> str:
    offset: str | None = answer.headers.get("Stream-Next-Offset")
    if not offset:
        raise StoreUnavailable("the stream server told no offset: is it one?")
    return offset


def _is_true(answer: httpx.Response, name: str) -> bool:
    value: str = answer.headers.get(name, "")
    return value.lower() == "true"
