"""`streamkeep.adapters.anthropic` with the real package: its clients, and its streams given back."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from anthropic import AsyncStream, Stream

from streamkeep.adapters.anthropic import durable_anthropic, durable_async_anthropic, resume_message
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason, Truncated
from tests.serving import Proxy

FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
QUESTION: Any = {
    "model": "m",
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "What does the river say?"}],
    "stream": True,
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = {"tools": [{"name": "weather", "input_schema": WEATHER}], "tool_choice": {"type": "any"}}

QUESTIONS = [pytest.param(QUESTION, id="text"), pytest.param({**QUESTION, **TOOLS}, id="tools")]


def options(vendor: str, **headers: str) -> dict[str, Any]:
    return {"base_url": vendor, "api_key": "any", "default_headers": {**FAST, **headers}}


def assert_whole(events: list[Any], begun: list[Any], question: Any) -> None:
    assert events[: len(begun)] == begun
    assert events[-1].type == "message_stop"
    assert events[-2].delta.stop_reason == ("tool_use" if "tools" in question else "end_turn")


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_stream_that_was_left_is_resumed_whole(proxy: Proxy, vendor: str, session: str, question: Any) -> None:
    """By its name with another local store too, as on another machine: the proxy knows it."""
    given = options(vendor, **{"Fake-Rate": "40"})

    def blocking() -> None:
        with (
            durable_anthropic(proxy.url, session=session, store=MemoryStore(), **given) as first,
            durable_anthropic(proxy.url, store=MemoryStore(), **given) as second,
        ):
            with first.messages.create(**question, extra_headers={"X-Request-ID": "1"}) as left:
                begun = [next(left) for _ in range(3)]
            for resumed in (resume_message(first, session), resume_message(second, session, request_id="1")):
                assert type(resumed) is Stream
                assert_whole(list(resumed), begun, question)

    await asyncio.to_thread(blocking)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_an_async_stream_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, question: Any
) -> None:
    async with durable_async_anthropic(proxy.url, session=session, store=MemoryStore(), **options(vendor)) as client:
        async with await client.messages.create(**question, extra_headers={"X-Request-ID": "1"}) as left:
            begun = [await anext(left) for _ in range(3)]
        resumed = await resume_message(client, session, request_id="1")
        assert type(resumed) is AsyncStream
        assert_whole([event async for event in resumed], begun, question)


async def test_that_there_is_nothing_to_resume_is_told_at_once(proxy: Proxy, vendor: str, session: str) -> None:
    def blocking() -> NothingToResume:
        with durable_anthropic(proxy.url, store=MemoryStore(), **options(vendor)) as client:
            with pytest.raises(NothingToResume) as caught:
                resume_message(client, session)
            return caught.value

    assert (await asyncio.to_thread(blocking)).reason is ResumeReason.NONE
    async with durable_async_anthropic(proxy.url, store=MemoryStore(), **options(vendor)) as client:
        with pytest.raises(NothingToResume) as caught:
            await resume_message(client, session)
        assert caught.value.reason is ResumeReason.NONE


async def test_errors_are_the_packages_and_ours(proxy: Proxy, vendor: str, session: str) -> None:
    given = {**options(vendor), "max_retries": 0}
    async with durable_async_anthropic(proxy.url, session=session, store=MemoryStore(), **given) as client:
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(**QUESTION, extra_headers={"Fake-Fault": "status:429"})
        cut = {"Fake-Fault": "truncate@9", "X-Request-ID": "cut"}
        with pytest.raises(Truncated):
            [event async for event in await client.messages.create(**QUESTION, extra_headers=cut)]
        with pytest.raises(Truncated):
            [event async for event in await resume_message(client, session, request_id="cut")]
