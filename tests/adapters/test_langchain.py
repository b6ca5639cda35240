"""`streamkeep.adapters.langchain` with the real package, over chat completions and the Responses API."""

from __future__ import annotations

import asyncio
from functools import reduce
from operator import add
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from streamkeep.adapters.httpx import durable_async_httpx, durable_httpx
from streamkeep.adapters.langchain import resume_astream, resume_stream
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason, Truncated
from tests.serving import Proxy

QUESTION = "What does the river say?"
FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
NAMED: Any = {"extra_headers": {"X-Request-ID": "1"}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat_model(vendor: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="m", base_url=f"{vendor}/v1", api_key=lambda: "any", max_retries=0, default_headers=FAST, **options
    )


def assert_whole(chunks: list[AIMessageChunk], begun: AIMessageChunk, *, tools: bool) -> None:
    assert all(type(chunk) is AIMessageChunk for chunk in chunks)
    assert chunks[0].content == begun.content
    whole = reduce(add, chunks)
    if tools:
        assert [call["name"] for call in whole.tool_calls] == ["weather"]
        assert set(whole.tool_calls[0]["args"]) == {"city"}
    else:
        assert len(whole.text) > 100
    assert chunks[-1].chunk_position == "last"


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
async def test_a_stream_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, responses: bool, tools: bool
) -> None:
    def blocking() -> tuple[AIMessageChunk, list[AIMessageChunk]]:
        with durable_httpx(proxy.url, session=session, store=MemoryStore()) as http:
            model = chat_model(vendor, http_client=http, use_responses_api=responses)
            asked: Any = model.bind_tools([WEATHER], tool_choice="required") if tools else model
            left = asked.stream(QUESTION, **NAMED)
            begun = next(left)
            left.close()
            return begun, list(resume_stream(model, session, request_id="1"))

    begun, chunks = await asyncio.to_thread(blocking)
    assert_whole(chunks, begun, tools=tools)


@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
async def test_an_async_stream_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, tools: bool
) -> None:
    async with durable_async_httpx(proxy.url, session=session, store=MemoryStore()) as http:
        model = chat_model(vendor, http_async_client=http)
        asked: Any = model.bind_tools([WEATHER], tool_choice="required") if tools else model
        left = asked.astream(QUESTION, **NAMED)
        begun = await anext(left)
        await left.aclose()
        chunks = [chunk async for chunk in resume_astream(model, session, request_id="1")]
    assert_whole(chunks, begun, tools=tools)


async def test_errors_are_the_vendors_packages_and_ours(proxy: Proxy, vendor: str, session: str) -> None:
    async with durable_async_httpx(proxy.url, session=session, store=MemoryStore()) as http:
        model = chat_model(vendor, http_async_client=http)
        with pytest.raises(NothingToResume) as nothing:
            await anext(resume_astream(model, session))
        assert nothing.value.reason is ResumeReason.NONE
        limited: Any = {"extra_headers": {"Fake-Fault": "status:429"}}
        with pytest.raises(openai.RateLimitError):
            await anext(model.astream(QUESTION, **limited))
        cut: Any = {"extra_headers": {"Fake-Fault": "truncate@9", "X-Request-ID": "cut"}}
        with pytest.raises(Truncated):
            [chunk async for chunk in model.astream(QUESTION, **cut)]
        with pytest.raises(Truncated):
            [chunk async for chunk in resume_astream(model, session, request_id="cut")]
