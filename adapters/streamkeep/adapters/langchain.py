"""LangChain, by `langchain-openai`: the streams of its chat models resumed.

`ChatOpenAI` takes the httpx clients that `streamkeep.adapters.httpx` makes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from langchain_core.messages import AIMessageChunk
from langchain_openai.chat_models.base import BaseChatOpenAI

from streamkeep.adapters._resuming import resume_headers


def resume_stream(model: BaseChatOpenAI, session_id: str, *, request_id: str | None = None) -> Iterator[AIMessageChunk]:
    """The session's newest streamed answer, or the named one, as `model.stream` gives it, from its first chunk on.

    `model` is one over a durable client, of the API that was asked. The sum of the chunks is the whole message, with
    the tools that were called.

    Raises:
        NothingToResume: with the reason why.
    """
    return model.stream("", extra_headers=resume_headers(session_id, request_id=request_id))


def resume_astream(
    model: BaseChatOpenAI, session_id: str, *, request_id: str | None = None
) -> AsyncIterator[AIMessageChunk]:
    """`resume_stream` for asyncio, as `model.astream` gives it."""
    return model.astream("", extra_headers=resume_headers(session_id, request_id=request_id))
