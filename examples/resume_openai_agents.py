"""OpenAI Agents SDK: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For OpenAI itself leave out `base_url` and set OPENAI_API_KEY.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from agents import Agent, Model, OpenAIResponsesModel, Runner, set_tracing_disabled
from agents.items import TResponseStreamEvent

from streamkeep.adapters.openai import durable_async_openai
from streamkeep.adapters.openai_agents import resume_events
from streamkeep.client import NothingToResume


async def ask(model: Model) -> AsyncIterator[TResponseStreamEvent]:
    run = Runner.run_streamed(Agent(name="Teller", model=model), "Tell me a story")
    async for event in run.stream_events():
        if event.type == "raw_response_event":
            yield event.data


async def show(events: AsyncIterator[TResponseStreamEvent]) -> None:
    async for event in events:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)


async def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    set_tracing_disabled(True)
    async with durable_async_openai(
        proxy_url, session="agents-story", base_url=f"{vendor_url}/v1", api_key="demo"
    ) as client:
        model = OpenAIResponsesModel("demo", openai_client=client)
        try:
            await show(resume_events(model, "agents-story"))
        except NothingToResume:
            await show(ask(model))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
