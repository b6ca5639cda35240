"""Plain `httpx`: clients whose requests are durable, and their responses resumed."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, overload

import httpx

from streamkeep.adapters._resuming import resume_headers
from streamkeep.client import DurableTransport, GenerationStore, MessageKeeper

# A resume goes to the proxy alone; httpx wants a URL all the same, also where the client has no base.
_NOWHERE = "http://resumed.invalid/"


def durable_httpx(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **httpx_options: Any,
) -> httpx.Client:
    """An `httpx.Client` whose requests go through the proxy.

    `session` names the session of every request that does not name one in its headers; `key` is the proxy's. Closing
    the client closes its connections.
    """
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return httpx.Client(transport=transport, **httpx_options)


def durable_async_httpx(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **httpx_options: Any,
) -> httpx.AsyncClient:
    """`durable_httpx` for asyncio."""
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return httpx.AsyncClient(transport=transport, **httpx_options)


@overload
def resume_httpx(
    client: httpx.Client, session_id: str, *, request_id: str | None = None
) -> AbstractContextManager[httpx.Response]: ...
@overload
def resume_httpx(
    client: httpx.AsyncClient, session_id: str, *, request_id: str | None = None
) -> AbstractAsyncContextManager[httpx.Response]: ...
def resume_httpx(
    client: httpx.Client | httpx.AsyncClient, session_id: str, *, request_id: str | None = None
) -> AbstractContextManager[httpx.Response] | AbstractAsyncContextManager[httpx.Response]:
    """The session's newest response, or the named one, from its first byte on, as `client.stream` gives it.

    It has the status and headers of upstream's answer. Entering it raises `NothingToResume`, with the reason why, where
    there is none.
    """
    return client.stream("GET", _NOWHERE, headers=resume_headers(session_id, request_id=request_id))
