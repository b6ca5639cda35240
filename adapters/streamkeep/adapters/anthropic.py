"""The `anthropic` package: clients whose calls are durable, and their streams resumed.

The clients are the package's own, over `DurableTransport`, so whatever they can do is done as ever.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, overload

from anthropic import (
    Anthropic,
    APIConnectionError,
    AsyncAnthropic,
    AsyncStream,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    Stream,
)
from anthropic.types import RawMessageStreamEvent

from streamkeep.adapters._resuming import resume_headers
from streamkeep.client import DurableTransport, GenerationStore, MessageKeeper, NothingToResume


def durable_anthropic(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **anthropic_options: Any,
) -> Anthropic:
    """An `Anthropic` client whose calls go through the proxy.

    `session` names the session of every call that does not name one in its headers; `key` is the proxy's, `api_key`
    among the other options the vendor's. Closing the client closes its connections.
    """
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return Anthropic(http_client=DefaultHttpxClient(transport=transport), **anthropic_options)


def durable_async_anthropic(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **anthropic_options: Any,
) -> AsyncAnthropic:
    """`durable_anthropic` for asyncio."""
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return AsyncAnthropic(http_client=DefaultAsyncHttpxClient(transport=transport), **anthropic_options)


@overload
def resume_message(
    client: Anthropic, session_id: str, *, request_id: str | None = None
) -> Stream[RawMessageStreamEvent]: ...
@overload
def resume_message(
    client: AsyncAnthropic, session_id: str, *, request_id: str | None = None
) -> Coroutine[Any, Any, AsyncStream[RawMessageStreamEvent]]: ...
def resume_message(
    client: Anthropic | AsyncAnthropic, session_id: str, *, request_id: str | None = None
) -> Stream[RawMessageStreamEvent] | Coroutine[Any, Any, AsyncStream[RawMessageStreamEvent]]:
    """The session's newest streamed message, or the named one, from its first event on.

    Raises:
        NothingToResume: with the reason why.
    """
    headers = resume_headers(session_id, request_id=request_id)
    if isinstance(client, AsyncAnthropic):
        return _resume_async(client, headers)
    with _told_at_once():
        return client.with_options(max_retries=0).messages.create(
            model="", max_tokens=1, messages=[], stream=True, extra_headers=headers
        )


async def _resume_async(client: AsyncAnthropic, headers: dict[str, str]) -> AsyncStream[RawMessageStreamEvent]:
    with _told_at_once():
        return await client.with_options(max_retries=0).messages.create(
            model="", max_tokens=1, messages=[], stream=True, extra_headers=headers
        )


@contextmanager
def _told_at_once() -> Iterator[None]:
    """Say plainly that there is nothing to resume. The package takes it for a lost connection, wraps it, and would try
    again; the transport tries again by itself where that helps."""
    try:
        yield
    except APIConnectionError as exc:
        if isinstance(exc.__cause__, NothingToResume):
            raise exc.__cause__ from None
        raise
