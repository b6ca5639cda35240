"""Agents of durable sessions over several processes: one call for each turn, whoever dies, and whoever asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.agents import FINISH, SSE, Room, answer, body, saying, sse, text, until
from tests.database import PrivateServer
from tests.serving import AFTER_DEATH_SECONDS, served_process, serving
from tests.upstream import Exchange, upstream

pytestmark = pytest.mark.slow


async def test_an_answer_whose_process_died_ends_and_a_turn_that_waited_is_taken(database_url: str) -> None:
    """The first process has room for one call, so that another turn waits when it dies."""

    async def play(exchange: Exchange) -> None:
        if exchange.path == "/late":
            await answer(exchange, text("Here I am"), FINISH)
            return
        await exchange.head(200, SSE)
        await exchange.chunk(sse(text("Once"), text(" upon")))
        await exchange.is_gone.wait()

    one_call = {"STREAMKEEP_MAX_GENERATIONS": "1"}
    async with (
        upstream(play) as agent,
        served_process(database_url=database_url, environ=one_call) as first,
    ):
        room = await Room(first.client).open({"id": "a", "endpoint": f"{agent.url}/a"})
        await room.say("Tell me", "m1")
        await room.when(lambda fold: len(fold.messages) == 2 and fold.messages[1].text == "Once upon")
        await room.say("And you?", "m2", agent={"id": "late", "endpoint": f"{agent.url}/late"})
        await room.when(lambda fold: len(fold.pending_turns) == 3)
        assert len(agent.calls) == 1
        async with served_process(database_url=database_url, environ={"STREAMKEEP_IDLE_SECONDS": "1"}) as second:
            first.kill()
            room = Room(second.client)
            fold = await room.when(
                lambda fold: {message.text for message in fold.messages if message.is_complete} >= {"Here I am"},
                AFTER_DEATH_SECONDS,
            )
            fold = await room.settled(3, AFTER_DEATH_SECONDS)
    told = next(message for message in fold.messages if message.role == "assistant")
    assert (told.text, told.ended_by) == ("Once upon", "error")
    assert "died" in (told.error or "")
    assert Counter(call.path for call in agent.calls) == {"/a": 2, "/late": 1}


async def test_two_processes_call_an_agent_once_for_each_message(database_url: str) -> None:
    words = [f"w{number} " for number in range(50)]
    async with (
        upstream(saying(*words)) as agent,
        served_process(database_url=database_url) as first,
        served_process(database_url=database_url) as second,
    ):
        rooms = [(Room(first.client, f"r{number}"), Room(second.client, f"r{number}")) for number in range(6)]
        for here, _ in rooms:
            await here.open({"id": "a", "endpoint": agent.url}, {"id": "b", "endpoint": agent.url})

        async def talk(here: Room, there: Room) -> Any:
            for number in range(3):
                same = [room.say(f"message {number}", f"m{number}") for room in (here, there)]
                sent, repeated = await asyncio.gather(*same)
                assert sent["turns"] == repeated["turns"]
            return await here.settled(6)

        folds = await asyncio.gather(*(talk(here, there) for here, there in rooms))
        for (_, there), fold in zip(rooms, folds, strict=True):
            assert [message.text for message in fold.messages if message.role == "assistant"] == ["".join(words)] * 6
            keys = Counter(row["key"] for row in await there.rows())
            assert set(keys.values()) == {1}, "no row is written twice"
    assert len(agent.calls) == 6 * 3 * 2


async def test_an_answer_is_stopped_from_another_process(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        await exchange.chunk(sse(text("Well")))
        await exchange.is_gone.wait()

    async with (
        upstream(play) as agent,
        served_process(database_url=database_url) as first,
        served_process(database_url=database_url) as second,
    ):
        room = await Room(first.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.when(lambda fold: fold.messages[-1].text == "Well")
        there = Room(second.client)
        await there.post("stop")
        fold = await there.settled()
        async with asyncio.timeout(30):
            await agent.calls[0].is_gone.wait()
    assert (fold.messages[1].text, fold.messages[1].ended_by) == ("Well", "stop")


@pytest.mark.parametrize("is_said", [False, True], ids=["at once", "in the middle"])
async def test_a_deploy_hands_a_session_over(database_url: str, is_said: bool) -> None:
    """The process that calls finishes its calls; what they say is written by whoever is there."""
    may_end = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        await exchange.chunk(sse(text("Once")))
        await may_end.wait()
        await exchange.chunk(sse(text(" upon"), FINISH))
        await exchange.end()

    async with (
        upstream(play) as agent,
        served_process(database_url=database_url) as first,
        served_process(database_url=database_url) as second,
    ):
        room = await Room(first.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        if is_said:
            await room.when(lambda fold: fold.messages[-1].text == "Once")
        first.terminate()
        there = Room(second.client)
        await there.say("More", "m2")
        await agent.called(2)
        may_end.set()
        fold = await there.settled(2)
        assert await first.exit_code() == 0
    assert [message.text for message in fold.messages if message.role == "assistant"] == ["Once upon"] * 2
    assert [message.ended_by for message in fold.messages if message.role == "assistant"] == ["done"] * 2
    assert {body(call)["messages"][0]["content"] for call in agent.calls} == {"Hi"}


async def test_a_session_that_could_not_be_let_go_is_taken_up_again(private_server: PrivateServer) -> None:
    """The database is away when the session would be settled: it says for ever after that this process holds it."""

    async def is_idle() -> bool:
        return proxy.service.session_runner.running == 0

    async with upstream(saying("Hello")) as agent, serving(PostgresStore(private_server.url)) as proxy:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.settled()
        assert not await is_idle()
        await asyncio.to_thread(private_server.stop)
        await until(is_idle, AFTER_DEATH_SECONDS)
        await asyncio.to_thread(private_server.start)
        await room.say("More", "m2")
        fold = await room.settled(2, AFTER_DEATH_SECONDS)
    assert [message.text for message in fold.messages] == ["Hi", "Hello", "More", "Hello"]
    assert len(agent.calls) == 2
