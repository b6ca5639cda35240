"""Typed collections over a state stream: what was committed, what is shown before it is, and questions about it.

A batch is committed when it reaches the tail, so nobody sees a state that never was. Changes that a client makes itself are
laid over what is committed, under the id of a transaction; that id in a committed event takes the layer away in the same
step, so that nothing flickers. Values whose collection is not known are passed over; one that is not as its schema wants
it is left out, and told of, and blocks no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar, cast

from streamkeep.client._errors import InvalidEvent
from streamkeep.client._rules.schemas import Codec, codec_of
from streamkeep.sessions import state_events
from streamkeep.sessions.state_events import Change, Control, parse_event

T = TypeVar("T")
U = TypeVar("U")

_MAX_TXIDS = 10_000


class Collection(Generic[T]):
    """Values of one type in a state stream, and the makers of events for them.

    `schema` is a dataclass, a Pydantic model, a JSON Schema as a mapping (values are dictionaries then), or None for any
    JSON object. `key` names the field that is a value's key; in a dictionary it is set from the event's key. Events carry
    `type`.

    Raises:
        TypeError, ImportError: the schema is none, or its package is not installed.
    """

    def __init__(self, type: str, schema: type[T] | Mapping[str, Any] | None = None, *, key: str = "id") -> None:
        if not type:
            raise ValueError("a type is not empty")
        self.type: str = type
        self.key: str = key
        self._codec: Codec[T] = codec_of(schema)

    def __repr__(self) -> str:
        return f"<Collection of {self.type!r}>"

    def key_of(self, value: T) -> str:
        """The key of a value. Raises: InvalidEvent: it has none."""
        found = field_of(value, self.key)
        if not isinstance(found, str) or not found:
            raise InvalidEvent(f"the field {self.key!r} is a text that is not empty, or the key is given")
        return found

    def insert(self, value: T, *, key: str | None = None, txid: str | None = None) -> dict[str, Any]:
        """An event for a new value. Raises: InvalidEvent: the value is not what the schema admits, or has no key."""
        return state_events.insert(self.type, key or self.key_of(value), self._codec.encode(value), txid=txid)

    def update(self, value: T, *, key: str | None = None, txid: str | None = None) -> dict[str, Any]:
        """An event that puts a whole value in the place of another. Raises what `insert` does."""
        return state_events.update(self.type, key or self.key_of(value), self._codec.encode(value), txid=txid)

    def upsert(self, value: T, *, key: str | None = None, txid: str | None = None) -> dict[str, Any]:
        """An event that sets a value, new or not. Raises what `insert` does."""
        return state_events.upsert(self.type, key or self.key_of(value), self._codec.encode(value), txid=txid)

    def delete(self, key: str, *, txid: str | None = None) -> dict[str, Any]:
        """An event that removes a value. Raises: InvalidEvent: the key is empty."""
        return state_events.delete(self.type, key, txid=txid)

    def value_of(self, change: Change) -> T:
        """The value in a change. Raises: InvalidEvent."""
        value = change.value
        if isinstance(value, dict):
            value = {**value, self.key: change.key}
        return self._codec.decode(value)


@dataclass(frozen=True, slots=True)
class RowChange(Generic[T]):
    """What became of one value, as it is shown. `value` is None where it was removed, `old_value` where it is new."""

    kind: Literal["insert", "update", "delete"]
    key: str
    value: T | None
    old_value: T | None


class Rows(Generic[T]):
    """The values of a collection as they are shown now."""

    def __init__(self, collection: Collection[T]) -> None:
        self.collection: Collection[T] = collection
        self.committed: dict[str, T] = {}
        self.shown: dict[str, T] = {}

    def __repr__(self) -> str:
        return f"<Rows: {len(self.shown)} of {self.collection.type!r}>"

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self.shown.values()))

    def __contains__(self, key: str) -> bool:
        return key in self.shown

    def get(self, key: str) -> T | None:
        """One value, or None."""
        return self.shown.get(key)

    def keys(self) -> tuple[str, ...]:
        """All keys, in the order in which they came."""
        return tuple(self.shown)

    def where(self, *tests: Callable[[T], object], **equal: object) -> Query[T]:
        """The values that pass all tests and whose fields are equal to these; see `Query`."""
        return Query(self).where(*tests, **equal)

    def order_by(self, by: str | Callable[[T], Any], *, descending: bool = False) -> Query[T]:
        """The values in order of a field, or of what a function makes of them; see `Query`."""
        return Query(self).order_by(by, descending=descending)

    def join(self, other: Iterable[U], *, on: tuple[str, str]) -> Query[tuple[T, U]]:
        """Each value with each of others, where a field of it equals a field of theirs; see `Query`."""
        return Query(self).join(other, on=on)


class Query(Generic[T]):
    """A question, asked each time that it is iterated. It never changes: each method gives another one."""

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[T]:
        return iter(self._source)

    def where(self, *tests: Callable[[T], object], **equal: object) -> Query[T]:
        """Only what passes all tests, and has these fields equal to these values."""
        return Query(_Filtered(self._source, tests, equal))

    def order_by(self, by: str | Callable[[T], Any], *, descending: bool = False) -> Query[T]:
        """In order of a field, or of what a function gives; what is equal stays in the order in which it came."""
        key = by if callable(by) else cast("Callable[[T], Any]", lambda value: field_of(value, by))
        return Query(_Made(lambda: sorted(self._source, key=key, reverse=descending)))

    def limit(self, count: int, *, skip: int = 0) -> Query[T]:
        """At most `count`, after the first `skip`. Raises: ValueError: one of them is negative."""
        if count < 0 or skip < 0:
            raise ValueError("count and skip are not negative")
        return Query(_Made(lambda: islice(self._source, skip, skip + count)))

    def join(self, other: Iterable[U], *, on: tuple[str, str]) -> Query[tuple[T, U]]:
        """Pairs of what is here and what is there, where the first field here equals the second there."""
        here, there = on

        def pairs() -> Iterator[tuple[T, U]]:
            found: dict[Any, list[U]] = {}
            for value in other:
                found.setdefault(field_of(value, there), []).append(value)
            return ((value, match) for value in self._source for match in found.get(field_of(value, here), ()))

        return Query(_Made(pairs))

    def first(self) -> T | None:
        """The first, or None."""
        return next(iter(self), None)

    def count(self) -> int:
        """How many there are."""
        return sum(1 for _ in self)


class _Made(Generic[T]):
    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())


class _Filtered(Generic[T]):
    def __init__(self, source: Iterable[T], tests: tuple[Callable[[T], object], ...], equal: dict[str, object]) -> None:
        self._source = source
        self._tests = tests
        self._equal = equal

    def __iter__(self) -> Iterator[T]:
        for value in self._source:
            is_equal = all(field_of(value, name) == wanted for name, wanted in self._equal.items())
            if is_equal and all(test(value) for test in self._tests):
                yield value


def field_of(value: object, name: str) -> Any:
    """A field of a value that is an object or a dictionary; None where it has none."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


class Database:
    """Collections, and what has come for them. Feed it batches; each step gives what changed, by type."""

    def __init__(self, collections: Iterable[Collection[Any]]) -> None:
        self.rows: dict[str, Rows[Any]] = {}
        for collection in collections:
            if collection.type in self.rows:
                raise ValueError(f"two collections have the type {collection.type!r}")
            self.rows[collection.type] = Rows(collection)
        self.is_loaded = False
        self.invalid: list[tuple[object, InvalidEvent]] = []
        self._waiting: list[object] = []
        self._layers: dict[str, list[Change]] = {}
        self._txids: dict[str, None] = {}

    def take(self, events: Iterable[object], *, is_up_to_date: bool) -> dict[str, list[RowChange[Any]]]:
        """Take a batch. Nothing changes before one reaches the tail."""
        self._waiting.extend(events)
        if not is_up_to_date:
            return {}
        self.invalid = []
        events, self._waiting = self._waiting, []
        touched: dict[tuple[str, str], None] = {}
        for event in events:
            try:
                self._commit(event, touched)
            except InvalidEvent as exc:
                self.invalid.append((event, exc))
        self.is_loaded = True
        return self._show(touched)

    def lay_over(self, txid: str, events: Iterable[object]) -> dict[str, list[RowChange[Any]]]:
        """Show changes that are not committed yet. Raises: InvalidEvent: nothing is shown."""
        changes = [change for change in map(parse_event, events) if isinstance(change, Change)]
        for change in changes:
            rows = self.rows.get(change.type)
            if rows is None:
                raise InvalidEvent(f"no collection has the type {change.type!r}")
            if change.operation != "delete":
                rows.collection.value_of(change)
        self._layers[txid] = changes
        return self._show(dict.fromkeys((change.type, change.key) for change in changes))

    def take_back(self, txid: str) -> dict[str, list[RowChange[Any]]]:
        """Show no more what was laid over."""
        return self._show(dict.fromkeys((change.type, change.key) for change in self._layers.pop(txid, ())))

    def has_committed(self, txid: str) -> bool:
        """Whether a transaction's id was committed; of those long ago it is not known."""
        return txid in self._txids

    def _commit(self, event: object, touched: dict[tuple[str, str], None]) -> None:
        found = parse_event(event)
        if isinstance(found, Control):
            if found.kind == "reset":
                for type, rows in self.rows.items():
                    touched.update(dict.fromkeys((type, key) for key in rows.committed))
                    rows.committed.clear()
            return
        if found.txid is not None:
            self._confirm(found.txid, touched)
        rows_of_type = self.rows.get(found.type)
        if rows_of_type is None:
            return
        if found.operation == "delete":
            rows_of_type.committed.pop(found.key, None)
        else:
            rows_of_type.committed[found.key] = rows_of_type.collection.value_of(found)
        touched[found.type, found.key] = None

    def _confirm(self, txid: str, touched: dict[tuple[str, str], None]) -> None:
        touched.update(dict.fromkeys((change.type, change.key) for change in self._layers.pop(txid, ())))
        self._txids[txid] = None
        if len(self._txids) > _MAX_TXIDS:
            del self._txids[next(iter(self._txids))]

    def _show(self, touched: Iterable[tuple[str, str]]) -> dict[str, list[RowChange[Any]]]:
        """Bring what is shown up to what is committed and laid over it, for these keys."""
        told: dict[str, list[RowChange[Any]]] = {}
        for type, key in touched:
            rows = self.rows[type]
            old, new = rows.shown.get(key), self._visible(rows, key)
            if new is None:
                rows.shown.pop(key, None)
            else:
                rows.shown[key] = new
            if old != new:
                kind: Literal["insert", "update", "delete"] = (
                    "insert" if old is None else "delete" if new is None else "update"
                )
                told.setdefault(type, []).append(RowChange(kind, key, new, old))
        return told

    def _visible(self, rows: Rows[Any], key: str) -> Any:
        value = rows.committed.get(key)
        for changes in self._layers.values():
            for change in changes:
                if (change.type, change.key) == (rows.collection.type, key):
                    value = None if change.operation == "delete" else rows.collection.value_of(change)
        return value
