"""Who may do what, seen from outside: keys, tenants, development mode, and what never leaves for a vendor."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from streamkeep.proxy import create_app
from streamkeep.proxy.errors import ApiError
from streamkeep.proxy.keys_command import key_template, make_key
from streamkeep.proxy.rules.access import BootstrapKeys, Right, digest, format_api_key, principal_of_key
from streamkeep.proxy.rules.signing import Signer
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage import ApiKey, GenerationKey, MemoryStore, StreamKey
from tests.serving import Proxy, local_settings, serving
from tests.upstream import Upstream, upstream, whole

SERVICE = "service-key-0123456789"
ACME = "acme-key-0123456789abc"
OTHER = "other-key-0123456789ab"
KEYS = BootstrapKeys.parse([SERVICE, f"acme={ACME}", f"other={OTHER}"])
IDS = {"sessionId": "s", "requestId": "r"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ours(key: str) -> dict[str, str]:
    return {"Streamkeep-Key": key}


@asynccontextmanager
async def guarded(store: MemoryStore | None = None, **settings: Any) -> AsyncIterator[Proxy]:
    async with serving(store or MemoryStore(), keys=KEYS, **settings) as proxy:
        yield proxy


@pytest.fixture
async def vendor() -> AsyncIterator[Upstream]:
    async with upstream(whole(b"data: hello\n\n")) as served:
        yield served


async def create(proxy: Proxy, vendor: Upstream, headers: Mapping[str, str], request_id: str = "r") -> httpx.Response:
    return await proxy.client.post(
        f"/api/s/{request_id}", content=b"{}", headers={"X-Proxy-Url": f"{vendor.url}/v1", **headers}
    )


ROUTES = [
    ("POST", "/api/s/r"),
    ("GET", "/api/s/r"),
    ("GET", "/api/s/active"),
    ("POST", "/api/s/r/cancel"),
    ("POST", "/api/share"),
    ("DELETE", "/api/s/r"),
    ("DELETE", "/api/s"),
    ("GET", "/stream/data?sessionId=s&requestId=r"),
    ("HEAD", "/stream/control?sessionId=s&requestId=r"),
    ("GET", "/v1/stream/generations/s/r/data"),
    ("GET", "/v1/stream/docs/a"),
    ("HEAD", "/v1/stream/docs/a"),
    ("PUT", "/v1/stream/docs/a"),
    ("POST", "/v1/stream/docs/a"),
    ("DELETE", "/v1/stream/docs/a"),
    ("GET", "/v1/stream/__registry__"),
    ("PUT", "/v1/stream/__ds/subscriptions/x"),
    ("GET", "/v1/stream/__ds/subscriptions/x"),
    ("DELETE", "/v1/stream/__ds/subscriptions/x"),
    ("POST", "/v1/stream/__ds/subscriptions/x/claim"),
    ("POST", "/v1/stream/__ds/subscriptions/x/streams"),
    ("POST", "/u/demo/v1/chat/completions"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_n21_nothing_is_done_without_a_key(method: str, path: str) -> None:
    async with guarded() as proxy:
        missing = await proxy.client.request(method, path)
        wrong = await proxy.client.request(method, path, headers=ours("wrong-key-0123456789"))
    for answer, code in ((missing, "missing_credentials"), (wrong, "invalid_credentials")):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "cache-control" in answer.headers
        if method != "HEAD":
            error = answer.json()["error"]
            assert (error if isinstance(error, str) else error["code"]) in (code, code.upper())
            assert "wrong-key" not in answer.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/v1/stream/__ds/jwks.json"])
async def test_what_holds_no_secret_needs_no_key(path: str) -> None:
    async with guarded() as proxy:
        assert (await proxy.client.get(path)).status_code == 200


@pytest.mark.parametrize("headers", [bearer(ACME), ours(ACME), {**bearer("wrong"), **ours(ACME)}])
async def test_a_key_opens_streams_in_either_header(headers: Mapping[str, str]) -> None:
    async with guarded() as proxy:
        text = {"Content-Type": "text/plain"}
        assert (await proxy.client.put("/v1/stream/a", headers={**headers, **text}, content=b"x")).status_code == 201
        read = await proxy.client.get("/v1/stream/a", headers=headers)
        assert read.content == b"x"
        assert read.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Basic {ACME}"},
        {"Authorization": ACME},
        {"Authorization": "Bearer"},
        ours("x" * 9000),
        bearer(f"{ACME}x"),
    ],
)
async def test_what_is_no_key_opens_nothing(headers: Mapping[str, str]) -> None:
    async with guarded() as proxy:
        answer = await proxy.client.get("/v1/stream/a", headers=headers)
        assert answer.status_code == 401


async def test_a_repeated_credential_is_refused() -> None:
    async with guarded() as proxy:
        for name in ("Authorization", "Streamkeep-Key"):
            answer = await proxy.client.get(
                "/v1/stream/a", headers=[(name, f"Bearer {ACME}"), (name, f"Bearer {OTHER}")]
            )
            assert (answer.status_code, answer.json()["error"]) == (400, "repeated_header")


@pytest.mark.parametrize("name", ["secret", "key", "Streamkeep-Key", "access_token"])
async def test_a_key_in_a_query_opens_nothing(name: str) -> None:
    async with guarded() as proxy:
        assert (await proxy.client.get("/v1/stream/a", params={name: ACME})).status_code == 401


# Tenants


async def test_tenants_with_equal_ids_are_strangers(vendor: Upstream) -> None:
    async with guarded() as proxy:
        for key in (ACME, OTHER):
            assert (await create(proxy, vendor, ours(key))).status_code == 200
        assert len(vendor.calls) == 2
        for path in ("/api/s/r", "/stream/data?sessionId=s&requestId=r", "/v1/stream/generations/s/r/control"):
            assert (await proxy.client.get(path, headers=ours(ACME))).status_code == 200
            assert (await proxy.client.get(path, headers=ours(SERVICE))).status_code == 404
        assert (await proxy.client.post("/api/s/r/cancel", headers=ours(SERVICE))).status_code == 404
        assert (await proxy.client.get("/api/s/active", headers=ours(SERVICE))).json() == []
        assert len((await proxy.client.get("/api/s/active", headers=ours(ACME))).json()) == 1


async def test_a_tenants_streams_are_its_own() -> None:
    async with guarded() as proxy:
        text = {"Content-Type": "text/plain"}
        for key in (ACME, OTHER):
            made = await proxy.client.put("/v1/stream/a", headers={**text, **ours(key)}, content=key.encode())
            assert made.status_code == 201
        only = await proxy.client.put("/v1/stream/mine", headers={**text, **ours(ACME)})
        assert only.status_code == 201
        for key in (ACME, OTHER):
            assert (await proxy.client.get("/v1/stream/a", headers=ours(key))).text == key
        for method in ("GET", "HEAD", "POST", "DELETE"):
            content = b"x" if method == "POST" else None
            answer = await proxy.client.request(
                method, "/v1/stream/mine", headers={**text, **ours(OTHER)}, content=content
            )
            assert answer.status_code == 404
        fork = {"Stream-Forked-From": "/v1/stream/mine", **ours(OTHER)}
        assert (await proxy.client.put("/v1/stream/fork", headers=fork)).status_code == 404
        told = await proxy.client.get("/v1/stream/__registry__", headers=ours(OTHER))
        assert {entry["key"] for entry in told.json()} == {"a"}


async def test_a_tenant_in_the_query_changes_nothing() -> None:
    async with guarded() as proxy:
        await proxy.client.put("/v1/stream/a", headers=ours(ACME))
        assert (await proxy.client.get("/v1/stream/a?tenant=acme", headers=ours(OTHER))).status_code == 404


async def test_subscriptions_belong_to_a_tenant() -> None:
    async with guarded() as proxy:
        config = {"type": "pull-wake", "pattern": "*", "wake_stream": "wakes", "lease_ttl_ms": 10_000}
        path = "/v1/stream/__ds/subscriptions/x"
        await proxy.client.put("/v1/stream/wakes", headers={"Content-Type": "application/json", **ours(ACME)})
        made = await proxy.client.put(path, json=config, headers=ours(ACME))
        assert made.status_code == 201, made.text
        assert (await proxy.client.get(path, headers=ours(OTHER))).status_code == 404
        text = {"Content-Type": "text/plain"}
        await proxy.client.put("/v1/stream/a", headers={**text, **ours(ACME)}, content=b"x")
        async with asyncio.timeout(20):
            while True:
                claimed = await proxy.client.post(f"{path}/claim", json={"worker": "w"}, headers=ours(ACME))
                if claimed.status_code == 200:
                    break
                assert claimed.status_code == 409, claimed.text
                await asyncio.sleep(0.02)
        wake = claimed.json()
        done = {"wake_id": wake["wake_id"], "generation": wake["generation"], "done": True}
        token = bearer(wake["token"])
        assert (await proxy.client.post(f"{path}/ack", json=done, headers=token)).status_code in (401, 404)
        assert (await proxy.client.post(f"{path}/ack?tenant=acme", json=done, headers=token)).status_code == 200


# Keys of the store


async def stored(store: MemoryStore, **changes: Any) -> str:
    template: ApiKey = replace(key_template("acme"), **changes)
    made = await make_key(store.keys, template)
    assert made is not None
    return made


async def test_a_key_from_the_store_opens_until_it_is_revoked() -> None:
    store = MemoryStore()
    async with serving(store) as proxy:
        key = await stored(store)
        id = key.split("_")[1]
        async with asyncio.timeout(60):
            while (await proxy.client.get("/v1/stream/a")).status_code != 401:
                await asyncio.sleep(0.05)
        assert (await proxy.client.get("/v1/stream/a", headers=ours(key))).status_code == 404
        await store.keys.revoke(id)
        async with asyncio.timeout(20):
            while (await proxy.client.get("/v1/stream/a", headers=ours(key))).status_code != 401:
                await asyncio.sleep(0.05)
        # Without keys that are good, it is closed all the same.
        assert (await proxy.client.get("/v1/stream/a")).status_code == 401


async def test_an_expired_key_and_a_wrong_secret_open_nothing() -> None:
    store = MemoryStore()
    good = await stored(store)
    late = await stored(store, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    async with guarded(store) as proxy:
        other = good[:-1] + ("0" if good[-1] != "0" else "1")
        for key in (late, other, good.upper(), f"{good}0", "stk_" + "0" * 16 + "_" + "0" * 64):
            assert (await proxy.client.get("/v1/stream/a", headers=ours(key))).status_code == 401
        assert (await proxy.client.get("/v1/stream/a", headers=ours(good))).status_code == 404


async def test_ten_thousand_wrong_keys_leave_nothing_behind() -> None:
    store = MemoryStore()
    good = await stored(store)
    async with guarded(store) as proxy:
        access = proxy.service.access
        scope = {"headers": [], "query_string": b"", "client": ("127.0.0.1", 1)}
        refused = 0
        for number in range(10_000):
            wrong = f"stk_{number:016x}_{'0' * 64}".encode()
            try:
                await access.principal({**scope, "headers": [(b"streamkeep-key", wrong)]})
            except ApiError:
                refused += 1
        assert refused == 10_000
        assert repr(access) == "Access(keys=1000)"
        assert (await proxy.client.get("/v1/stream/a", headers=ours(good))).status_code == 404


async def test_a_key_calls_the_upstreams_that_it_may(vendor: Upstream) -> None:
    store = MemoryStore()
    upstreams = Upstreams.parse(f"one={vendor.url},two={vendor.url}")
    by_name = await stored(store, upstreams=("one",))
    by_glob = await stored(store, upstreams=(f"{vendor.url}/v1",))
    async with guarded(store, upstreams=upstreams) as proxy:
        for key, name, status in (
            (by_name, "one", 200),
            (by_name, "two", 403),
            (by_glob, "one", 403),
            (ACME, "two", 200),
        ):
            answer = await proxy.client.post(f"/u/{name}/v1", content=b"{}", headers=ours(key))
            assert answer.status_code == status, answer.text
        assert (await create(proxy, vendor, ours(by_glob), "r1")).status_code == 200
        refused = await create(proxy, vendor, ours(by_name), "r2")
        assert (refused.status_code, refused.json()["error"]) == (403, "not_permitted")
        assert len(vendor.calls) == 3


async def test_a_keys_limits_are_its_own(vendor: Upstream) -> None:
    store = MemoryStore()
    limited = await stored(store, max_per_minute=1)
    async with guarded(store) as proxy:
        assert (await create(proxy, vendor, ours(limited), "r1")).status_code == 200
        assert (await create(proxy, vendor, ours(limited), "r2")).status_code == 429
        assert (await create(proxy, vendor, ours(ACME), "r3")).status_code == 200


# What is ours stays here


async def test_our_key_never_reaches_a_vendor(vendor: Upstream) -> None:
    upstreams = Upstreams.parse_toml(
        f'[open]\nurl = "{vendor.url}"\n[kept]\nurl = "{vendor.url}"\nheaders = {{ Authorization = "Bearer vendors" }}',
        {},
    )
    store = MemoryStore()
    key = await stored(store)
    async with guarded(store, upstreams=upstreams) as proxy:
        vendors = {"Authorization": "Bearer vendors"}
        assert (await create(proxy, vendor, {**ours(key), **vendors})).status_code == 200
        await proxy.client.post("/u/open/v1", headers={**ours(key), **vendors}, content=b"{}")
        for headers in (bearer(key), ours(key), {"x-api-key": key}, {"api-key": key}, {"x-goog-api-key": key}):
            answer = await proxy.client.post("/u/kept/v1", headers=headers, content=b"{}")
            assert answer.status_code == 200, answer.text
        assert len(vendor.calls) == 7
        for call in vendor.calls:
            assert call.header("authorization") == "Bearer vendors"
            seen = call.path + repr(call.headers)
            assert key not in seen
            assert key.split("_")[2] not in seen


@pytest.mark.parametrize("place", ["Authorization", "x-api-key", "X-Custom", "X-Proxy-Url", "query"])
async def test_a_key_in_a_vendors_place_is_refused(place: str, vendor: Upstream) -> None:
    store = MemoryStore()
    key = await stored(store)
    async with guarded(store) as proxy:
        for credentials in ({}, ours(key), ours(ACME)):
            headers = {"X-Proxy-Url": f"{vendor.url}/v1", **credentials}
            if place == "X-Proxy-Url":
                headers[place] += f"?key={key}"
            elif place != "query":
                headers[place] = f"Bearer {key}" if place == "Authorization" else key
            params = {"k": key} if place == "query" else {}
            answer = await proxy.client.post("/api/s/r", content=b"{}", headers=headers, params=params)
            assert (answer.status_code, answer.json()["error"]) == (400, "misplaced_credentials")
            assert key not in answer.text
        assert not vendor.calls


async def test_a_bootstrap_key_in_a_vendors_place_is_refused(vendor: Upstream) -> None:
    async with guarded() as proxy:
        for headers in (bearer(ACME), {**ours(ACME), **bearer(ACME)}, {**ours(ACME), "X-Custom": f"a {ACME} b"}):
            answer = await create(proxy, vendor, headers)
            assert (answer.status_code, answer.json()["error"]) == (400, "misplaced_credentials")
        assert not vendor.calls


# Development mode


@pytest.mark.parametrize("client", [("203.0.113.7", 1), ("10.0.0.1", 1), ("testclient", 1), None])
async def test_development_mode_serves_its_own_machine_alone(client: tuple[str, int] | None) -> None:
    app = create_app(store=MemoryStore(), settings=local_settings())
    service = app.state.service
    async with service.open():
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/v1/stream/a",
            "raw_path": b"/v1/stream/a",
            "query_string": b"",
            "headers": [(b"x-forwarded-for", b"127.0.0.1")],
            "client": client,
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "root_path": "",
        }
        await app(scope, receive, send)
        assert sent[0]["status"] == 403


async def test_development_mode_needs_nothing_and_heeds_no_credential() -> None:
    async with serving(MemoryStore()) as proxy:
        for headers in ({}, bearer("anything"), ours("anything")):
            assert (await proxy.client.get("/v1/stream/a", headers=headers)).status_code == 404


HERE = {"Host": "127.0.0.1:4000"}


@pytest.mark.parametrize(
    ("headers", "is_served"),
    [
        ({"Host": "localhost:4000", "Origin": "http://localhost:5173"}, True),
        ({"Host": "[::1]:4000", "Origin": "http://[::1]:5173"}, True),
        ({"Host": "app.localhost", "Origin": "http://127.0.0.1"}, True),
        ({"Host": "laptop:4000"}, True),
        ({"Host": "streams.example", "Origin": "https://app.example"}, True),
        ({**HERE, "Origin": "https://evil.example"}, False),
        ({**HERE, "Origin": "http://localhost.evil.example"}, False),
        ({**HERE, "Origin": "http://127.0.0.1.evil.example"}, False),
        ({**HERE, "Origin": "http://localhost@evil.example"}, False),
        ({**HERE, "Origin": "null"}, False),
        ({**HERE, "Origin": "http://[::1"}, False),
        ({**HERE, "Origin": ""}, False),
        ({"Host": "evil.example:4000"}, False),
        ({"Host": "localhost.evil.example"}, False),
        ({"Host": "127.0.0.1@evil.example"}, False),
    ],
)
async def test_development_mode_serves_no_page_from_elsewhere(headers: dict[str, str], is_served: bool) -> None:
    settings = {"origins": ("*", "https://app.example"), "public_url": "https://streams.example"}
    async with serving(MemoryStore(), **settings) as proxy:
        answer = await proxy.client.get("/v1/stream/a", headers=headers)
        assert answer.status_code == (404 if is_served else 403)


async def test_what_concerns_all_tenants_is_for_operators() -> None:
    async with guarded() as proxy:
        statuses = [
            (await proxy.client.get("/metrics", headers=headers)).status_code
            for headers in ({}, ours(ACME), ours(SERVICE))
        ]
        assert statuses == [401, 403, 200]


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[object, object]] = []
    compare = hmac.compare_digest

    def watched(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    text = format_api_key("0" * 16, "1" * 64)
    key = replace(key_template("acme"), digest=digest("1" * 64))
    principal_of_key(key, text, now=datetime.now(UTC))
    assert len(compared) == 1
    assert KEYS.find(ACME) is not None
    assert len(compared) == 1 + 3, "each key, found or not"
    signer = Signer(1, {1: bytes(32)})
    signer.check(StreamKey("acme", "a"), {"signature": "1.x", "expires": "1"}, now=0)
    assert len(compared) == 1 + 3 + 1


# Capability URLs


async def test_a_signed_url_reads_cancels_and_renews_as_far_as_its_rights_go(vendor: Upstream) -> None:
    async with guarded() as proxy:
        made = (await create(proxy, vendor, ours(ACME))).json()
        read = await proxy.client.get(made["streamUrl"])
        assert read.content == b"data: hello\n\n"
        assert read.headers["Cache-Control"] == "no-store"
        assert (await proxy.client.get(made["controlUrl"])).status_code == 200
        query = made["streamUrl"].partition("?")[2]
        assert (await proxy.client.post(f"/api/s/r/cancel?{query}")).status_code == 401
        assert (await proxy.client.get(f"/api/s/r?{query}")).status_code == 401
        assert (await proxy.client.get(f"/v1/stream/generations/s/r/data?{query}")).status_code == 200
        assert (await proxy.client.get(f"/v1/stream/generations/s/other/data?{query}")).status_code == 401
        for change in ("tenant=other", "tenant=default", "expires=9999999999"):
            name = change.partition("=")[0]
            tampered = "&".join(part for part in query.split("&") if not part.startswith(f"{name}=")) + f"&{change}"
            assert (await proxy.client.get(f"/stream/data?{tampered}", headers=ours(ACME))).status_code == 401
        cancelling = proxy.service.access.signed_query(GenerationKey("acme", "s", "r"), Right.CANCEL)
        assert (await proxy.client.post(f"/api/s/r/cancel?{cancelling}")).status_code == 200
        assert (await proxy.client.get(f"/stream/data?{cancelling}")).status_code == 401


async def test_an_expired_url_is_renewed_with_a_key_alone(vendor: Upstream) -> None:
    async with guarded(url_seconds=-1) as proxy:
        made = (await create(proxy, vendor, ours(ACME))).json()
        expired = await proxy.client.get(made["streamUrl"])
        assert (expired.status_code, expired.json()["error"]) == (401, "signature_expired")
        assert (await proxy.client.get("/api/s/r")).status_code == 401
        assert (await proxy.client.get("/api/s/r", headers=ours(ACME))).json()["streamUrl"] != ""


async def test_a_signed_url_of_a_stream_reads_or_appends() -> None:
    async with guarded() as proxy:
        text = {"Content-Type": "text/plain"}
        await proxy.client.put("/v1/stream/docs/a", headers={**text, **ours(ACME)}, content=b"one")
        reading = proxy.service.access.signed_query(StreamKey("acme", "docs/a"))
        writing = proxy.service.access.signed_query(StreamKey("acme", "docs/a"), Right.READ, Right.APPEND)
        refused = await proxy.client.post(f"/v1/stream/docs/a?{reading}", headers=text, content=b"x")
        assert (refused.status_code, refused.json()["error"]) == (401, "signature_invalid")
        appended = await proxy.client.post(f"/v1/stream/docs/a?{writing}", headers=text, content=b"two")
        assert appended.status_code == 204
        for query in (reading, writing):
            read = await proxy.client.get(f"/v1/stream/docs/a?{query}")
            assert (read.content, read.headers["Cache-Control"]) == (b"onetwo", "no-store")
        for method in ("PUT", "DELETE"):
            assert (await proxy.client.request(method, f"/v1/stream/docs/a?{writing}")).status_code == 401
        assert (await proxy.client.get(f"/v1/stream/docs/b?{writing}")).status_code == 401


async def share(proxy: Proxy, value: Any, key: str = ACME) -> httpx.Response:
    return await proxy.client.post("/api/share", json=value, headers=ours(key))


async def test_a_generation_is_shared_for_reading_or_cancelling(vendor: Upstream) -> None:
    async with guarded() as proxy:
        await create(proxy, vendor, ours(ACME))
        ids = {"sessionId": "s", "requestId": "r"}
        reading = (await share(proxy, ids)).json()
        assert reading["rights"] == ["read"]
        assert (await proxy.client.get(reading["streamUrl"])).content == b"data: hello\n\n"
        asked_at = time.time()
        both = (await share(proxy, {**ids, "rights": ["cancel", "read"], "seconds": 60})).json()
        expires = int(httpx.URL(both["controlUrl"]).params["expires"])
        assert asked_at + 60 <= expires <= time.time() + 61, "it is good for what was asked for, in whole seconds"
        assert datetime.fromisoformat(both["expiresAt"]).timestamp() == expires
        assert (await proxy.client.get(both["controlUrl"])).status_code == 200
        assert (await proxy.client.post(both["cancelUrl"])).status_code == 200
        assert (await share(proxy, {**ids, "rights": ["cancel"]})).json().keys() == {"cancelUrl", "rights", "expiresAt"}
        foreign = (await share(proxy, ids, OTHER)).json()
        assert (await proxy.client.get(foreign["streamUrl"])).status_code == 404


async def test_a_stream_is_shared_for_reading_or_writing() -> None:
    async with guarded() as proxy:
        text = {"Content-Type": "text/plain"}
        await proxy.client.put("/v1/stream/docs/%C3%A4%20b", headers={**text, **ours(ACME)}, content=b"one")
        shared = (await share(proxy, {"path": "docs/ä b", "rights": ["append", "read"]})).json()
        assert (await proxy.client.post(shared["url"], headers=text, content=b"two")).status_code == 204
        reading = (await share(proxy, {"path": "docs/ä b"})).json()
        assert (await proxy.client.get(reading["url"])).content == b"onetwo"
        assert (await proxy.client.post(reading["url"], headers=text, content=b"x")).status_code == 401
        assert (await proxy.client.post("/api/share", json={"path": "a"}, headers={})).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 10_000,
        b'{"path": 1}',
        b'{"path": ""}',
        b'{"path": "a/../b"}',
        b'{"path": "\\ud800"}',
        b'{"path": "a\\u0000"}',
        b'{"path": "generations/s/r/data"}',
        b'{"path": "__ds/subscriptions/x"}',
        b'{"path": "a", "sessionId": "s", "requestId": "r"}',
        b'{"sessionId": "s"}',
        b'{"sessionId": "s", "requestId": "active"}',
        b'{"sessionId": "s", "requestId": "r", "rights": ["append"]}',
        b'{"path": "a", "rights": ["cancel"]}',
        b'{"path": "a", "rights": []}',
        b'{"path": "a", "rights": [["read"]]}',
        b'{"path": "a", "rights": "read"}',
        b'{"path": "a", "seconds": 0}',
        b'{"path": "a", "seconds": NaN}',
        b'{"path": "a", "seconds": Infinity}',
        b'{"path": "a", "seconds": true}',
        b'{"path": "a", "seconds": 99999999}',
        b'{"path": "a", "tenant": "other"}',
    ],
)
async def test_what_cannot_be_shared_is_told(body: bytes) -> None:
    async with guarded() as proxy:
        answer = await proxy.client.post("/api/share", content=body, headers=ours(ACME))
        assert answer.status_code == 400, answer.text
