"""`streamkeep.adapters.pydantic_ai` with the real package, over clients for OpenAI and Anthropic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRequest, ToolDefinition
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from streamkeep.adapters.anthropic import durable_async_anthropic
from streamkeep.adapters.openai import durable_async_openai
from streamkeep.adapters.pydantic_ai import resume_model
from streamkeep.client import MemoryStore, NothingToResume, ResumeReason
from tests.serving import Proxy

FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = ModelRequestParameters(
    function_tools=[ToolDefinition(name="weather", parameters_json_schema=WEATHER)], allow_text_output=False
)
KINDS = ["chat", "responses", "messages"]


@asynccontextmanager
async def durable_model(kind: str, proxy: Proxy, vendor: str, session: str) -> AsyncIterator[Model]:
    options: Any = {"session": session, "store": MemoryStore(), "api_key": "any", "max_retries": 0}
    options["default_headers"] = FAST
    if kind == "messages":
        async with durable_async_anthropic(proxy.url, base_url=vendor, **options) as client:
            yield AnthropicModel("m", provider=AnthropicProvider(anthropic_client=client))
        return
    async with durable_async_openai(proxy.url, base_url=f"{vendor}/v1", **options) as openai_client:
        made = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
        yield made("m", provider=OpenAIProvider(openai_client=openai_client))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["text", "tools"])
async def test_a_response_that_was_left_is_resumed_whole(
    proxy: Proxy, vendor: str, session: str, kind: str, tools: ModelRequestParameters | None
) -> None:
    question = [ModelRequest.user_text_prompt("What does the river say?")]
    async with durable_model(kind, proxy, vendor, session) as model:
        named: Any = {"extra_headers": {"X-Request-ID": "1"}}
        async with model_request_stream(model, question, model_settings=named, model_request_parameters=tools) as left:
            begun = [await anext(aiter(left))]
        async with resume_model(model, session, request_id="1") as resumed:
            events = [event async for event in resumed]
        assert isinstance(resumed, StreamedResponse)
        assert events[: len(begun)] == begun
        whole = resumed.get()
        if tools is None:
            assert whole.text is not None
            assert whole.finish_reason == "stop"
        else:
            assert [call.tool_name for call in whole.tool_calls] == ["weather"]
            assert set(whole.tool_calls[0].args_as_dict()) == {"city"}


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_are_the_packages_and_ours(proxy: Proxy, vendor: str, session: str, kind: str) -> None:
    async with durable_model(kind, proxy, vendor, session) as model:
        with pytest.raises(NothingToResume) as nothing:
            async with resume_model(model, session):
                pass
        assert nothing.value.reason is ResumeReason.NONE
        limited: Any = {"extra_headers": {"Fake-Fault": "status:429"}}
        with pytest.raises(ModelHTTPError) as refused:
            await Agent(model).run("What does the river say?", model_settings=limited)
        assert refused.value.status_code == 429
