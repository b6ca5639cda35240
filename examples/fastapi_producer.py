"""FastAPI: answers that go on when the browser leaves, made once however often they are asked for, and found again.

Start `make run` first; then `curl 127.0.0.1:8000/api/chat -d '{"id": "a", "messages": [{"id": "1"}]}' -H 'Content-Type: application/json' -i`
says where to read. The default transport of the AI SDK wants `sse` in the place of `ai_sdk`, and `resume_sse` for `running`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from streamkeep.adapters.asgi import DurableResponses


class Message(BaseModel):
    id: str


class Chat(BaseModel):
    id: str
    messages: Annotated[list[Message], Field(min_length=1)]


async def answer(messages: list[Message]) -> AsyncIterator[dict[str, Any]]:
    """What a model would say, as the AI SDK wants it."""
    yield {"type": "start"}
    yield {"type": "text-start", "id": "0"}
    for number in range(100):
        yield {"type": "text-delta", "id": "0", "delta": f"{number} bottles of beer\n"}
        await asyncio.sleep(0.02)
    yield {"type": "text-end", "id": "0"}
    yield {"type": "finish"}


def make_app(server_url: str) -> FastAPI:
    responses = DurableResponses(f"{server_url}/v1/stream/chats", read_url="/api/chat/{chat}/{generation}")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with responses:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/chat")
    async def chat(chat: Chat) -> Response:
        return await responses.ai_sdk(chat.id, chat.messages[-1].id, answer(chat.messages))

    @app.get("/api/chat/{chat}/stream")
    async def running(chat: str) -> Response:
        return await responses.running(chat)

    @app.get("/api/chat/{chat}/{generation}")
    async def read(request: Request, chat: str, generation: str) -> Response:
        return await responses.read(request, chat, generation)

    return app


def main(server_url: str = "http://127.0.0.1:4000", port: str = "8000") -> None:
    uvicorn.run(make_app(server_url), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
