"""Messages with a type: schemas at creation, models and dataclasses in and out, and what is told of bad ones."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_type

import httpx
import pytest
from pydantic import BaseModel, Field

from streamkeep.client import (
    DeliveryFailed,
    DurableStream,
    IdempotentProducer,
    InvalidMessage,
    SchemaViolation,
    StreamExists,
)
from streamkeep.client._rules.schemas import header_of, json_schema_of, message_codec
from tests.client.both import Kind
from tests.client.commands import Program
from tests.client.streaming import call, created, entered, items
from tests.serving import Proxy


@dataclass(frozen=True)
class Line:
    sku: str
    count: int = 1


@dataclass(frozen=True)
class Order:
    id: str
    line: Line | None = None
    price: float = 0.0
    tags: list[str] = field(default_factory=list)


class Step(BaseModel):
    number: int
    text: str = Field(default="", alias="Text")


ORDER = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


@pytest.fixture
def url(proxy: Proxy, session: str) -> str:
    return f"{proxy.url}/v1/stream/orders/{session}"


async def test_dataclasses_go_in_and_come_out(kind: Kind, url: str) -> None:
    handle = await created(kind, url, schema=Order)
    assert handle.content_type == "application/json"
    orders = [Order("a", Line("x", 2), 1.5, ["new"]), Order("b"), Order("c", Line("y"))]
    await call(handle.append, orders[0])
    await call(handle.append, orders[1], schema=Order)
    await call(handle.append, {"id": "c", "line": {"sku": "y"}}, schema=Order)
    read = await call(handle.read)
    assert read.json(schema=Order) == orders
    assert read.json()[0] == {"id": "a", "line": {"sku": "x", "count": 2}, "price": 1.5, "tags": ["new"]}
    async with entered(handle.stream(live=False)) as response:
        assert await items(response.iter_json(schema=Order)) == orders
    async with entered(handle.stream(live=False)) as response:
        batches = await items(response.iter_json_batches(schema=Order))
        assert [order for batch in batches for order in batch.items] == orders
        assert batches[-1].offset == read.offset
    async with entered(handle.stream(live=False)) as response:
        assert await call(response.read_json, schema=Order) == orders
    await call(handle.disconnect)


async def test_models_are_written_as_they_are_read(kind: Kind, url: str) -> None:
    handle = await created(kind, url, schema=Step, data=Step(number=1, Text="one"))
    await call(handle.append, Step(number=2))
    await call(handle.append, {"number": 3}, schema=Step)
    read = await call(handle.read)
    assert read.json() == [{"number": 1, "Text": "one"}, {"number": 2, "Text": ""}, {"number": 3, "Text": ""}]
    assert [step.number for step in read.json(schema=Step)] == [1, 2, 3]
    with pytest.raises(InvalidMessage):
        await call(handle.append, {"number": "x"}, schema=Step)
    await call(handle.disconnect)


async def test_what_the_server_refuses_says_which_message_and_why(kind: Kind, url: str) -> None:
    handle = await created(kind, url, schema=ORDER)
    with pytest.raises(SchemaViolation) as refused:
        await call(handle.append, {"id": 1})
    error = refused.value
    assert (error.status, error.index, error.path) == (422, 0, "$.id")
    assert error.reason == "1 is not of type 'string'"
    with pytest.raises(InvalidMessage, match=r"\$\.id: 1 is not of type 'string'"):
        await call(handle.append, {"id": 1}, schema=ORDER)
    with pytest.raises(SchemaViolation):
        await created(kind, f"{url}/other", schema=ORDER, data={})
    with pytest.raises(StreamExists):
        await created(kind, url, schema={})
    assert (await call(handle.read)).json() == []
    schema_url = (await call(handle.head)).schema_url
    assert schema_url is not None
    async with httpx.AsyncClient() as client:
        assert (await client.get(schema_url)).json() == ORDER
    plain = await created(kind, f"{url}/plain", content_type="application/json")
    assert (await call(plain.head)).schema_url is None
    for opened in (handle, plain):
        await call(opened.disconnect)


async def test_a_reader_goes_on_behind_a_bad_message(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="application/json")
    for value in ({"id": "a"}, {"id": 1}, {"id": "b"}):
        await call(handle.append, value)
    async with entered(handle.stream(live=False)) as response:
        orders = response.iter_json(schema=Order)
        assert await items(orders, 1) == [Order("a")]
        with pytest.raises(InvalidMessage, match=r"Order\.id is not str"):
            await items(orders, 1)
        assert await items(orders) == [Order("b")]
    await call(handle.disconnect)


async def test_messages_by_a_json_schema_may_be_anything(kind: Kind, url: str) -> None:
    texts = {"type": "string"}
    handle = await created(kind, url, schema=texts)
    await call(handle.append, "text", schema=texts)
    assert (await call(handle.read)).json(schema=texts) == ["text"]
    text = await created(kind, f"{url}/text", content_type="text/plain")
    with pytest.raises(TypeError, match="JSON stream"):
        await call(text.append, "text", schema=texts)
    for opened in (handle, text):
        await call(opened.disconnect)


async def test_a_producer_takes_models_and_stops_at_what_the_schema_refuses(url: str) -> None:
    handle = await created("sync", url, schema=Step)
    assert isinstance(handle, DurableStream)

    def produce() -> None:
        with IdempotentProducer(handle, "p") as producer:
            for number in range(100):
                producer.append(Step(number=number))
            producer.flush()

    def produce_a_bad_one() -> None:
        with IdempotentProducer(handle, "q") as producer:
            producer.append({"number": "x"})
            producer.flush()

    await call(produce)
    with pytest.raises(DeliveryFailed) as failed:
        await call(produce_a_bad_one)
    assert isinstance(failed.value.__cause__, SchemaViolation)
    assert [step.number for step in (await call(handle.read)).json(schema=Step)] == list(range(100))
    handle.disconnect()


async def test_a_schema_from_a_file(run: Program, session: str, tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    path.write_text(json.dumps(ORDER))
    assert (await run.here("create", session, "--schema", str(path))).code == 0
    refused = await run.here("write", session, '{"id": 1}')
    assert (refused.code, refused.err.count("\n")) == (5, 1)
    assert "$.id: 1 is not of type 'string'" in refused.err
    assert (await run.here("write", session, '{"id": "a"}')).code == 0
    assert "as=schema" in (await run.here("info", session)).text
    for bad in ("[]", "{", "[" * 10_000):
        path.write_text(bad)
        assert (await run("create", f"{session}-2", "--schema", str(path))).code == 2
    path.write_text('{"type": 1}')
    assert (await run.here("create", f"{session}-2", "--schema", str(path))).code == 5


# What a type checker infers; mypy reads these.


def of_sync(handle: DurableStream) -> None:
    assert_type(handle.read().json(schema=Order), list[Order])
    assert_type(handle.read().json(), list[Any])
    assert_type(handle.read().json(schema=ORDER), list[Any])
    assert_type(handle.stream().iter_json(schema=Step), Iterator[Step])
    assert_type(handle.stream().read_json(schema=Step), list[Step])
    for batch in handle.stream().iter_json_batches(schema=Order):
        assert_type(batch.items, tuple[Order, ...])


# Rules


def test_a_dataclass_is_a_schema_as_far_as_json_knows_its_types() -> None:
    assert json_schema_of(Order) == {
        "$ref": "#/$defs/Order",
        "$defs": {
            "Order": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "line": {"anyOf": [{"$ref": "#/$defs/Line"}, {"type": "null"}]},
                    "price": {"type": "number"},
                    "tags": {"type": "array"},
                },
                "required": ["id"],
            },
            "Line": {
                "type": "object",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["sku"],
            },
        },
    }
    encoded = header_of(ORDER)
    assert json.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))) == ORDER


@pytest.mark.parametrize("schema", [None, 1, "x", int, Order("a"), [ORDER]])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    for work in (json_schema_of, message_codec):
        with pytest.raises(TypeError):
            work(schema)
