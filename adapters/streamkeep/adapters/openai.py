"""The `openai` package: clients whose calls are durable, and their streams resumed.

The clients are the package's own, over `DurableTransport`, so whatever they can do is done as ever.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, overload

from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from streamkeep.adapters._resuming import resume_headers
from streamkeep.client import DurableTransport, GenerationStore, MessageKeeper


def durable_openai(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **openai_options: Any,
) -> OpenAI:
    """An `OpenAI` client whose calls go through the proxy.

    `session` names the session of every call that does not name one in its headers; `key` is the proxy's, `api_key`
    among the other options the vendor's. Closing the client closes its connections.
    """
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return OpenAI(http_client=DefaultHttpxClient(transport=transport), **openai_options)


def durable_async_openai(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
    **openai_options: Any,
) -> AsyncOpenAI:
    """`durable_openai` for asyncio."""
    transport = DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    return AsyncOpenAI(http_client=DefaultAsyncHttpxClient(transport=transport), **openai_options)


@overload
def resume_chat(client: OpenAI, session_id: str, *, request_id: str | None = None) -> Stream[ChatCompletionChunk]: ...
@overload
def resume_chat(
    client: AsyncOpenAI, session_id: str, *, request_id: str | None = None
) -> Coroutine[Any, Any, AsyncStream[ChatCompletionChunk]]: ...
def resume_chat(
    client: OpenAI | AsyncOpenAI, session_id: str, *, request_id: str | None = None
) -> Stream[ChatCompletionChunk] | Coroutine[Any, Any, AsyncStream[ChatCompletionChunk]]:
    """The session's newest streamed chat completion, or the named one, from its first chunk on.

    Raises:
        NothingToResume: with the reason why.
    """
    headers = resume_headers(session_id, request_id=request_id)
    return client.chat.completions.create(model="", messages=[], stream=True, extra_headers=headers)


@overload
def resume_response(
    client: OpenAI, session_id: str, *, request_id: str | None = None
) -> Stream[ResponseStreamEvent]: ...
@overload
def resume_response(
    client: AsyncOpenAI, session_id: str, *, request_id: str | None = None
) -> Coroutine[Any, Any, AsyncStream[ResponseStreamEvent]]: ...
def resume_response(
    client: OpenAI | AsyncOpenAI, session_id: str, *, request_id: str | None = None
) -> Stream[ResponseStreamEvent] | Coroutine[Any, Any, AsyncStream[ResponseStreamEvent]]:
    """The session's newest streamed answer of the Responses API, or the named one, from its first event on.

    Raises:
        NothingToResume: with the reason why.
    """
    headers = resume_headers(session_id, request_id=request_id)
    return client.responses.create(model="", input="", stream=True, extra_headers=headers)
