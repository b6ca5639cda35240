"""Durable sessions on a real database, over several instances that are killed: nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from streamkeep.storage.postgres import PostgresStore
from tests.proxy.test_sessions import AGENT, Chat, code, silent_agent
from tests.serving import served_process, serving
from tests.sessions.session_rows import Author

__all__ = ["silent_agent"]

MESSAGES = 24


async def patiently(chats: list[Chat], method: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """A write as a good client sends it: again, to any instance, until it is answered."""
    async with asyncio.timeout(60):
        while True:
            for chat in chats:
                try:
                    answer = await chat.call(method, path, json=body)
                except httpx.TransportError:
                    continue
                if answer.status_code < 500:
                    return answer
            await asyncio.sleep(0.05)


def placed(view: Any) -> Any:
    """A view with places told by their positions alone: one place has many addresses."""
    if isinstance(view, dict):
        return view["position"] if "position" in view else {name: placed(value) for name, value in view.items()}
    return [placed(value) for value in view] if isinstance(view, list) else view


async def test_writes_that_are_repeated_through_kills_count_once(database_url: str) -> None:
    sent = [f"m{number}" for number in range(MESSAGES)]
    async with served_process(database_url=database_url) as stays:
        there = await Chat(stays.client).put()
        await there.call("POST", "/agents", json={"agents": [AGENT]}, status=200)
        author = Author("asked", actor_id="model")
        await there.write(*(author.call(f"call-{message_id}", "{}") for message_id in sent), author.done("tool_calls"))
        for _ in range(2):
            async with served_process(database_url=database_url) as killed:
                chats = [Chat(killed.client), there]
                answered = asyncio.Semaphore(0)

                async def write(
                    message_id: str, chats: list[Chat] = chats, answered: asyncio.Semaphore = answered
                ) -> None:
                    message = {"messageId": message_id, "content": message_id, "actorId": "ann"}
                    written = await patiently(chats, "POST", "/messages", message)
                    assert len(written.json()["turns"]) == 1, written.text
                    answered.release()
                    result = {"toolCallId": f"call-{message_id}", "output": message_id, "actorId": "ann"}
                    assert (await patiently(chats, "POST", "/tool-results", result)).status_code == 204
                    answered.release()

                writing = asyncio.gather(*map(write, sent))
                for _ in range(MESSAGES // 2):
                    await answered.acquire()
                killed.kill()
                await writing
        fold = await there.fold()
        people = [message for message in fold.messages if message.role == "user"]
        assert sorted(message.id for message in people) == sorted(sent)
        assert sorted(turn.cause_id for turn in fold.turns) == sorted(sent)
        assert [call.result and call.result.output for call in fold.tool_calls] == sent
        keys = [(event["type"], event["key"]) for event in await there.events()]
        assert len(keys) == len(set(keys))


async def test_instances_that_write_at_once_agree(database_url: str) -> None:
    async with serving(PostgresStore(database_url)) as one, serving(PostgresStore(database_url)) as two:
        chats = [await Chat(one.client).put(), Chat(two.client)]
        author = Author("asked", actor_id="model")
        await chats[0].write(author.call("call", "{}"), author.ask("call", "ok?"), author.done("tool_calls"))
        say = [
            chat.call("POST", "/messages", json={"content": text, "messageId": "m"}) for chat in chats for text in "ab"
        ]
        answer = [
            chat.call("POST", "/approvals/ok%3F", json={"approved": ok}) for chat in chats for ok in (True, False)
        ]
        result = [
            chat.call("POST", "/tool-results", json={"toolCallId": "call", "output": n})
            for chat in chats
            for n in (1, 2)
        ]
        fork = [chat.call("POST", "/fork", json={"atMessageId": "asked", "newSessionId": "fork"}) for chat in chats]
        answers = await asyncio.gather(*say, *answer, *result, *fork)
        statuses = [one.status_code for one in answers]
        assert [sorted(statuses[:4]), sorted(statuses[4:8]), sorted(statuses[8:12])] == [
            [200, 200, 409, 409],
            [204, 204, 409, 409],
            [204, 204, 409, 409],
        ]
        assert statuses[12:] == [201, 201]
        folds = [await chat.fold() for chat in chats]
        assert folds[0].to_json() == folds[1].to_json()
        assert len(folds[0].messages) == 2

        async def views() -> list[Any]:
            return [placed((await chat.call("GET", "/export")).json() | {"streamUrl": ""}) for chat in chats]

        # A runner that finds the session held by the other one marks it once more, which counts as an update.
        seen = await views()
        async with asyncio.timeout(60):
            while seen[0]["updatedAt"] != seen[1]["updatedAt"]:
                seen = await views()
        assert seen[0] == seen[1]


async def test_a_session_that_is_deleted_under_its_writers_is_gone(database_url: str) -> None:
    async with serving(PostgresStore(database_url)) as one, serving(PostgresStore(database_url)) as two:
        chats = [await Chat(one.client).put(), Chat(two.client)]
        writes = [chat.call("POST", "/messages", json={"content": "Hi"}) for chat in chats * 20]
        answers = await asyncio.gather(*writes[:20], chats[1].call("DELETE"), *writes[20:])
        assert {answer.status_code for answer in answers} <= {200, 204, 404}
        for chat in chats:
            assert code(await chat.call("GET")) == (404, "not_found")
            assert code(await chat.call("POST", "/messages", json={"content": "Hi"})) == (404, "not_found")
        await chats[0].call("PUT", status=201)
        assert (await chats[1].call("GET", "/messages")).json()["messages"] == []
