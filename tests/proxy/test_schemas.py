"""Schemas of streams: what a creation may ask for, what is refused by them, and that no schema costs more than it may."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from streamkeep.proxy.rules.schemas import (
    MAX_DEPTH,
    MAX_SCHEMA_BYTES,
    InvalidSchema,
    Schema,
    TooDear,
    schema_of_header,
)
from streamkeep.storage import DEFAULT_TENANT, MemoryStore, StreamConfig, StreamKey
from tests.serving import Proxy, serving

STREAM = "/v1/stream/orders"
JSON = {"Content-Type": "application/json"}
ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "An order",
    "type": "object",
    "properties": {"count": {"type": "integer"}, "sku": {"$ref": "#/$defs/sku"}},
    "required": ["count"],
    "$defs": {"sku": {"type": "string", "pattern": r"^\w{2,8}-\d+$"}},
}


def header(schema: object) -> str:
    return urlsafe_b64encode(json.dumps(schema).encode()).decode().rstrip("=")


def made(schema: object) -> Schema:
    return schema_of_header(header(schema))


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served


async def create(proxy: Proxy, schema: object = ORDER, path: str = STREAM, **kwargs: Any) -> httpx.Response:
    return await proxy.client.put(path, headers={**JSON, "Streamkeep-Schema": header(schema)}, **kwargs)


async def append(proxy: Proxy, value: object, path: str = STREAM, **headers: str) -> httpx.Response:
    return await proxy.client.post(path, content=json.dumps(value), headers={**JSON, **headers})


async def content(proxy: Proxy, path: str = STREAM) -> Any:
    return (await proxy.client.get(path, params={"offset": "-1"})).json()


# Over HTTP


async def test_a_bad_append_is_refused_whole_with_path_and_reason(proxy: Proxy) -> None:
    assert (await create(proxy)).status_code == 201
    assert (await append(proxy, {"count": 1, "sku": "ab-1"})).status_code == 204
    refused = await append(proxy, [{"count": 2}, {"count": "three"}])
    assert refused.status_code == 422
    assert refused.json() == {
        "error": "schema_violation",
        "message": "message 1, $.count: 'three' is not of type 'integer'",
        "index": 1,
        "path": "$.count",
        "reason": "'three' is not of type 'integer'",
    }
    producer = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    assert (await append(proxy, {"count": 2, "sku": "caf\xe9-1"}, **producer)).status_code == 422
    assert (await append(proxy, [{"count": 2}, {"count": 3}], **producer)).status_code == 200
    assert await content(proxy) == [{"count": 1, "sku": "ab-1"}, {"count": 2}, {"count": 3}]


async def test_a_pattern_is_told_as_it_stands_in_the_schema(proxy: Proxy) -> None:
    await create(proxy)
    refused = await append(proxy, {"count": 1, "sku": "x"})
    assert refused.json()["reason"] == r"'x' does not match ^\w{2,8}-\d+$"


async def test_a_creations_own_body_is_checked_and_nothing_is_made_of_a_bad_one(proxy: Proxy) -> None:
    assert (await create(proxy, content=b'[{"count": 1}, {}]')).status_code == 422
    assert (await proxy.client.head(STREAM)).status_code == 404
    assert (await create(proxy, content=b'[{"count": 1}, {"count": 2}]')).status_code == 201
    assert await content(proxy) == [{"count": 1}, {"count": 2}]


async def test_a_schema_is_part_of_the_configuration_and_can_be_read(proxy: Proxy) -> None:
    await create(proxy)
    assert (await create(proxy)).status_code == 200
    reordered = dict(reversed(ORDER.items()))
    padded = b64encode(json.dumps(reordered, indent=1).encode()).decode()
    assert (await proxy.client.put(STREAM, headers={**JSON, "Streamkeep-Schema": padded})).status_code == 200
    assert (await create(proxy, {"type": "object"})).json()["error"] == "stream_exists"
    assert (await proxy.client.put(STREAM, headers=JSON)).status_code == 409
    for answer in (await proxy.client.head(STREAM), await create(proxy)):
        url, _, relation = answer.headers["Link"].partition("; ")
        assert relation == 'rel="describedby"'
        schema = await proxy.client.get(url.strip("<>"))
        assert (schema.status_code, schema.headers["Content-Type"]) == (200, "application/schema+json")
        assert schema.json() == ORDER
    await proxy.client.put("/v1/stream/plain", headers=JSON)
    assert "Link" not in (await proxy.client.head("/v1/stream/plain")).headers
    assert (await proxy.client.get("/v1/stream/plain?as=schema")).json()["error"] == "no_schema"


async def test_a_fork_is_held_to_the_schema_of_its_source(proxy: Proxy) -> None:
    await create(proxy, content=b'{"count": 1}')
    forked = {**JSON, "Stream-Forked-From": STREAM}
    assert (await proxy.client.put("/v1/stream/f", headers=forked, content=b"{}")).status_code == 422
    assert (await proxy.client.put("/v1/stream/f", headers=forked, content=b'{"count": 2}')).status_code == 201
    assert (await append(proxy, {}, "/v1/stream/f")).status_code == 422
    assert await content(proxy, "/v1/stream/f") == [{"count": 1}, {"count": 2}]
    other = {**forked, "Streamkeep-Schema": header({})}
    assert (await proxy.client.put("/v1/stream/g", headers=other)).json()["error"] == "schema_mismatch"


async def test_what_is_wrong_with_the_stream_is_told_first(proxy: Proxy) -> None:
    assert (await append(proxy, {})).status_code == 404
    await create(proxy)
    await append(proxy, {"count": 1})
    await proxy.client.post(STREAM, headers={"Stream-Closed": "true"})
    assert (await append(proxy, {})).json()["error"] == "stream_closed"


async def test_a_stream_made_anew_elsewhere_is_held_to_its_new_schema(proxy: Proxy) -> None:
    """Another process deletes the stream and makes it anew; this one still remembers the old schema."""
    key, config = StreamKey(DEFAULT_TENANT, "orders"), StreamConfig("application/json")
    await create(proxy)
    for schema, good, bad in (({"type": "string"}, "x", {"count": 1}), ({"type": "null"}, None, "x")):
        await proxy.service.store.delete_stream(key)
        await proxy.service.store.create_stream(key, replace(config, schema=made(schema).text))
        assert (await append(proxy, good)).status_code == 204
        assert (await append(proxy, bad)).status_code == 422
        assert await content(proxy) == [good]
    await proxy.service.store.delete_stream(key)
    await proxy.service.store.create_stream(key, config)
    assert (await append(proxy, {"any": "thing"})).status_code == 204


@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_check_that_takes_too_long_is_refused(proxy: Proxy, size: int) -> None:
    await create(proxy, BOMB)
    refused = await append(proxy, "x" * size)
    assert (refused.status_code, refused.json()["error"]) == (422, "schema_violation")
    assert "too long" in refused.json()["message"]


async def test_large_bodies_are_checked_too(proxy: Proxy) -> None:
    await create(proxy)
    orders: list[dict[str, object]] = [{"count": i, "sku": "ab-1"} for i in range(5000)]
    assert (await append(proxy, orders)).status_code == 204
    refused = await append(proxy, [*orders, {"count": None}])
    assert (refused.status_code, refused.json()["index"]) == (422, 5000)
    assert len(await content(proxy)) == 5000


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({**JSON, "Streamkeep-Schema": "%%%"}, "invalid_schema"),
        ({**JSON, "Streamkeep-Schema": "caf\xe9"}, "invalid_schema"),
        ({**JSON, "Streamkeep-Schema": header({"type": 1})}, "invalid_schema"),
        ({"Content-Type": "text/plain", "Streamkeep-Schema": header({})}, "invalid_header"),
        ({"Streamkeep-Schema": header({})}, "invalid_header"),
    ],
)
async def test_a_creation_with_a_bad_schema_makes_nothing(proxy: Proxy, headers: dict[str, str], code: str) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await proxy.client.put(STREAM, headers=raw)
    assert (answer.status_code, answer.json()["error"]) == (400, code), answer.text
    assert (await proxy.client.head(STREAM)).status_code == 404


async def test_names_that_no_text_can_hold_are_told_all_the_same(proxy: Proxy) -> None:
    await create(proxy, {"additionalProperties": {"type": "string"}, "required": ["\ud800"]})
    for body in (b'{"\\ud800": 1}', b"{}", b'{"\\udfff\\r\\n": 1, "\\ud800": ""}'):
        refused = await proxy.client.post(STREAM, content=body, headers=JSON)
        assert refused.status_code == 422, refused.text


# The rules alone

_NESTED = json.loads("[" * 100 + "]" * 100)

_DOUBLING = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)}
BOMB = {"$ref": "#/$defs/a0", "$defs": {**_DOUBLING, "a60": {}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (BOMB, "1"),
        ({"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}, "[" * 60 + "]" * 60),
        ({"anyOf": [{"type": "object"}] * 500}, json.dumps(["x" * 100] * 10_000)),
        ({"anyOf": [False] * 1500}, json.dumps(["x" * 100] * 10_000)),
        ({"items": {"properties": {f"r{i}": {} for i in range(1200)}}}, json.dumps([{}] * 3)),
        ({"allOf": [{"additionalProperties": {}}] * 400}, json.dumps({str(i): i for i in range(1000)})),
    ],
)
def test_a_check_ends_when_it_has_cost_what_it_may(schema: object, message: str) -> None:
    with pytest.raises(TooDear):
        made(schema).violation([message.encode()], 2000)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#"}, "1"),
        ({"multipleOf": 0.1}, "1e999"),
        ({"type": "integer"}, "9" * 5000),
        ({"type": "object"}, '{"a": 1, "a": 2}'),
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 100_000 + "!")),
        ({"pattern": "^a$"}, '"\\ud800"'),
        ({"uniqueItems": True}, "[1, 1.0]"),
        ({"uniqueItems": True}, json.dumps([{"a": i} for i in range(20_000)] * 2)),
        ({"properties": {"a": False}}, '{"a": 1}'),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, "1"),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"const": 1}}}, "true"),
        ({"pattern": r"^[\d]$"}, '"\u0661"'),
        ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, '{"b": 1}'),
    ],
)
def test_what_is_not_as_the_schema_says_is_told(schema: object, message: str) -> None:
    found = made(schema).violation([message.encode()], 1_000_000)
    assert found is not None
    assert len(found.path + found.reason) < 1000


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"uniqueItems": True}, "[1, true, 0, false, [1], [true]]"),
        ({"format": "email", "x-note": {"$ref": "http://elsewhere/"}, "default": {"pattern": "("}}, '"x"'),
        ({"pattern": r"^[\w.]+@\w{2,}$"}, '"a.b@cd"'),
        ({"properties": {"$ref": {"type": "string"}, "pattern": {"type": "integer"}}}, '{"$ref": "x", "pattern": 1}'),
        ({"$ref": "#/properties/tree", "properties": {"tree": {"items": {"$ref": "#"}}}}, "[[[[]]]]"),
        ({"const": _NESTED}, json.dumps(_NESTED)),
        ({}, "1"),
    ],
)
def test_what_is_as_the_schema_says_passes(schema: object, message: str) -> None:
    assert made(schema).violation([message.encode()], 1_000_000) is None


@pytest.mark.parametrize(
    "schema",
    [
        *({"$ref": to} for to in ("http://127.0.0.1:1/x", "file:///etc/passwd", "other", "#anchor", "#/$defs/no", 1)),
        *({"pattern": text} for text in ("(?=a)b", "(a)\\1", "(", "[^a]{3000}", "((a{99}){99}", "\\pL", "\\", 1)),
        *(
            {"$schema": name}
            for name in ("http://elsewhere/", "http://json-schema.org/draft-03/schema#", "http://[", 1)
        ),
        *({"type": 1}, {"properties": []}, {"enum": 1}, {"items": 3}, {"anyOf": {}}, {"minimum": "1"}, [], "x", None),
        *({"patternProperties": {"a": {}}}, {"$dynamicRef": "#x"}, {"items": {"$id": "x"}}, {"$ref": "#/required/0"}),
        {"enum": ["x" * MAX_SCHEMA_BYTES]},
    ],
)
def test_a_schema_that_cannot_be_checked_safely_is_refused(schema: object) -> None:
    with pytest.raises(InvalidSchema) as refused:
        made(schema)
    assert len(str(refused.value)) < 400


def test_a_schema_is_nested_only_so_deep() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        schema = {"not": schema}
    made(schema)
    with pytest.raises(InvalidSchema):
        made({"not": schema})
    for text in (b"[" * 10_000, b'{"const":1e999}', b'{"a":1,"a":2}', b"\xff", b""):
        with pytest.raises(InvalidSchema):
            schema_of_header(b64encode(text).decode())
