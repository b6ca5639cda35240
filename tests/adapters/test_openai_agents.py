"""`streamkeep.adapters.openai_agents` with the real package, over chat completions and the Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from agents.items import TResponseStreamEvent

from streamkeep.adapters.openai import durable_async_openai
from streamkeep.adapters.openai_agents import resume_events
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason
from tests.serving import Proxy

QUESTION = "What does the river say?"
FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
UNTRACED = RunConfig(tracing_disabled=True)
KINDS = ["chat", "responses"]


@function_tool
def weather(city: str) -> str:
    return f"It rains in {city}."


@asynccontextmanager
async def durable_model(kind: str, proxy: Proxy, vendor: str, session: str) -> AsyncIterator[Model]:
    options: Any = {"api_key": "any", "max_retries": 0, "default_headers": FAST}
    async with durable_async_openai(
        proxy.url, session=session, store=MemoryStore(), base_url=f"{vendor}/v1", **options
    ) as client:
        if kind == "chat":
            yield OpenAIChatCompletionsModel("m", openai_client=client)
        else:
            yield OpenAIResponsesModel("m", openai_client=client)


async def answer(agent: Agent[None], **headers: str) -> list[TResponseStreamEvent]:
    """A run's first answer of its model, event by event."""
    settings = ModelSettings(extra_headers=headers, tool_choice="required" if agent.tools else None)
    agent = agent.clone(model_settings=settings, tool_use_behavior="stop_on_first_tool")
    run = Runner.run_streamed(agent, QUESTION, run_config=UNTRACED)
    return [event.data async for event in run.stream_events() if event.type == "raw_response_event"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
async def test_the_answer_of_a_run_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, kind: str, tools: bool
) -> None:
    async with durable_model(kind, proxy, vendor, session) as model:
        agent = Agent[None](name="Teller", model=model, tools=[weather] if tools else [])
        first = await answer(agent, **{"X-Request-ID": "1"})
        events = [event async for event in resume_events(model, session, request_id="1")]
    assert [event.type for event in events] == [event.type for event in first]
    last = events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["function_call" if tools else "message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_are_the_vendors_packages_and_ours(proxy: Proxy, vendor: str, session: str, kind: str) -> None:
    async with durable_model(kind, proxy, vendor, session) as model:
        with pytest.raises(NothingToResume) as nothing:
            await anext(resume_events(model, session))
        assert nothing.value.reason is ResumeReason.NONE
        with pytest.raises(openai.RateLimitError):
            await answer(Agent[None](name="Teller", model=model), **{"Fake-Fault": "status:429"})
