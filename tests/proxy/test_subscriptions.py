"""Subscriptions over real HTTP, with a real webhook receiver, on both stores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from starlette.responses import JSONResponse, RedirectResponse, Response

from streamkeep.storage import MemoryStore, Store
from streamkeep.storage.postgres import PostgresStore
from tests.receiver import Received, Receiver, accept, done, receiving
from tests.serving import Proxy, serving

ROOT = "/v1/stream"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    return MemoryStore() if request.param == "memory" else PostgresStore(request.getfixturevalue("database_url"))


@pytest.fixture
async def proxy(store: Store) -> AsyncIterator[Proxy]:
    async with serving(store) as served:
        yield served


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


class Client:
    """A subscriber and a writer in one."""

    def __init__(self, proxy: Proxy) -> None:
        self._client = proxy.client

    def url(self, id: str, *rest: str) -> str:
        return "/".join((f"{ROOT}/__ds/subscriptions", id, *rest))

    async def put(self, id: str, **config: Any) -> httpx.Response:
        return await self._client.put(self.url(id), json=config)

    async def webhook(self, id: str, receiver: Receiver, **config: Any) -> dict[str, Any]:
        answer = await self.put(id, type="webhook", webhook={"url": receiver.url}, **config)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def get(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self._client.get(self.url(id))).json()
        return found

    async def create(self, path: str, body: bytes = b"[]") -> None:
        answer = await self._client.put(f"{ROOT}/{path}", content=body, headers=JSON)
        assert answer.status_code == 201, answer.text

    async def append(self, path: str, body: bytes = b'{"n":1}') -> str:
        answer = await self._client.post(f"{ROOT}/{path}", content=body, headers=JSON)
        assert answer.status_code == 204, answer.text
        return answer.headers["Stream-Next-Offset"]

    async def events(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._client.get(f"{ROOT}/{path}")).json()
        return found

    async def post(self, id: str, verb: str, body: Any, token: str | None = None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self._client.post(self.url(id, verb), json=body, headers=headers)

    async def callback(self, webhook: Received, **more: Any) -> httpx.Response:
        token = webhook.value["callback_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return await self._client.post(
            webhook.value["callback_url"], json={**webhook.callback, **more}, headers=headers
        )


@pytest.fixture
def client(proxy: Proxy) -> Client:
    return Client(proxy)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_webhook_is_signed_and_done_acknowledges_what_it_showed(
    proxy: Proxy, client: Client, receiver: Receiver
) -> None:
    made = await client.webhook("s", receiver, pattern="events/*", description="mine")
    await client.create("events/a", b'{"n":1}')
    webhook = await receiver.get()
    page = await proxy.client.get(made["webhook"]["signing"]["jwks_url"])
    assert page.headers["content-type"] == "application/jwk-set+json"
    assert page.headers["cache-control"] == "public, max-age=300"
    webhook.verify(page.json())
    with pytest.raises(InvalidSignature):
        Received(webhook.signature, webhook.raw + b" ", webhook.value).verify(page.json())
    (stream,) = webhook.value["streams"]
    assert stream["link_type"] == "glob"
    assert stream["has_pending"] is True
    assert stream["acked_offset"] < stream["tail_offset"]
    assert webhook.value["subscription_id"] == "s"
    assert webhook.value["generation"] == 1
    assert webhook.value["callback_url"] == f"{proxy.url}{client.url('s', 'callback')}"

    async def is_acked() -> bool:
        (link,) = (await client.get("s"))["streams"]
        return bool(link["acked_offset"] == stream["tail_offset"])

    await eventually(is_acked)
    await client.append("events/a")
    second = await receiver.get()
    assert second.value["generation"] == 2
    assert second.value["wake_id"] != webhook.value["wake_id"]


async def test_what_was_there_before_is_not_replayed(client: Client, receiver: Receiver) -> None:
    await client.create("events/old", b'{"n":1}')
    await client.create("named/old", b'{"n":1}')
    made = await client.webhook("s", receiver, pattern="events/*", streams=["named/old", "named/later"])
    assert {link["path"]: (link["link_type"], link["has_pending"]) for link in made["streams"]} == {
        "events/old": ("glob", False),
        "named/old": ("explicit", False),
        "named/later": ("explicit", False),
    }
    tail = await client.append("events/old")
    assert (await receiver.get()).value["streams"][0]["tail_offset"] == tail
    await client.create("named/later", b'{"n":1}')
    assert (await receiver.get()).paths == ["named/later"]
    await client.create("other/x", b'{"n":1}')
    await client.append("named/old")
    assert (await receiver.get()).paths == ["named/old"]


async def test_a_subscription_is_made_once(client: Client, receiver: Receiver) -> None:
    config: dict[str, Any] = {"type": "webhook", "webhook": {"url": receiver.url}, "streams": ["b", "a", "b"]}
    assert (await client.put("s", **config)).status_code == 201
    assert (await client.put("s", **{**config, "streams": ["a", "b"]})).status_code == 200
    for change in ({"pattern": "x"}, {"lease_ttl_ms": 5000}, {"description": "d"}, {"streams": ["a"]}):
        assert code(await client.put("s", **{**config, **change})) == (409, "SUBSCRIPTION_ALREADY_EXISTS")


async def test_a_deleted_subscription_takes_nothing_any_more(proxy: Proxy, client: Client, receiver: Receiver) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, pattern="events/*")
    await client.create("events/a", b'{"n":1}')
    webhook = await receiver.get()
    assert (await proxy.client.delete(client.url("s"))).status_code == 204
    assert code(await proxy.client.delete(client.url("s"))) == (404, "SUBSCRIPTION_NOT_FOUND")
    assert code(await proxy.client.get(client.url("s"))) == (404, "SUBSCRIPTION_NOT_FOUND")
    assert code(await client.callback(webhook, done=True)) == (404, "SUBSCRIPTION_NOT_FOUND")
    await client.webhook("s", receiver, pattern="events/*")
    assert code(await client.callback(webhook, acks=webhook.acks, done=True)) == (409, "FENCED")
    await client.append("events/a")
    assert (await receiver.get()).value["generation"] == 2


async def test_streams_are_added_and_removed(proxy: Proxy, client: Client, receiver: Receiver) -> None:
    await client.create("deep/er/x", b'{"n":1}')
    await client.webhook("s", receiver, pattern="globbed/*", streams=["a"])
    assert (await client.post("s", "streams", {"streams": ["deep/er/x", "globbed/y"]})).status_code == 204
    assert (await client.post("s", "streams", {"streams": ["deep/er/x"]})).status_code == 204
    await client.append("deep/er/x")
    assert (await receiver.get()).paths == ["deep/er/x"]
    for path in ("deep%2Fer%2Fx", "deep/er/x", "never"):
        assert (await proxy.client.delete(client.url("s", "streams", path))).status_code == 204
    await client.append("deep/er/x")
    await client.create("globbed/y", b'{"n":1}')
    assert (await receiver.get()).paths == ["globbed/y"]
    assert [link["path"] for link in (await client.get("s"))["streams"]] == ["a", "globbed/y"]
    await proxy.client.delete(client.url("s", "streams", "globbed/y"))
    assert [(link["path"], link["link_type"]) for link in (await client.get("s"))["streams"]] == [
        ("a", "explicit"),
        ("globbed/y", "glob"),
    ]


async def test_a_callback_acknowledges_once(client: Client, receiver: Receiver) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, pattern="events/*")
    await client.create("events/a", b'{"n":1}')
    webhook = await receiver.get()
    half = await client.callback(webhook, acks=webhook.acks)
    assert half.json() == {"ok": True, "next_wake": False}
    await client.append("events/a")
    last = await client.callback(webhook, done=True)
    assert last.status_code == 200
    assert code(await client.callback(webhook, done=True)) == (409, "FENCED")
    assert (await receiver.get()).value["generation"] == 2


async def test_only_the_wake_s_own_token_opens_it(client: Client, receiver: Receiver) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, streams=["a"])
    await client.webhook("other", receiver, streams=["b"])
    await client.create("a", b'{"n":1}')
    webhook = await receiver.get()
    await client.create("b", b'{"n":1}')
    other = await receiver.get()
    good = webhook.value["callback_token"]
    scheme, generation, expires, signature = good.split(".")
    tampered = [
        None,
        "x",
        other.value["callback_token"],
        good[:-1],
        good + "A",
        good.swapcase(),
        f"{scheme}.{int(generation) + 1}.{expires}.{signature}",
        f"{scheme}.{generation}.{int(expires) + 1}.{signature}",
        f"{scheme}.0{generation}.{expires}.{signature}",
    ]
    body = {**webhook.callback, "acks": webhook.acks, "done": True}
    for token in tampered:
        assert code(await client.post("s", "callback", body, token)) == (401, "TOKEN_INVALID")
    for wrong in ({"generation": 2}, {"generation": 0}, {"wake_id": "wake_x"}):
        assert code(await client.post("s", "callback", {**body, **wrong}, good)) == (409, "FENCED")
    assert (await client.post("s", "callback", body, good)).json() == {"ok": True, "next_wake": False}


async def test_acknowledgements_are_taken_all_or_none(client: Client, receiver: Receiver) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, pattern="events/*", streams=["events/none"])
    await client.create("events/a", b'{"n":1}')
    webhook = await receiver.get()
    (good,) = webhook.acks
    beyond = f"{0:016d}_{10**6:016d}"
    for bad in (
        {"stream": "events/b", "offset": good["offset"]},
        {"stream": "events/none", "offset": good["offset"]},
        {"stream": "events/b", "offset": "-1"},
        {"stream": "events/b", "offset": "nonsense"},
    ):
        assert code(await client.callback(webhook, acks=[good, bad], done=True)) == (409, "INVALID_OFFSET")
    assert code(await client.callback(webhook, acks=[{**good, "offset": beyond}])) == (409, "INVALID_OFFSET")
    assert code(await client.callback(webhook, acks=[good, good])) == (400, "INVALID_REQUEST")
    (link,) = [link for link in (await client.get("s"))["streams"] if link["path"] == "events/a"]
    assert link["acked_offset"] < good["offset"]
    assert (await client.callback(webhook, acks=[good])).status_code == 200
    assert code(await client.callback(webhook, acks=[{**good, "offset": f"{0:016d}_{0:016d}"}])) == (
        409,
        "INVALID_OFFSET",
    )


async def test_a_failed_delivery_is_repeated(client: Client, receiver: Receiver) -> None:
    answers = [Response(status_code=500), RedirectResponse(receiver.url, status_code=307)]

    async def fail_twice(webhook: Received) -> Response:
        return answers.pop(0) if answers else await done(webhook)

    receiver.answer = fail_twice
    await client.webhook("s", receiver, pattern="events/*")
    await client.create("events/a", b'{"n":1}')
    webhooks = [await receiver.get() for _ in range(3)]
    assert {webhook.value["wake_id"] for webhook in webhooks} == {webhooks[0].value["wake_id"]}
    await client.append("events/a")
    assert (await receiver.get()).value["generation"] == 2
    assert len(receiver.received) == 4


async def test_an_endless_answer_is_an_accepted_wake(client: Client, receiver: Receiver) -> None:
    async def talk(webhook: Received) -> Response:
        return JSONResponse({"done": True, "padding": "x" * 100_000})

    receiver.answer = talk
    await client.webhook("s", receiver, pattern="events/*")
    await client.create("events/a", b'{"n":1}')
    webhook = await receiver.get()
    assert (await client.callback(webhook, acks=webhook.acks, done=True)).json() == {"ok": True, "next_wake": False}


async def test_a_lease_that_runs_out_wakes_again_and_fences(client: Client, receiver: Receiver) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, pattern="events/*", lease_ttl_ms=1000)
    await client.create("events/a", b'{"n":1}')
    first = await receiver.get()
    second = await receiver.get()
    assert [webhook.value["generation"] for webhook in (first, second)] == [1, 2]
    assert code(await client.callback(first, done=True)) == (409, "FENCED")
    latest = second
    while (answer := await client.callback(latest, acks=latest.acks, done=True)).status_code != 200:
        assert code(answer) == (409, "FENCED"), "it has run out, too"
        latest = await receiver.get()


async def pull(client: Client, **config: Any) -> None:
    await client.create("wake/pool")
    answer = await client.put("p", type="pull-wake", wake_stream="wake/pool", **config)
    assert answer.status_code == 201, answer.text
    assert answer.json()["wake_stream"] == "wake/pool"


async def woken(client: Client, count: int) -> list[dict[str, Any]]:
    async def has_events() -> bool:
        return len(await client.events("wake/pool")) >= count

    await eventually(has_events)
    return await client.events("wake/pool")


async def test_a_worker_is_woken_claims_and_acknowledges(client: Client) -> None:
    await pull(client, pattern="**")
    assert code(await client.post("p", "claim", {"worker": "w1"})) == (409, "NO_PENDING_WORK")
    await client.create("events/a", b'{"n":1}')
    (event,) = await woken(client, 1)
    assert {name: event[name] for name in ("type", "subscription_id", "stream", "generation")} == {
        "type": "wake",
        "subscription_id": "p",
        "stream": "events/a",
        "generation": 1,
    }
    claim = (await client.post("p", "claim", {"worker": "w1"})).json()
    assert (claim["generation"], claim["lease_ttl_ms"]) == (1, 30000)
    busy = await client.post("p", "claim", {"worker": "w2"})
    assert code(busy) == (409, "ALREADY_CLAIMED")
    assert (busy.json()["error"]["current_holder"], busy.json()["error"]["generation"]) == ("w1", 1)
    tail = await client.append("events/a")
    wake = {"wake_id": claim["wake_id"], "generation": 1}
    ack = {**wake, "acks": [{"stream": "events/a", "offset": tail}]}
    assert (await client.post("p", "ack", ack, claim["token"])).json() == {"ok": True, "next_wake": False}
    await client.append("events/a")
    assert (await client.post("p", "ack", {**wake, "done": True}, claim["token"])).status_code == 200
    assert [event["generation"] for event in await woken(client, 2)] == [1, 2]
    assert code(await client.post("p", "ack", ack, claim["token"])) == (409, "FENCED")
    assert code(await client.post("p", "release", wake, claim["token"])) == (409, "FENCED")


async def test_a_release_wakes_another_worker(client: Client) -> None:
    await pull(client, streams=["a"])
    await client.create("a", b'{"n":1}')
    await woken(client, 1)
    claim = (await client.post("p", "claim", {"worker": "w1"})).json()
    wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
    assert (await client.post("p", "release", wake, claim["token"])).status_code == 204
    assert [event["generation"] for event in await woken(client, 2)] == [1, 2]
    again = (await client.post("p", "claim", {"worker": "w2"})).json()
    assert again["generation"] == 2
    assert again["streams"][0]["acked_offset"] == claim["streams"][0]["acked_offset"]


async def test_a_claim_that_runs_out_wakes_again(client: Client) -> None:
    await pull(client, streams=["a"], lease_ttl_ms=1000)
    await client.create("a", b'{"n":1}')
    await woken(client, 1)
    claim = (await client.post("p", "claim", {"worker": "w1"})).json()
    events = await woken(client, claim["generation"] + 1)
    assert [event["generation"] for event in events] == list(range(1, len(events) + 1))
    body = {"wake_id": claim["wake_id"], "generation": claim["generation"], "done": True}
    assert code(await client.post("p", "ack", body, claim["token"])) == (409, "FENCED")


async def test_a_claim_sees_what_was_appended_just_before(client: Client) -> None:
    await pull(client, streams=["a"])
    for generation in range(1, 6):
        tail = await client.append("a") if generation > 1 else await created(client, "a")
        claim = (await client.post("p", "claim", {"worker": "w"})).json()
        assert claim["streams"][0]["tail_offset"] == tail
        body = {
            "wake_id": claim["wake_id"],
            "generation": claim["generation"],
            "acks": [{"stream": "a", "offset": tail}],
            "done": True,
        }
        assert (await client.post("p", "ack", body, claim["token"])).json() == {"ok": True, "next_wake": False}


async def created(client: Client, path: str) -> str:
    await client.create(path)
    return await client.append(path)


async def test_a_stream_made_anew_is_followed_from_its_start(proxy: Proxy, client: Client, receiver: Receiver) -> None:
    await client.create("events/a", b"[1,2,3,4,5,6,7,8,9]")
    await client.webhook("s", receiver, pattern="events/*")
    await proxy.client.delete(f"{ROOT}/events/a")
    await client.create("events/a", b"1")
    (stream,) = (await receiver.get()).value["streams"]
    assert stream["acked_offset"] == f"{0:016d}_{0:016d}"


BAD_WISHES: list[dict[str, Any]] = [
    {},
    {"streams": []},
    {"streams": "a"},
    {"streams": [1]},
    {"streams": ["a//b"]},
    {"streams": ["/a"]},
    {"streams": ["__ds/x"]},
    {"streams": ["generations/a/b/data"]},
    {"streams": ["a\0"]},
    {"streams": ["\ud800"]},
    {"streams": [f"x{n}" for n in range(1001)]},
    {"pattern": ""},
    {"pattern": 7},
    {"pattern": "a/../b"},
    {"pattern": "a" * 2000},
    {"pattern": "a", "lease_ttl_ms": 999},
    {"pattern": "a", "lease_ttl_ms": 600001},
    {"pattern": "a", "lease_ttl_ms": True},
    {"pattern": "a", "lease_ttl_ms": 1000.5},
    {"pattern": "a", "lease_ttl_ms": "1000"},
    {"pattern": "a", "description": 5},
    {"pattern": "a", "description": "\0"},
    {"pattern": "a", "description": "x" * 3000},
]
BAD_CONFIGS: list[Any] = [
    [],
    None,
    1,
    {},
    {"type": "webhook"},
    {"type": "none", "pattern": "a"},
    {"type": ["webhook"], "pattern": "a"},
    {"type": "webhook", "pattern": "a"},
    {"type": "webhook", "pattern": "a", "webhook": "http://127.0.0.1/"},
    {"type": "webhook", "pattern": "a", "webhook": {"url": 5}},
    *({"type": "webhook", "webhook": {"url": "http://127.0.0.1/"}, **more} for more in BAD_WISHES),
    {"type": "pull-wake", "pattern": "a"},
    {"type": "pull-wake", "pattern": "a", "wake_stream": "missing"},
    {"type": "pull-wake", "pattern": "a", "wake_stream": 5},
    {"type": "pull-wake", "pattern": "a", "wake_stream": "bytes"},
    {"type": "pull-wake", "streams": ["pool"], "wake_stream": "pool"},
]


async def test_a_configuration_that_makes_no_sense_is_refused(proxy: Proxy, client: Client) -> None:
    await client.create("pool")
    await proxy.client.put(f"{ROOT}/bytes", content=b"x", headers={"Content-Type": "text/plain"})
    for config in BAD_CONFIGS:
        assert code(await proxy.client.put(client.url("s"), content=json.dumps(config))) == (400, "INVALID_REQUEST"), (
            config
        )
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"type":"\\ud800"}', b"nul"):
        assert code(await proxy.client.put(client.url("s"), content=body)) == (400, "INVALID_REQUEST"), body[:20]
    big = await proxy.client.put(client.url("s"), content=b" " * (3 * 1024 * 1024))
    assert big.status_code == 413
    assert code(await proxy.client.get(client.url("s"))) == (404, "SUBSCRIPTION_NOT_FOUND")


async def test_webhooks_lead_only_where_they_may(client: Client) -> None:
    for url in (
        "http://10.0.0.1/hook",
        "http://example.com/hook",
        "https://10.0.0.1/hook",
        "https://169.254.169.254/latest",
        "https://[fd00::1]/",
        "https://service.internal/",
        "http://127.0.1.1/",
        "http://2130706433/",
        "http://127.0.0.1@example.com/",
        "https://user:secret@example.com/",
        "ftp://example.com/",
        "https://example.com/#fragment",
        "http://[::1",
        "nonsense",
        "https://example.com/" + "a" * 3000,
    ):
        answer = await client.put("s", type="webhook", pattern="a", webhook={"url": url})
        assert code(answer) == (400, "WEBHOOK_URL_REJECTED"), url
    for url in ("https://example.com/hook?x=1", "http://localhost:9/", "http://127.0.0.7:9/", "http://[::1]:9/"):
        answer = await client.put(f"s{hash(url)}".replace("-", "m"), type="webhook", pattern="a", webhook={"url": url})
        assert answer.status_code == 201, answer.text


async def test_each_verb_is_for_its_own_delivery_and_bad_requests_are_refused(
    proxy: Proxy, client: Client, receiver: Receiver
) -> None:
    receiver.answer = accept
    await client.webhook("s", receiver, streams=["a"])
    await pull(client, streams=["a"])
    await client.create("a", b'{"n":1}')
    webhook = await receiver.get()
    token = webhook.value["callback_token"]
    for verb in ("claim", "ack", "release"):
        body = {"worker": "w", **webhook.callback}
        assert code(await client.post("s", verb, body, token)) == (400, "INVALID_REQUEST")
    claim = (await client.post("p", "claim", {"worker": "w"})).json()
    body = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
    assert code(await client.post("p", "callback", body, claim["token"])) == (400, "INVALID_REQUEST")
    for bad in (
        {},
        {**body, "generation": "1"},
        {**body, "generation": True},
        {**body, "generation": 2**70},
        {**body, "wake_id": 5},
        {**body, "done": 1},
        {**body, "acks": {}},
        {**body, "acks": [1]},
        {**body, "acks": [{"stream": "a"}]},
        {**body, "acks": [{"stream": "", "offset": "0"}]},
    ):
        assert code(await client.post("p", "ack", bad, claim["token"])) == (400, "INVALID_REQUEST"), bad
    for worker in (None, "", 5, "w" * 201, "\0"):
        assert code(await client.post("p", "claim", {"worker": worker})) == (400, "INVALID_REQUEST")
    for path in ("%ff", "a%2Fb", "-x", "x" * 201, "%00"):
        assert code(await proxy.client.get(client.url(path))) == (400, "INVALID_REQUEST")
    assert code(await proxy.client.get(f"{ROOT}/__ds/")) == (404, "NOT_FOUND")
    assert code(await proxy.client.get(f"{ROOT}/__ds/subscriptions/s/none")) == (404, "NOT_FOUND")
    assert code(await proxy.client.patch(client.url("s"))) == (405, "METHOD_NOT_ALLOWED")


async def test_urls_in_answers_follow_the_public_url(store: Store, receiver: Receiver) -> None:
    async with serving(store, public_url="https://streams.example") as proxy:
        client = Client(proxy)
        made = await client.webhook("s", receiver, streams=["a"])
        assert made["webhook"]["signing"]["jwks_url"] == "https://streams.example/v1/stream/__ds/jwks.json"
        await client.create("a", b'{"n":1}')
        webhook = await receiver.get()
        assert webhook.value["callback_url"] == f"https://streams.example{client.url('s', 'callback')}"


async def test_answers_are_as_the_description_says(proxy: Proxy, receiver: Receiver) -> None:
    document = (await proxy.client.get("/openapi.json")).json()
    client = Client(proxy)
    await client.create("jobs/a")
    await client.create("wakes")
    pull = {"type": "pull-wake", "pattern": "jobs/*", "wake_stream": "wakes"}
    hook = {"type": "webhook", "pattern": "x/*", "webhook": {"url": receiver.url}}

    async def send(method: str, template: str, body: Any = None, token: str = "none", **names: str) -> Any:
        operation = document["paths"][f"{ROOT}/__ds/{template}"][method.lower()]
        url = f"{ROOT}/__ds/{template}".format(**names)
        answer = await proxy.client.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"})
        described = operation["responses"][str(answer.status_code)]
        if answer.status_code == 204:
            assert answer.content == b""
            return answer.status_code, None
        assert answer.headers["Content-Type"] in described["content"]
        schema = described["content"][answer.headers["Content-Type"]]["schema"]
        check_form(answer.json(), schema, document["components"]["schemas"])
        return answer.status_code, answer.json()

    one = "subscriptions/{id}"
    assert (await send("GET", "jwks.json"))[0] == 200
    assert (await send("PUT", one, pull, id="p"))[0] == 201
    assert (await send("PUT", one, hook, id="h"))[0] == 201
    assert (await send("PUT", one, hook, id="p"))[0] == 409
    assert (await send("PUT", one, {}, id="p"))[0] == 400
    assert (await send("GET", one, id="p"))[0] == 200
    assert (await send("GET", one, id="nobody"))[0] == 404
    assert (await send("POST", one + "/streams", {"streams": ["a/b"]}, id="p"))[0] == 204
    assert (await send("DELETE", one + "/streams/{path}", id="p", path="a/b"))[0] == 204
    assert (await send("POST", one + "/claim", {"worker": "w"}, id="p"))[0] == 409
    await client.append("jobs/a")
    status, claimed = await send("POST", one + "/claim", {"worker": "w"}, id="p")
    assert status == 200
    wake = {"wake_id": claimed["wake_id"], "generation": claimed["generation"]}
    assert (await send("POST", one + "/ack", wake, "wrong", id="p"))[0] == 401
    assert (await send("POST", one + "/callback", wake, claimed["token"], id="p"))[0] == 400
    assert (await send("POST", one + "/ack", wake, claimed["token"], id="p"))[0] == 200
    assert (await send("POST", one + "/release", wake, claimed["token"], id="p"))[0] == 204
    assert (await send("DELETE", one, id="p"))[0] == 204
    assert (await send("DELETE", one, id="p"))[0] == 404


def check_form(value: Any, schema: dict[str, Any], named: dict[str, Any]) -> None:
    """Fail unless every required field is there, no other than the described ones, and all of the described type."""
    schema = named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "enum" in schema or "const" in schema:
        assert value in schema.get("enum", [schema.get("const")])
        return
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert isinstance(value, tuple(types[name] for name in wanted)), (value, schema)
    if isinstance(value, list):
        for item in value:
            check_form(item, schema["items"], named)
    elif isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value)
        assert set(value) <= set(properties) or schema.get("additionalProperties"), set(value) - set(properties)
        for name in set(value) & set(properties):
            check_form(value[name], properties[name], named)
