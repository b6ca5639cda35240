"""Work that takes long, because a caller has made it large, lets everybody else have their turn."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import TypeVar

import pytest

from streamkeep.proxy.agent_turns import AgentTurn
from streamkeep.proxy.generations import Generations
from streamkeep.proxy.long_json import written
from streamkeep.proxy.rules.session_agents import AgentBook, AgentSpec
from streamkeep.proxy.rules.session_bodies import Fields
from streamkeep.proxy.rules.subscription_requests import json_object
from streamkeep.proxy.session_folds import KeptFold, SessionFolds
from streamkeep.proxy.session_streams import stream_of
from streamkeep.sessions import SessionFold, as_json
from streamkeep.sessions.agents import AgentAnswer, History
from streamkeep.sessions.messages import MessageState
from streamkeep.sessions.reading import read_event
from streamkeep.sessions.views import OtherPart
from streamkeep.storage import (
    DEFAULT_TENANT,
    MAX_AGENTS_BYTES,
    Delivery,
    GenerationKey,
    MemoryStore,
    SessionKey,
    StreamConfig,
    StreamKey,
    StreamNews,
    SubscriptionConfig,
    SubscriptionKey,
)
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.rules.json_messages import encode_message
from tests.agents import Room, saying
from tests.proxy.test_sessions import Chat
from tests.serving import Proxy, serving
from tests.sessions.session_rows import Author, Row, row, said, turn
from tests.upstream import upstream

T = TypeVar("T")

KEY = SessionKey(DEFAULT_TENANT, "chat")
# What is done here takes a tenth of a second or more, and pauses every few milliseconds. Without that nobody else has more
# than a turn or two.
SOME_TURNS = 6


async def beside_others(work: Awaitable[T]) -> tuple[T, int]:
    """What work gives, and how often somebody else had a turn meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    try:
        return await work, turns
    finally:
        task.cancel()


@contextmanager
def calls_of(*functions: Callable[..., object]) -> Iterator[list[str]]:
    """In which threads functions are called, meanwhile, here and in threads that begin."""
    codes, threads = {function.__code__ for function in functions}, []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in codes:
            threads.append(threading.current_thread().name)

    # Earlier tests have left some idle.
    with suppress(RuntimeError):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield threads
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def stored(rows: Iterable[Row]) -> bytes:
    return b"".join(encode_message(json.dumps(row).encode()) for row in rows)


@pytest.fixture(scope="module")
def long_session() -> list[Row]:
    """Twenty people and their agent, who says much."""
    rows: list[Row] = []
    for number in range(20):
        author = Author(f"answer {number}")
        rows += [said(f"message {number}", "Go on"), *(author.content("word ") for _ in range(500)), author.done()]
    return rows


async def test_the_first_look_at_a_long_session_lets_others_have_their_turn(long_session: list[Row]) -> None:
    store = MemoryStore()
    await store.create_stream(stream_of(KEY), StreamConfig("application/json"), stored(long_session))
    folds, expected = SessionFolds(store), SessionFold()
    expected.apply(long_session, "end")
    current, turns = await beside_others(folds.current(KEY))
    assert turns > SOME_TURNS
    assert (current.messages, current.statistics) == (expected.messages, expected.statistics)
    middle = current.messages[20].end
    past, turns = await beside_others(folds.until(KEY, middle))
    assert turns > SOME_TURNS
    assert (past.position, past.messages) == (middle.position, current.messages[:21])


async def test_what_was_read_elsewhere_of_a_session_is_taken_with_pauses(long_session: list[Row]) -> None:
    data, expected = stored(long_session), SessionFold()
    expected.apply(long_session, "end")
    kept = KeptFold(1)
    # The same from two at once, as the runner and a request have it.
    _, turns = await beside_others(asyncio.gather(kept.take(0, data), kept.take(0, data)))
    assert turns > SOME_TURNS
    assert (kept.position, kept.fold.position) == (len(data), len(long_session))
    assert kept.fold.messages == expected.messages


async def test_a_session_of_tiny_messages_that_mean_nothing_is_no_burden() -> None:
    kept = KeptFold(1)
    _, turns = await beside_others(kept.take(0, b"0\x1e" * 100_000))
    assert (turns > SOME_TURNS, kept.fold.position) == (True, 100_000)


async def test_one_large_event_of_a_session_is_read_beside_the_loop() -> None:
    parts = [{"type": "data", "data": {"number": number}} for number in range(20_000)]
    large = row("large", {"type": "user-message", "message": {"role": "user", "parts": parts}})
    kept, here = KeptFold(1), threading.current_thread().name
    with calls_of(read_event) as calls:
        await kept.take(0, stored([said("brief", "Hi")]))
        assert {*calls} == {here}
        _, turns = await beside_others(kept.take(kept.position, stored([large])))
    assert turns > SOME_TURNS
    assert calls.count(here) == 1
    assert [len(message.parts) for message in kept.fold.messages] == [1, 20_000]


async def test_a_session_as_it_stood_before_is_read_beside_the_loop_too() -> None:
    store = MemoryStore()
    large = said("large", "x" * 200_000)
    await store.create_stream(stream_of(KEY), StreamConfig("application/json"), stored([large, said("brief", "Hi")]))
    folds = SessionFolds(store)
    end = (await folds.current(KEY)).messages[0].end
    with calls_of(read_event) as calls:
        past = await folds.until(KEY, end)
    assert [message.text for message in past.messages] == ["x" * 200_000]
    assert threading.current_thread().name not in calls


def test_pieces_of_text_behind_a_tool_call_are_not_put_together_each_time() -> None:
    author, fold = Author("answer"), SessionFold()
    fold.apply([author.content("Wait."), author.call("1", "{}")], "0")
    with calls_of(MessageState._segment_text.fget) as calls:  # type: ignore[attr-defined]  # a property
        fold.apply([author.row("content", delta="word ") for _ in range(100)], "1")
    assert (calls, fold.messages[0].text) == ([], "Wait." + "word " * 100)


async def test_a_long_session_is_written_as_json_with_pauses() -> None:
    store = MemoryStore()
    rows = [said(f"message {number}", "Hello there") for number in range(5000)]
    await store.create_stream(stream_of(KEY), StreamConfig("application/json"), stored(rows))
    with calls_of(Pauses.take) as calls:
        fold = await SessionFolds(store).viewed(KEY)
    assert len(calls) > 5000
    value = {"messages": fold.messages, "calls": fold.tool_calls, "offset": fold.offset, "none": iter(())}
    parts, turns = await beside_others(written(value))
    assert turns > SOME_TURNS
    assert len(parts) > SOME_TURNS
    assert json.loads(b"".join(parts)) == {
        "messages": as_json(fold.messages),
        "calls": [],
        "offset": fold.offset,
        "none": [],
    }


async def test_what_cannot_be_written_as_json_costs_no_more_than_itself() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    parts = [OtherPart({"deep": deep}), OtherPart({"half": "\ud800"}), OtherPart({"immense": float("inf")})]
    found = json.loads(b"".join(await written({"parts": parts, "empty": {}, "number": 1.5})))
    assert found == {"parts": [None, {"half": "\ud800"}, None], "empty": {}, "number": 1.5}


async def test_all_of_a_session_is_taken_away_with_pauses() -> None:
    """The rows that go are as many as the session has."""
    async with serving(MemoryStore()) as proxy:
        chat = await Chat(proxy.client).put()
        author = Author("answer")
        await chat.write(said("message", "Hi"))
        for _ in range(10):
            await chat.write(*(author.content("word ") for _ in range(1000)))
        await chat.write(author.done())
        with calls_of(Pauses.take) as calls:
            body = {"fromMessageId": "message", "agent": {"id": "a", "endpoint": "http://127.0.0.1:9/"}}
            await chat.call("POST", "/regenerate", json=body, status=200)
        assert len(calls) > 10_000
        assert len((await chat.fold()).messages) <= 2


async def test_of_a_long_history_only_what_is_sent_is_written_beside_the_loop(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    long = "x" * 400_000
    for number in range(4):
        await chat.write(said(f"message {number}", long))
    with calls_of(History._written) as calls:
        async with upstream(saying("Yes")) as agent:
            await chat.say("Hm?", agent={"id": "a", "endpoint": agent.url})
            async with asyncio.timeout(60):
                while not agent.calls:
                    await asyncio.sleep(0.01)
    sent = json.loads(agent.calls[0].body)["messages"]
    assert [len(one["content"]) for one in sent] == [400_000, 400_000, 3]
    # The one for which there is no room is the last to be looked at.
    assert len(calls) == 4
    assert threading.current_thread().name not in calls


async def test_many_turns_of_a_session_are_begun_and_stopped_some_at_a_time(proxy: Proxy) -> None:
    chat, loops = await Chat(proxy.client).put(), 0
    begun, stopped = Counter[int](), Counter[int]()
    calls: set[GenerationKey] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is AgentTurn.__init__.__code__:
            begun[loops] += 1
        elif event == "call" and frame.f_code is Generations.prevent.__code__:
            # A coroutine is called anew each time that it goes on.
            stopped[loops] += frame.f_locals["key"] not in calls
            calls.add(frame.f_locals["key"])

    async def count() -> None:
        nonlocal loops
        while True:
            await asyncio.sleep(0)
            loops += 1

    counting = asyncio.create_task(count())
    await chat.write(said("u", "Hi"), *(turn(f"turn {number}", f"answer {number}") for number in range(300)))
    sys.setprofile(profile)
    try:
        await chat.call("POST", "/stop", json={}, status=204)
        async with asyncio.timeout(60):
            while begun.total() < 300:
                await asyncio.sleep(0.01)
    finally:
        sys.setprofile(None)
        counting.cancel()
    assert max(begun.values()) <= 50
    assert (len(calls), max(stopped.values()) <= 50) == (300, True)


async def test_large_events_of_agents_are_read_beside_the_loop(proxy: Proxy) -> None:
    room, here = await Room(proxy.client).open(), threading.current_thread().name
    async with upstream(saying("Hello")) as brief, upstream(saying("x" * 200_000)) as wordy:
        with calls_of(AgentAnswer.feed, AgentAnswer.end) as calls:
            await room.say("Hi", "m1", agent={"id": "brief", "endpoint": brief.url})
            await room.settled()
            assert {*calls} == {here}
            await room.say("More", "m2", agent={"id": "wordy", "endpoint": wordy.url})
            fold = await room.settled(2)
    assert fold.messages[-1].text == "x" * 200_000
    assert {*calls} > {here}


async def test_large_bodies_are_read_beside_the_loop(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    links = {"type": "pull-wake", "wake_stream": "wakes", "streams": [f"a/{'x' * 200}/{n}" for n in range(500)]}
    await proxy.client.put("/v1/stream/wakes", headers={"Content-Type": "application/json"})
    with calls_of(Fields.parse.__func__, json_object) as calls:  # type: ignore[attr-defined]  # a class method
        await chat.say("x" * 100_000)
        answer = await proxy.client.put("/v1/stream/__ds/subscriptions/many", json=links)
        assert (answer.status_code, len(answer.json()["streams"])) == (201, 500)
        assert len(calls) == 2
        assert threading.current_thread().name not in calls
        await chat.say("Hi")
        assert calls[2:] == [threading.current_thread().name]


async def test_many_globs_are_compared_with_pauses() -> None:
    async with serving(MemoryStore()) as proxy:
        store, subscriptions = proxy.service.store, proxy.service.subscriptions
        await store.create_stream(StreamKey(DEFAULT_TENANT, "wakes"), StreamConfig("application/json"))
        for number in range(100):
            config = SubscriptionConfig(Delivery.PULL_WAKE, f"of/{number}/**/end", (), 1000, None, "wakes")
            await subscriptions.create(SubscriptionKey(DEFAULT_TENANT, f"s{number}"), config, "http://127.0.0.1")
        news = [StreamNews(f"of/7/{'x/' * 20}{number}/end", number, 0, 1) for number in range(300)]
        found, turns = await beside_others(subscriptions._matches(DEFAULT_TENANT, news))
        assert turns > SOME_TURNS
        assert found == [("s7", one.path) for one in news]


def test_agents_that_came_with_messages_make_room_without_writing_all_of_them_each_time() -> None:
    specs = [AgentSpec(f"a{number}", "http://a/", body_template={"x": "x" * 4000}) for number in range(50)]
    book = AgentBook(registered=(specs[0],), inline=tuple((f"s{spec.id}", spec) for spec in specs))
    with calls_of(AgentSpec.kept) as calls:
        made = book.with_inline(AgentSpec("new", "http://a/", body_template={"x": "y" * 200_000}), "snew")
    assert len(calls) < 200
    assert len(made.dump()) <= MAX_AGENTS_BYTES
    lacking = replace(made, inline=book.inline[-len(made.inline) :][:1] + made.inline)
    assert len(lacking.dump()) > MAX_AGENTS_BYTES
    assert [name for name, _ in made.inline] == [*(name for name, _ in book.inline), "snew"][-len(made.inline) :]
