"""Subscriptions when processes die, and when there are several: nothing of a wake is lost with a process."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from streamkeep.storage import DEFAULT_TENANT, MemoryStore, Store, StreamAppend, StreamConfig, StreamKey
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.rules.json_messages import encode_message
from tests.receiver import Received, Receiver, accept, done, receiving
from tests.serving import served_process, serving

ROOT = "/v1/stream"
JSON = {"Content-Type": "application/json"}


async def subscribe(client: httpx.AsyncClient, receiver: Receiver, **more: Any) -> None:
    config = {"type": "webhook", "pattern": "events/*", "webhook": {"url": receiver.url}, **more}
    answer = await client.put(f"{ROOT}/__ds/subscriptions/s", json=config)
    assert answer.status_code == 201, answer.text


async def create(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.put(f"{ROOT}/{path}", content=b'{"n":1}', headers=JSON)).status_code == 201


async def append(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.post(f"{ROOT}/{path}", content=b'{"n":1}', headers=JSON)
    assert answer.status_code == 204, answer.text
    return answer.headers["Stream-Next-Offset"]


async def acked(client: httpx.AsyncClient, path: str) -> str:
    links = (await client.get(f"{ROOT}/__ds/subscriptions/s")).json()["streams"]
    return next((link["acked_offset"] for link in links if link["path"] == path), "")


async def wait_until_acked(client: httpx.AsyncClient, path: str, tail: str) -> None:
    async with asyncio.timeout(60):
        while await acked(client, path) != tail:
            await asyncio.sleep(0.05)


async def call_back(client: httpx.AsyncClient, webhook: Received) -> httpx.Response:
    return await client.post(
        f"{ROOT}/__ds/subscriptions/s/callback",
        json={**webhook.callback, "acks": webhook.acks, "done": True},
        headers={"Authorization": f"Bearer {webhook.value['callback_token']}"},
    )


async def test_a_wake_outlives_the_process_that_sent_it(database_url: str) -> None:
    async with receiving() as receiver:
        receiver.answer = accept
        async with served_process(database_url=database_url) as first:
            await subscribe(first.client, receiver)
            await create(first.client, "events/a")
            webhook = await receiver.get()
            keys = (await first.client.get(f"{ROOT}/__ds/jwks.json")).json()
            # Accepted, not acknowledged; nothing else is said to anybody.
            first.kill()
            await first.exit_code()
        async with served_process(database_url=database_url) as second:
            assert (await second.client.get(f"{ROOT}/__ds/jwks.json")).json() == keys
            answer = await call_back(second.client, webhook)
            assert (answer.status_code, answer.json()) == (200, {"ok": True, "next_wake": False})
            assert await acked(second.client, "events/a") == webhook.acks[0]["offset"]
            assert (await call_back(second.client, webhook)).status_code == 409
            await append(second.client, "events/a")
            again = await receiver.get()
            again.verify(keys)
            assert again.value["generation"] == 2
            assert receiver.is_quiet


@pytest.mark.slow
async def test_a_delivery_that_died_with_its_process_is_made_again(database_url: str) -> None:
    async with receiving() as receiver:
        is_over = asyncio.Event()

        async def hang(webhook: Received) -> Response:
            await is_over.wait()
            return Response(status_code=500)

        receiver.answer = hang
        async with served_process(database_url=database_url) as first:
            await subscribe(first.client, receiver, lease_ttl_ms=300_000)
            await create(first.client, "events/a")
            webhook = await receiver.get()
            first.kill()
            await first.exit_code()
        is_over.set()
        receiver.answer = done
        async with served_process(database_url=database_url) as second:
            again = await receiver.get()
            # The lease of the wake still runs: it is the same one.
            assert (again.value["wake_id"], again.value["generation"]) == (webhook.value["wake_id"], 1)
            await wait_until_acked(second.client, "events/a", again.acks[0]["offset"])


async def test_two_instances_deliver_each_wake_once(database_url: str) -> None:
    async with (
        receiving() as receiver,
        served_process(database_url=database_url) as one,
        served_process(database_url=database_url) as other,
    ):
        under_way = 0

        async def work(webhook: Received) -> Response:
            nonlocal under_way
            under_way += 1
            assert under_way == 1, "two wakes at once"
            await asyncio.sleep(0)
            under_way -= 1
            return await done(webhook)

        receiver.answer = work
        await subscribe(one.client, receiver)
        clients = (one.client, other.client)
        for n in range(4):
            await create(clients[n % 2], f"events/{n}")
        tails = await asyncio.gather(*(_append_many(clients[n % 2], f"events/{n}") for n in range(4)))
        for n, tail in enumerate(tails):
            await wait_until_acked(one.client, f"events/{n}", tail)
        wakes = [webhook.value["wake_id"] for webhook in receiver.received]
        assert max(Counter(wakes).values()) == 1
        assert [webhook.value["generation"] for webhook in receiver.received] == list(range(1, len(wakes) + 1))


async def _append_many(client: httpx.AsyncClient, path: str) -> str:
    return [await append(client, path) for _ in range(15)][-1]


async def test_a_worker_of_one_instance_claims_what_another_one_took_in(database_url: str) -> None:
    async with (
        served_process(database_url=database_url) as one,
        served_process(database_url=database_url) as other,
    ):
        await one.client.put(f"{ROOT}/wake", content=b"[]", headers=JSON)
        config = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake"}
        url = f"{ROOT}/__ds/subscriptions/s"
        assert (await one.client.put(url, json=config)).status_code == 201
        await create(other.client, "events/a")
        async with asyncio.timeout(30):
            while not (events := (await one.client.get(f"{ROOT}/wake")).json()):
                await asyncio.sleep(0.05)
        claim = (await one.client.post(f"{url}/claim", json={"worker": "w1"})).json()
        assert [event["generation"] for event in events] == [claim["generation"]] == [1]
        assert (await other.client.post(f"{url}/claim", json={"worker": "w2"})).status_code == 409
        body = {
            "wake_id": claim["wake_id"],
            "generation": claim["generation"],
            "acks": [{"stream": "events/a", "offset": claim["streams"][0]["tail_offset"]}],
            "done": True,
        }
        answer = await other.client.post(f"{url}/ack", json=body, headers={"Authorization": f"Bearer {claim['token']}"})
        assert answer.json() == {"ok": True, "next_wake": False}


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    return MemoryStore() if request.param == "memory" else PostgresStore(request.getfixturevalue("database_url"))


async def test_news_that_died_with_a_process_are_found_by_the_next(store: Store) -> None:
    """Written past the proxy, as by one that was killed between its commit and its note."""
    async with receiving() as receiver:
        receiver.answer = done
        async with serving(store) as proxy:
            await subscribe(proxy.client, receiver)
            await create(proxy.client, "events/a")
            await receiver.get()
        await store.open()
        message = encode_message(b'{"n":2}')
        key = StreamKey(DEFAULT_TENANT, "events/a")
        await store.append([StreamAppend(key, message, "application/json")])
        await store.create_stream(StreamKey(DEFAULT_TENANT, "events/b"), StreamConfig("application/json"), message)
        await store.close()
        async with serving(store):
            paths: set[str] = set()
            while paths != {"events/a", "events/b"}:
                paths |= {stream["path"] for stream in (await receiver.get()).value["streams"] if stream["has_pending"]}
