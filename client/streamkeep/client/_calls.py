"""Requests of httpx, or of its like, as calls for the core."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from streamkeep.client._channel import Channel
from streamkeep.client._responses import HttpLibrary
from streamkeep.client._server import Content, Timeouts, UpstreamCall

# Bodies up to this size are read before they are sent, so that they can be sent again.
_BUFFERED_BODY_BYTES = 1024 * 1024

DEFAULT_TTL_SECONDS = 3600.0
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


async def upstream_call(request: httpx.Request, channel: Channel, library: HttpLibrary) -> UpstreamCall:
    """What upstream is to be asked. A body that is a stream, and long or of unknown length, stays a stream."""
    url = request.url.copy_with(username=None, password=None, fragment=None)
    content: Content
    try:
        content = request.content
    except library.RequestNotRead:
        length = request.headers.get("Content-Length", "")
        is_small = length.isascii() and length.isdigit() and int(length) <= _BUFFERED_BODY_BYTES
        content = await channel.read_request(request) if is_small else channel.streamed(request)
    return UpstreamCall(request.method.upper(), str(url), tuple(request.headers.raw), content)


def timeouts_of(timeout: httpx.Timeout | float | None) -> Timeouts:
    """The limits that httpx's own value means."""
    timeout = httpx.Timeout(timeout)
    return Timeouts(timeout.connect, timeout.read, timeout.write, timeout.pool)


def timeouts_in(extensions: Mapping[str, object]) -> Timeouts:
    """The limits that a client put into a request."""
    found = extensions.get("timeout")
    if not isinstance(found, Mapping):
        return timeouts_of(DEFAULT_TIMEOUT)
    return Timeouts(found.get("connect"), found.get("read"), found.get("write"), found.get("pool"))
