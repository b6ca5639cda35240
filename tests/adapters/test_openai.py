"""`streamkeep.adapters.openai` with the real package: its clients, and its streams given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncStream, Stream

from streamkeep.adapters import resume_headers
from streamkeep.adapters.openai import durable_async_openai, durable_openai, resume_chat, resume_response
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason, Truncated
from tests.serving import Proxy

FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
QUESTION: Any = {"model": "m", "messages": [{"role": "user", "content": "What does the river say?"}], "stream": True}
ANSWER: Any = {"model": "m", "input": "And the sea?", "stream": True}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS: Any = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}],
    "tool_choice": "required",
}
ANSWER_TOOLS: Any = {
    "tools": [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}],
    "tool_choice": "required",
}

# How a call is made, how it is resumed, and what it asks.
CALLS = [
    pytest.param("chat", resume_chat, QUESTION, id="chat"),
    pytest.param("chat", resume_chat, {**QUESTION, **CHAT_TOOLS}, id="chat-tools"),
    pytest.param("responses", resume_response, ANSWER, id="responses"),
    pytest.param("responses", resume_response, {**ANSWER, **ANSWER_TOOLS}, id="responses-tools"),
]


def create(client: Any, api: str) -> Callable[..., Any]:
    method: Callable[..., Any] = client.chat.completions.create if api == "chat" else client.responses.create
    return method


@pytest.mark.parametrize(("api", "resume", "question"), CALLS)
async def test_a_stream_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, api: str, resume: Callable[..., Any], question: Any
) -> None:
    """By its name with another local store too, as on another machine: the proxy knows it."""
    options: Any = {"base_url": f"{vendor}/v1", "api_key": "any", "default_headers": {**FAST, "Fake-Rate": "40"}}

    def blocking() -> None:
        with (
            durable_openai(proxy.url, session=session, store=MemoryStore(), **options) as first,
            durable_openai(proxy.url, store=MemoryStore(), **options) as second,
        ):
            with create(first, api)(**question, extra_headers={"X-Request-ID": "1"}) as left:
                begun = [next(left) for _ in range(3)]
            for resumed in (resume(first, session), resume(second, session, request_id="1")):
                assert type(resumed) is Stream
                assert_whole(list(resumed), begun, question)

    await asyncio.to_thread(blocking)


@pytest.mark.parametrize(("api", "resume", "question"), CALLS)
async def test_an_async_stream_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, api: str, resume: Callable[..., Any], question: Any
) -> None:
    """By its name even when all its bytes had arrived before it was left."""
    options: Any = {"base_url": f"{vendor}/v1", "api_key": "any", "default_headers": FAST}
    async with durable_async_openai(proxy.url, session=session, store=MemoryStore(), **options) as client:
        async with await create(client, api)(**question, extra_headers={"X-Request-ID": "1"}) as left:
            begun = [await anext(left) for _ in range(3)]
        resumed = await resume(client, session, request_id="1")
        assert type(resumed) is AsyncStream
        assert_whole([event async for event in resumed], begun, question)


def assert_whole(events: list[Any], begun: list[Any], question: Any) -> None:
    assert events[: len(begun)] == begun
    last = events[-1]
    if "messages" in question:
        assert last.choices[0].finish_reason == ("tool_calls" if "tools" in question else "stop")
    else:
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == ["function_call" if "tools" in question else "message"]


async def test_a_call_that_was_not_streamed_is_resumed_by_its_headers(proxy: Proxy, vendor: str, session: str) -> None:
    options: Any = {"base_url": f"{vendor}/v1", "api_key": "any", "default_headers": FAST}
    question = {**QUESTION, "stream": False}
    async with durable_async_openai(proxy.url, session=session, store=MemoryStore(), **options) as client:
        first = await client.chat.completions.create(**question, extra_headers={"X-Request-ID": "1"})
        headers = resume_headers(session, request_id="1")
        assert await client.chat.completions.create(**question, extra_headers=headers) == first


async def test_errors_are_the_packages_and_ours(proxy: Proxy, vendor: str, session: str) -> None:
    options: Any = {"base_url": f"{vendor}/v1", "api_key": "any", "default_headers": FAST, "max_retries": 0}
    async with durable_async_openai(proxy.url, session=session, store=MemoryStore(), **options) as client:
        for resume in (resume_chat, resume_response):
            with pytest.raises(NothingToResume) as nothing:
                await resume(client, session)
            assert nothing.value.reason is ResumeReason.NONE
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**QUESTION, extra_headers={"Fake-Fault": "status:429"})
        cut = {"Fake-Fault": "truncate@9", "X-Request-ID": "cut"}
        with pytest.raises(Truncated):
            [chunk async for chunk in await client.chat.completions.create(**QUESTION, extra_headers=cut)]
        with pytest.raises(Truncated):
            [chunk async for chunk in await resume_chat(client, session, request_id="cut")]


async def test_the_proxys_key_reaches_the_proxy_alone(proxy: Proxy, vendor: str, session: str) -> None:
    options: Any = {"base_url": f"{vendor}/v1", "api_key": "the-vendors", "default_headers": FAST}
    async with durable_async_openai(
        proxy.url, session=session, key="the-proxys", store=MemoryStore(), **options
    ) as client:
        await client.chat.completions.create(**{**QUESTION, "stream": False}, extra_headers={"Fake-Key": session})
    (call,) = (await proxy.client.get(f"{vendor}/_fake/calls", params={"key": session})).json()["calls"]
    assert call["headers"]["authorization"] == "Bearer the-vendors"
    assert "the-proxys" not in str(call["headers"])
