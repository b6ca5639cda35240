"""The console's files, and the routes that it needs beside everybody's: who gets what, and under which headers."""

from __future__ import annotations

import re

import httpx
import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.proxy.rules.console import prefers_html
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
OPERATOR = {"Streamkeep-Key": "operator-key-0123456789"}
ACME = {"Streamkeep-Key": "acme-key-0123456789abc"}
KEYS = BootstrapKeys.parse([OPERATOR["Streamkeep-Key"], f"acme={ACME['Streamkeep-Key']}"])


@pytest.mark.parametrize(
    ("accept", "is_wanted"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("*/*", False),
        ("", False),
        (None, False),
    ],
)
def test_html_is_for_whoever_prefers_it(accept: str | None, is_wanted: bool) -> None:
    assert prefers_html(accept) is is_wanted


async def test_browsers_get_the_console_and_machines_what_they_always_got(proxy: Proxy) -> None:
    machine = await proxy.client.get("/")
    assert (machine.status_code, machine.headers["Location"]) == (307, "/docs")
    page = await proxy.client.get("/", headers={"Accept": BROWSER})
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Accept" in page.headers["Vary"]
    again = await proxy.client.get("/", headers={"Accept": BROWSER, "If-None-Match": page.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await proxy.client.head("/", headers={"Accept": BROWSER})
    assert (head.status_code, head.content) == (200, b"")


async def test_every_file_that_the_console_loads_is_served_under_a_strict_policy(proxy: Proxy) -> None:
    wanted, seen = ["/"], set()
    while wanted:
        path = wanted.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = await proxy.client.get(path, headers={"Accept": BROWSER})
        assert answer.status_code == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "innerHTML" not in answer.text
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=\"", answer.text)
        wanted += ["/" + name for name in re.findall(r'(?:src|href)="(console/[^"]+)"', answer.text)]
        wanted += ["/console/" + name for name in re.findall(r'(?:from|import\() ?"\./([^"]+)"', answer.text)]
    assert len(seen) > 10


@pytest.mark.parametrize("path", ["/console/", "/console/nothing.js", "/console/..%2fapp.py", "/console/__init__.py"])
async def test_nothing_else_is_a_file_of_the_console(proxy: Proxy, path: str) -> None:
    answer = await proxy.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


async def test_everybody_learns_who_they_are(proxy: Proxy) -> None:
    assert (await proxy.client.get("/api/whoami")).json()["isOpen"]
    async with serving(MemoryStore(), keys=KEYS, max_running=3) as guarded:
        mine = (await guarded.client.get("/api/whoami", headers=ACME)).json()
        assert (mine["tenant"], mine["isOperator"], mine["isOpen"], mine["maxRunning"]) == ("acme", False, False, 3)
        assert (await guarded.client.get("/api/whoami")).status_code == 401


async def test_operators_make_list_and_revoke_keys() -> None:
    async with serving(MemoryStore(), keys=KEYS) as proxy:
        wanted = {"tenant": "acme", "name": "a robot", "maxRunning": 2, "upstreams": ["openai"], "seconds": 3600}
        made = await proxy.client.post("/api/keys", json=wanted, headers=OPERATOR)
        assert made.status_code == 201
        key = {"Streamkeep-Key": made.json()["key"]}
        me = (await proxy.client.get("/api/whoami", headers=key)).json()
        assert (me["tenant"], me["maxRunning"], me["upstreams"]) == ("acme", 2, ["openai"])
        (listed,) = (await proxy.client.get("/api/keys", headers=OPERATOR)).json()["keys"]
        assert (listed["name"], listed["state"]) == ("a robot", "active")
        assert made.json()["key"].startswith(listed["id"])
        assert made.json()["key"].rpartition("_")[2] not in str(listed)
        for answer in (
            await proxy.client.get("/api/keys", headers=key),
            await proxy.client.post("/api/keys", json={}, headers=key),
            await proxy.client.post(f"/api/keys/{listed['id']}/revoke", headers=key),
        ):
            assert answer.status_code == 403
        revoked = await proxy.client.post(f"/api/keys/{listed['id']}/revoke", headers=OPERATOR)
        assert revoked.json()["state"] == "revoked"
        assert (await proxy.client.post("/api/keys/stk_none/revoke", headers=OPERATOR)).status_code == 404


async def test_the_first_key_is_an_operators(proxy: Proxy) -> None:
    refused = await proxy.client.post("/api/keys", json={"tenant": "acme"})
    assert (refused.status_code, refused.json()["error"]) == (409, "first_key")
    assert (await proxy.client.get("/api/whoami")).json()["isOpen"]


@pytest.mark.parametrize(
    "body",
    [
        *('{"tenant": 1}', '{"tenant": ".."}', '{"isOperator": 1}', '{"name": "\\u0000"}', '{"maxRunning": 0}'),
        *('{"maxRunning": true}', '{"seconds": 1e99}', '{"upstreams": "x"}', '{"upstreams": ["http://[/"]}'),
        *("[]", "x", '{"more": 1}', "[" * 10_000),
    ],
)
async def test_a_key_that_cannot_be_made_is_refused(body: str) -> None:
    async with serving(MemoryStore(), keys=KEYS) as proxy:
        answer: httpx.Response = await proxy.client.post("/api/keys", content=body, headers=OPERATOR)
        assert answer.status_code == 400, answer.text
        large = await proxy.client.post("/api/keys", content=b" " * 20_000, headers=OPERATOR)
        assert large.status_code == 413


async def test_streams_are_listed_by_path(proxy: Proxy) -> None:
    for path in ("a/1", "a/2", "b"):
        await proxy.client.put(f"/v1/stream/{path}", headers={"Content-Type": "text/plain"}, content=b"xyz")
    first = (await proxy.client.get("/api/streams", params={"prefix": "a/", "limit": "1"})).json()
    assert [(row["path"], row["bytes"], row["isClosed"]) for row in first["streams"]] == [("a/1", 3, False)]
    rest = (await proxy.client.get("/api/streams", params={"prefix": "a/", "after": first["next"]})).json()
    assert ([row["path"] for row in rest["streams"]], rest["next"]) == (["a/2"], None)
    for query in ("after=%00", "limit=0", "q=x", f"prefix={'x' * 1025}"):
        assert (await proxy.client.get(f"/api/streams?{query}")).status_code == 400, query


async def test_what_the_description_promises_of_keys_is_answered() -> None:
    async with serving(MemoryStore(), keys=KEYS) as proxy:
        document = (await proxy.client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        made = (await proxy.client.post("/api/keys", json={}, headers=OPERATOR)).json()
        (key,) = (await proxy.client.get("/api/keys", headers=OPERATOR)).json()["keys"]
        me = (await proxy.client.get("/api/whoami", headers=OPERATOR)).json()
        for name, value in (("NewKey", made), ("Key", key), ("WhoAmI", me)):
            assert set(schemas[name]["required"]) == set(schemas[name]["properties"]) == set(value), name
        wanted = document["paths"]["/api/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert wanted == {"$ref": "#/components/schemas/KeyRequest"}
        for method, path in (("get", "/api/whoami"), ("get", "/api/keys"), ("post", "/api/keys/{id}/revoke")):
            assert "401" in document["paths"][path][method]["responses"]
            assert "422" not in document["paths"][path][method]["responses"], path
