"""Agents of durable sessions, as tests script them, and what comes of them in a session's stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from streamkeep.sessions import SessionFold
from tests.upstream import Exchange, Script

SSE = {"Content-Type": "text/event-stream"}
FINISH = {"type": "finish"}

Event = dict[str, Any]


def text(delta: str) -> Event:
    """A piece of text, in the AI SDK's words."""
    return {"type": "text-delta", "id": "1", "delta": delta}


def sse(*events: object) -> bytes:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in events).encode()


async def answer(exchange: Exchange, *events: Event) -> None:
    """A whole answer."""
    await exchange.head(200, SSE)
    await exchange.chunk(sse(*events))
    await exchange.end()


def saying(*words: str) -> Script:
    """An agent that says the same to everything."""

    async def play(exchange: Exchange) -> None:
        await answer(exchange, *map(text, words), FINISH)

    return play


def body(exchange: Exchange) -> Any:
    return json.loads(exchange.body)


class Room:
    """One session, as a client of one proxy sees it."""

    def __init__(self, client: httpx.AsyncClient, session_id: str = "room") -> None:
        self.client = client
        self.path = f"/v1/sessions/{session_id}"
        self.session_id = session_id

    async def open(self, *agents: Event) -> Room:
        """Make the session, with agents."""
        assert (await self.client.put(self.path)).status_code in (200, 201)
        if agents:
            await self.post("agents", agents=agents)
        return self

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        response = await self.client.post(f"{self.path}/{path}", json=fields)
        assert response.status_code < 300, response.text
        return response

    async def say(self, content: str, message_id: str = "m", **fields: Any) -> Any:
        return (await self.post("messages", content=content, messageId=message_id, **fields)).json()

    async def rows(self) -> list[Any]:
        """Everything that stands in the stream."""
        rows: list[Any] = []
        offset = "-1"
        while True:
            page = await self.client.get(f"/v1/stream/sessions/{self.session_id}", params={"offset": offset})
            assert page.status_code == 200, page.text
            rows += page.json()
            offset = page.headers["Stream-Next-Offset"]
            if page.headers.get("Stream-Up-To-Date") == "true":
                return rows

    async def fold(self) -> SessionFold:
        fold = SessionFold()
        fold.apply(await self.rows(), "1")
        return fold

    async def when(self, condition: Callable[[SessionFold], bool], within_seconds: float = 60) -> SessionFold:
        """The session once something is so."""
        fold = SessionFold()
        try:
            async with asyncio.timeout(within_seconds):
                while True:
                    fold = await self.fold()
                    if condition(fold):
                        return fold
                    await asyncio.sleep(0.03)
        except TimeoutError:
            raise AssertionError(f"it did not come to that: {fold.turns} {fold.messages}") from None

    async def settled(self, turns: int = 1, within_seconds: float = 60) -> SessionFold:
        """The session once so many turns have begun, and all have ended."""
        return await self.when(lambda fold: len(fold.turns) >= turns and not fold.pending_turns, within_seconds)


async def until(condition: Callable[[], Awaitable[bool]], within_seconds: float = 60) -> None:
    async with asyncio.timeout(within_seconds):
        while not await condition():
            await asyncio.sleep(0.02)
