"""One session, three people with four tabs, two agents, three instances: tabs and instances die, and all see the same."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.async_api import Page

from streamkeep.client import Patience
from streamkeep.client.sessions import AgentSpec, AsyncDurableChat, SessionFold, as_json
from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.cutting import Wire, wire_to
from tests.serving import ServedProcess, served_process
from tests.upstream import Exchange, Upstream, upstream

SESSION = "trip"
SECONDS = 120.0
PATIENT = Patience(send_seconds=90, silence_seconds=90, pause_seconds=0.2)

MODULE = """
const { proxy, actor } = Object.fromEntries(new URLSearchParams(location.search))
const { createDurableChat } = await import(`${proxy}/streamkeep-sessions.js`)
const patience = { sendSeconds: 90, silenceSeconds: 90 }
const chat = createDurableChat({ sessionId: "trip", proxyUrl: proxy, actorId: actor, name: actor, patience, cache: null })
window.send = (text) => void chat.sendMessage(text)
window.seen = () => {
  const { messages, turns, approvals, statistics, isLoading } = chat.getSnapshot()
  return JSON.stringify({ messages, turns, approvals, statistics, isLoading })
}
await chat.connect()
document.title = "connected"
"""


@dataclass
class Agents:
    """Two models. One answers people in pieces; the other listens to everybody and says little."""

    server: Upstream

    @property
    def specs(self) -> list[AgentSpec]:
        return [
            AgentSpec("writer", f"{self.server.url}/writer"),
            AgentSpec("critic", f"{self.server.url}/critic", triggers="all"),
        ]

    @property
    def calls(self) -> Counter[str]:
        return Counter(call.path.strip("/") for call in self.server.calls)


async def play(exchange: Exchange) -> None:
    question = json.loads(exchange.body)["messages"][-1]["content"]
    is_writer = exchange.path == "/writer"
    words = f"About {question}: one two three four five six seven eight." if is_writer else "Well said."
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    for word in words.split(" "):
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
        await exchange.chunk(b"data: %s\n\n" % json.dumps({"id": "c", "choices": [choice]}).encode())
        if is_writer:
            await asyncio.sleep(0.1)
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    ended = {"id": "c", "choices": [last], "usage": usage}
    await exchange.chunk(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(ended).encode())
    await exchange.end()


class Instances:
    """Three proxies, each started anew when it was ended."""

    def __init__(self, database_url: str, stack: AsyncExitStack) -> None:
        self._database_url = database_url
        self._stack = stack
        self.running: list[ServedProcess] = []

    async def start(self) -> ServedProcess:
        started = await self._stack.enter_async_context(served_process(database_url=self._database_url))
        self.running.append(started)
        return started

    async def end(self, instance: ServedProcess, how: Callable[[ServedProcess], None]) -> None:
        self.running.remove(instance)
        how(instance)
        await instance.exit_code()


@dataclass
class Tab:
    """Somebody's view of the session, over a wire of its own to one of the instances."""

    wire: Wire
    send: Callable[[str], Awaitable[object]]
    look: Callable[[], Awaitable[dict[str, Any]]]

    def turn_to(self, instance: ServedProcess) -> None:
        self.wire.turn_to(instance.url)


@asynccontextmanager
async def program(wire: Wire, actor: str) -> AsyncIterator[Tab]:
    async with AsyncDurableChat(wire.http_url, SESSION, actor_id=actor, name=actor, patience=PATIENT) as chat:

        async def look() -> dict[str, Any]:
            return view(chat)

        yield Tab(wire, chat.send_message, look)


async def page_of(page: Page, url: str, wire: Wire, actor: str) -> Tab:
    await page.goto(f"{url}?{httpx.QueryParams(proxy=wire.http_url, actor=actor)}")
    await page.wait_for_function('document.title === "connected"')

    async def send(text: str) -> None:
        await page.evaluate("(text) => window.send(text)", text)

    async def look() -> dict[str, Any]:
        seen: dict[str, Any] = json.loads(await page.evaluate("() => window.seen()"))
        return seen

    return Tab(wire, send, look)


def view(of: SessionFold | AsyncDurableChat) -> dict[str, Any]:
    values = {
        "messages": of.messages,
        "turns": of.turns,
        "approvals": of.approvals,
        "statistics": of.statistics,
    }
    return {**{name: as_json(value) for name, value in values.items()}, "isLoading": bool(of.active_generations)}


def settled(seen: Any) -> Any:
    """What must be equal. A browser tells times as dates, and one place has as many addresses as there are batches."""
    if isinstance(seen, list):
        return [settled(one) for one in seen]
    if not isinstance(seen, dict):
        return seen
    return {name: settled(value) for name, value in seen.items() if name not in ("createdAt", "offset", "subOffset")}


async def whole(instance: ServedProcess) -> SessionFold:
    """The stream folded from its start."""
    fold = SessionFold()
    while True:
        read = await instance.client.get(f"/v1/stream/sessions/{SESSION}", params={"offset": fold.offset})
        read.raise_for_status()
        fold.apply(read.json(), read.headers["Stream-Next-Offset"])
        if read.headers.get("Stream-Up-To-Date") == "true":
            return fold


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_all_see_the_same_whatever_dies(
    database_url: str, pages: Pages, open_profile: OpenProfile, complaints: list[str]
) -> None:
    async with AsyncExitStack() as stack:
        agents = Agents(await stack.enter_async_context(upstream(play)))
        instances = Instances(database_url, stack)
        one, two, three = [await instances.start() for _ in range(3)]
        wires = [await stack.enter_async_context(wire_to(at.url)) for at in (one, two, three, one)]
        ann = await stack.enter_async_context(program(wires[0], "Ann"))
        bob = await stack.enter_async_context(program(wires[1], "Bob"))
        url = pages.put_module("/tab", MODULE)
        cem, ann_too = [
            await page_of(await stack.enter_async_context(await (await open_profile()).new_page()), url, wire, actor)
            for wire, actor in ((wires[2], "Cem"), (wires[3], "Ann"))
        ]
        tabs = [ann, bob, cem, ann_too]
        registered = await one.client.post(
            f"/v1/sessions/{SESSION}/agents", json={"agents": [as_json(spec) for spec in agents.specs]}
        )
        assert registered.status_code == 200, registered.text

        sent: list[str] = []

        async def say(tab: Tab, text: str) -> None:
            sent.append(text)
            await tab.send(text)

        async def writing(count: int) -> bool:
            """Whether as many answers have begun to stream."""
            return agents.calls["writer"] >= count

        # A quiet start; then an instance is killed while two answers stream, and its tabs go elsewhere.
        await say(ann, "rivers")
        await asyncio.gather(say(bob, "hills"), say(cem, "lakes"))
        await until(lambda: writing(3))
        await instances.end(one, ServedProcess.kill)
        for tab in (ann, ann_too):
            tab.turn_to(two)
        await say(ann_too, "woods")
        await say(ann, "caves")
        four = await instances.start()
        bob.turn_to(four)
        # A wire is cut in the middle of a write; an instance leaves in good order while an answer streams.
        bob.wire.cut_after_answer()
        await say(bob, "coasts")
        await until(lambda: writing(5))
        cem.turn_to(four)
        await instances.end(three, ServedProcess.terminate)
        await say(cem, "bays")
        for tab in tabs:
            tab.wire.cut()
        await instances.end(two, ServedProcess.kill)
        for tab in tabs:
            tab.turn_to(four)
        await say(ann_too, "roads")

        async def is_quiet() -> bool:
            fold = await whole(four)
            said = [message.text for message in fold.messages if message.role == "user"]
            return sorted(said) == sorted(sent) and not fold.active_generations

        await until(is_quiet)
        fold = await whole(four)
        expected = settled(view(fold))

        async def is_same() -> bool:
            return all([settled(await tab.look()) == expected for tab in tabs])

        try:
            await until(is_same)
        except TimeoutError:
            for tab in tabs:
                assert settled(await tab.look()) == expected
        assert len({message.id for message in fold.messages}) == len(fold.messages)
        # Whatever was called was called once; only what died before it was sent never came there.
        assert len({(call.path, call.body) for call in agents.server.calls}) == len(agents.server.calls)
        turns = Counter(turn.agent_id for turn in fold.turns)
        broken = [message for message in fold.messages if message.ended_by == "error"]
        assert {message.error for message in broken} <= {"the process that called the agent died"}
        assert turns - Counter(message.actor_id for message in broken) <= agents.calls <= turns
        # Each person's message called both, and the one that listens answered each of the other's whole answers.
        whole_answers = [one for one in fold.messages if one.actor_id == "writer" and one.ended_by == "done"]
        assert turns == {"writer": len(sent), "critic": len(sent) + len(whole_answers)}
        for answer in whole_answers:
            turn = fold.turn_of(answer.id)
            assert turn is not None
            cause = fold.message(turn.cause_id)
            assert cause is not None
            assert answer.text.split(":")[0].startswith(f"About {cause.text}"), "an answer is whole and to its question"
            assert answer.text.rstrip().endswith("eight.")
    complaints.clear()  # Of connections that were refused while instances were dead.
