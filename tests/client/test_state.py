"""State on streams: events, what they leave behind, typed collections that follow a stream, and optimistic writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from streamkeep.client import InvalidEvent, StreamNotFound
from streamkeep.client.state import (
    AsyncStreamDB,
    Change,
    Collection,
    MaterializedState,
    RowChange,
    StreamDB,
    control,
    delete,
    insert,
    parse_event,
    update,
    upsert,
)
from tests.client.both import Kind
from tests.client.streaming import call, created
from tests.serving import Proxy

Event = dict[str, Any]


@dataclass(frozen=True)
class User:
    id: str
    name: str
    age: int | None = None


class Post(BaseModel):
    id: str
    author: str
    likes: int = 0


USERS = Collection("user", User)
POSTS = Collection("post", Post)
TAGS: Collection[dict[str, Any]] = Collection(
    "tag", {"type": "object", "properties": {"hue": {"type": "integer", "maximum": 360}}, "required": ["hue"]}
)


def test_events_are_written_and_read() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    made = update("user", "1", {"a": 1}, old_value={"a": 0}, txid="t", timestamp=at)
    assert made == {
        "type": "user",
        "key": "1",
        "value": {"a": 1},
        "old_value": {"a": 0},
        "headers": {"operation": "update", "txid": "t", "timestamp": "2030-01-01T00:00:00+00:00"},
    }
    read = Change("user", "1", "update", {"a": 1}, {"a": 0}, "t", "2030-01-01T00:00:00+00:00")
    assert parse_event(made) == read


@pytest.mark.parametrize(
    "make",
    [
        lambda: insert("", "1", 1),
        lambda: insert("user", "", 1),
        lambda: delete("user", "1", txid=""),
        lambda: upsert("user", "1", 1, timestamp=datetime(2030, 1, 1)),
        lambda: control("restart"),  # type: ignore[arg-type]
    ],
)
def test_no_malformed_event_is_written(make: Callable[[], Event]) -> None:
    with pytest.raises(InvalidEvent):
        make()


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "x", {}, {"headers": {}}, {"headers": []}, {"headers": {"operation": ["insert"]}}),
        {"type": "t", "key": "k", "headers": {"operation": "insert"}},
        {"type": "t", "key": 1, "value": 1, "headers": {"operation": "insert"}},
        {"type": "t", "key": "k", "value": 1, "headers": {"operation": "merge"}},
        {"headers": {"control": {}}},
    ],
)
def test_a_malformed_event_is_refused_and_changes_nothing(event: object) -> None:
    state = MaterializedState()
    state.apply(insert("t", "k", 0))
    with pytest.raises(InvalidEvent):
        state.apply(event)
    assert dict(state.of_type("t")) == {"k": 0}


def test_the_last_write_of_a_key_wins_and_a_reset_forgets() -> None:
    state = MaterializedState()
    state.apply_batch([control("snapshot-start"), insert("a", "1", None), insert("a", "1", [2]), upsert("b", "1", "x")])
    assert state.is_in_snapshot
    state.apply_batch([control("snapshot-end"), update("b", "2", {"deep": {}}), delete("b", "1"), delete("c", "1")])
    assert (state.is_in_snapshot, state.types) == (False, ("a", "b"))
    assert (state.get("a", "1"), dict(state.of_type("b")), state.get("c", "1")) == ([2], {"2": {"deep": {}}}, None)
    state.apply(control("reset"))
    assert state.types == ()


KEYS = st.sampled_from(["1", "2", "3"])
TYPES = st.sampled_from(["a", "b"])


@given(
    st.lists(
        st.one_of(
            st.builds(insert, TYPES, KEYS, st.integers()),
            st.builds(upsert, TYPES, KEYS, st.none() | st.booleans()),
            st.builds(delete, TYPES, KEYS),
            st.just(control("reset")),
        )
    )
)
def test_it_is_a_dictionary_of_what_was_written(events: list[Event]) -> None:
    state, model = MaterializedState(), dict[tuple[str, str], Any]()
    state.apply_batch(events)
    for event in events:
        if "control" in event["headers"]:
            model.clear()
        elif event["headers"]["operation"] == "delete":
            model.pop((event["type"], event["key"]), None)
        else:
            model[event["type"], event["key"]] = event["value"]
    assert {(type, key): value for type in state.types for key, value in state.of_type(type).items()} == model


@pytest.mark.parametrize(
    ("collection", "value"),
    [
        (USERS, {"id": "1", "name": 2}),
        (USERS, {"id": "1"}),
        (USERS, {"id": "1", "name": "x", "age": "old"}),
        (USERS, {"id": "1", "name": "x", "age": True}),
        (POSTS, {"id": "1", "author": "1", "likes": "many"}),
        (TAGS, {"id": "1", "hue": 361}),
        (TAGS, {"id": "1"}),
        (TAGS, [1]),
    ],
)
def test_a_value_that_its_schema_does_not_admit(collection: Collection[Any], value: Any) -> None:
    with pytest.raises(InvalidEvent):
        collection.value_of(Change(collection.type, "1", "insert", value))


def test_a_collection_makes_events_of_values() -> None:
    assert USERS.insert(User("1", "Ada")) == insert("user", "1", {"id": "1", "name": "Ada", "age": None})
    assert POSTS.upsert(Post(id="p", author="1"), txid="t") == upsert(
        "post", "p", {"id": "p", "author": "1", "likes": 0}, txid="t"
    )
    assert TAGS.update({"hue": 1}, key="red") == update("tag", "red", {"hue": 1})
    assert USERS.value_of(Change("user", "7", "insert", {"id": "1", "name": "x", "more": 1})) == User("7", "x")
    with pytest.raises(InvalidEvent, match="hue"):
        TAGS.insert({"id": "1", "hue": "red"})
    with pytest.raises(InvalidEvent, match="key"):
        TAGS.insert({"hue": 1})
    with pytest.raises(TypeError):
        Collection("x", int)


class Follower:
    """A database of either kind."""

    def __init__(self, kind: Kind, handle: Any, **options: Any) -> None:
        made: Any = StreamDB if kind == "sync" else AsyncStreamDB
        self.db: Any = made(handle, USERS, POSTS, TAGS, **options)

    async def __aenter__(self) -> Self:
        self.db.open()
        await call(self.db.preload, timeout=60)
        return self

    async def __aexit__(self, *_: object) -> None:
        await call(self.db.close)

    async def write(self, *events: Event, **options: Any) -> str:
        return await call(self.db.write, *events, **options)

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                await asyncio.sleep(0.005)


def is_equal(shown: Iterable[object], wanted: list[User]) -> bool:
    return list(shown) == wanted


async def follower(kind: Kind, proxy: Proxy, session: str, *events: object, **options: Any) -> Follower:
    handle = await created(kind, f"{proxy.url}/v1/stream/{session}", content_type="application/json")
    for event in events:
        await call(handle.append, event)
    return Follower(kind, handle, **options)


async def test_all_who_follow_a_stream_see_the_same(kind: Kind, proxy: Proxy, session: str) -> None:
    events = [
        USERS.insert(User("1", "Ada")),
        insert("unknown", "1", 1),
        POSTS.insert(Post(id="p", author="1", likes=3)),
    ]
    async with await follower(kind, proxy, session, *events) as one, await follower(kind, proxy, session) as two:
        await one.write(USERS.insert(User("2", "Bob")), POSTS.insert(Post(id="q", author="2", likes=5)))
        await two.write(USERS.update(User("1", "Grace")), USERS.delete("2"))
        expected = ([User("1", "Grace")], ["p", "q"])
        for each in (one, two):
            users = each.db.rows(USERS)
            await each.until(partial(is_equal, users, expected[0]))
            assert [post.id for post in each.db.rows(POSTS)] == expected[1]
        posts = one.db.rows(POSTS)
        assert [post.id for post in posts.order_by("likes", descending=True).limit(1)] == ["q"]
        assert posts.where(lambda post: post.likes > 3, author="2").count() == 1
        pairs = one.db.rows(USERS).join(posts, on=("id", "author"))
        assert [(user.name, post.id) for user, post in pairs] == [("Grace", "p")]
        assert posts.where(author="nobody").first() is None
        assert (posts.get("p").likes, len(posts), "q" in posts) == (3, 2, True)


async def test_nothing_shows_before_the_tail_and_bad_values_block_no_other(
    kind: Kind, proxy: Proxy, session: str
) -> None:
    invalid: list[object] = []
    bad = [insert("user", "2", {"name": 5}), {"headers": 1}, insert("tag", "t", 7)]
    events = [USERS.insert(User("1", "Ada")), *bad, TAGS.insert({"hue": 9}, key="red")]
    made = await follower(kind, proxy, session, *events, on_invalid=lambda event, error: invalid.append(event))
    steps: list[list[RowChange[User]]] = []
    made.db.subscribe(USERS, steps.append)
    async with made:
        assert list(made.db.rows(USERS)) == [User("1", "Ada")]
        assert list(made.db.rows(TAGS)) == [{"hue": 9, "id": "red"}]
        assert steps == [[RowChange("insert", "1", User("1", "Ada"), None)]]
        assert invalid == bad


async def test_a_write_shows_at_once_and_goes_when_it_fails(kind: Kind, proxy: Proxy, session: str) -> None:
    async with await follower(kind, proxy, session, USERS.insert(User("1", "Ada"))) as made:
        users, steps = made.db.rows(USERS), list[list[RowChange[User]]]()
        leave = made.db.subscribe(USERS, steps.append)
        shown: list[User | None] = []

        def refuse(events: list[Event]) -> None:
            shown.append(users.get("1"))
            raise ValueError("refused")

        async def refuse_later(events: list[Event]) -> None:
            refuse(events)

        with pytest.raises(ValueError, match="refused"):
            await made.write(USERS.update(User("1", "Eve")), send=refuse if kind == "sync" else refuse_later)
        assert (shown, list(users)) == ([User("1", "Eve")], [User("1", "Ada")])
        kinds = [(change.kind, change.value) for step in steps for change in step]
        assert kinds == [("update", User("1", "Eve")), ("update", User("1", "Ada"))]
        leave()
        await made.write(USERS.delete("1"))
        assert (len(users), len(steps)) == (0, 2)
        with pytest.raises(InvalidEvent):
            await made.write(insert("nothing", "1", {}))


async def test_a_write_that_does_not_come_back_in_time_stays_until_it_does(
    kind: Kind, proxy: Proxy, session: str
) -> None:
    async with await follower(kind, proxy, session) as made:
        kept: list[Event] = []

        async def keep_later(events: list[Event]) -> None:
            kept.extend(events)

        send = kept.extend if kind == "sync" else keep_later
        with pytest.raises(TimeoutError):
            await made.write(USERS.insert(User("1", "Ada")), send=send, timeout=0.05)
        assert list(made.db.rows(USERS)) == [User("1", "Ada")]
        await call(made.db._handle.append, kept[0])
        await call(made.db.await_txid, kept[0]["headers"]["txid"], timeout=20)
        assert list(made.db.rows(USERS)) == [User("1", "Ada")]


async def test_changes_are_iterated_until_the_database_is_closed(kind: Kind, proxy: Proxy, session: str) -> None:
    async with await follower(kind, proxy, session) as made:
        changes = made.db.changes(USERS)
        for name in ("Ada", "Bob"):
            await made.write(USERS.upsert(User("1", name)))
        found: list[RowChange[User]] = []
        for _ in range(2):
            found += await (asyncio.to_thread(next, changes) if kind == "sync" else anext(changes))
    assert [(change.kind, change.value) for change in found] == [
        ("insert", User("1", "Ada")),
        ("update", User("1", "Bob")),
    ]
    nothing: Any = object()
    rest = await (asyncio.to_thread(next, changes, nothing) if kind == "sync" else anext(changes, nothing))
    assert rest is nothing


async def test_who_waits_learns_that_a_stream_cannot_be_read(kind: Kind, proxy: Proxy, session: str) -> None:
    made = await follower(kind, proxy, session)
    await call(made.db._handle.delete)
    with pytest.raises(StreamNotFound):
        await call(made.db.preload, timeout=60)
    await call(made.db.close)


def test_two_collections_of_one_type_and_foreign_ones_are_refused() -> None:
    from streamkeep.client import DurableStream

    with DurableStream("http://127.0.0.1:1/x") as handle:
        with pytest.raises(ValueError, match="two collections"):
            StreamDB(handle, USERS, Collection("user"))
        with pytest.raises(KeyError):
            StreamDB(handle, USERS).rows(POSTS)


def test_values_are_json_that_any_client_reads() -> None:
    assert json.loads(json.dumps(POSTS.insert(Post(id="p", author="1"))))["value"]["author"] == "1"
