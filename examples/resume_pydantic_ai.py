"""Pydantic AI: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For OpenAI itself leave out `base_url` and set OPENAI_API_KEY.
"""

import asyncio
import sys
from contextlib import AsyncExitStack

from pydantic_ai import ModelRequest
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from streamkeep.adapters.openai import durable_async_openai
from streamkeep.adapters.pydantic_ai import resume_model
from streamkeep.client import NothingToResume


async def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    client = durable_async_openai(proxy_url, session="pydantic-story", base_url=f"{vendor_url}/v1", api_key="demo")
    async with client, AsyncExitStack() as opened:
        model = OpenAIChatModel("demo", provider=OpenAIProvider(openai_client=client))
        try:
            response = await opened.enter_async_context(resume_model(model, "pydantic-story"))
        except NothingToResume:
            asked = model_request_stream(model, [ModelRequest.user_text_prompt("Tell me a story")])
            response = await opened.enter_async_context(asked)
        shown = 0
        async for _ in response:
            text = response.get().text or ""
            print(text[shown:], end="", flush=True)
            shown = len(text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
