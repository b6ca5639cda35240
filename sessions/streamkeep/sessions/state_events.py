"""Events of the State Protocol: what changes a value, what marks a snapshot, and how either is written.

A change names a type and a key, and says what becomes of the value there (State Protocol 4.1). `upsert` is written and read
although its text knows three operations only; so do the packages that speak it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from streamkeep.sessions.errors import InvalidEvent

Operation = Literal["insert", "update", "upsert", "delete"]
ControlKind = Literal["snapshot-start", "snapshot-end", "reset"]

_OPERATIONS = frozenset(("insert", "update", "upsert", "delete"))
_CONTROLS = frozenset(("snapshot-start", "snapshot-end", "reset"))


@dataclass(frozen=True, slots=True)
class Change:
    """One value of one type is set or removed. `value` is None where none was given; `timestamp` is RFC 3339."""

    type: str
    key: str
    operation: Operation
    value: Any = None
    old_value: Any = None
    txid: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A snapshot begins or ends, or everything before is void."""

    kind: ControlKind
    offset: str | None = None


def parse_event(event: object) -> Change | Control:
    """What a message of a state stream says. Headers that are not known are passed over. Raises: InvalidEvent."""
    if not isinstance(event, dict):
        raise InvalidEvent("an event is a JSON object")
    headers = event.get("headers")
    if not isinstance(headers, dict):
        raise InvalidEvent("an event has `headers`")
    if "control" in headers:
        return _control(headers)
    operation = headers.get("operation")
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        raise InvalidEvent("`headers.operation` is insert, update, upsert or delete")
    if operation != "delete" and "value" not in event:
        raise InvalidEvent(f"{operation} needs a `value`")
    return Change(
        type=_name(event.get("type"), "type"),
        key=_name(event.get("key"), "key"),
        operation=cast("Operation", operation),
        value=event.get("value"),
        old_value=event.get("old_value"),
        txid=None if headers.get("txid") is None else _name(headers["txid"], "headers.txid"),
        timestamp=None if headers.get("timestamp") is None else _name(headers["timestamp"], "headers.timestamp"),
    )


def insert(
    type: str, key: str, value: Any, *, txid: str | None = None, timestamp: datetime | str | None = None
) -> dict[str, Any]:
    """An event that sets a value which is new. Raises: InvalidEvent: a name is empty, or the time has no zone."""
    return _written("insert", type, key, {"value": value}, txid, timestamp)


def update(
    type: str,
    key: str,
    value: Any,
    *,
    old_value: Any = None,
    txid: str | None = None,
    timestamp: datetime | str | None = None,
) -> dict[str, Any]:
    """An event that puts a whole value in the place of another. Raises what `insert` does."""
    return _written("update", type, key, {"value": value, **_old(old_value)}, txid, timestamp)


def upsert(
    type: str,
    key: str,
    value: Any,
    *,
    old_value: Any = None,
    txid: str | None = None,
    timestamp: datetime | str | None = None,
) -> dict[str, Any]:
    """An event that sets a value, whether there is one or not. Raises what `insert` does."""
    return _written("upsert", type, key, {"value": value, **_old(old_value)}, txid, timestamp)


def delete(
    type: str, key: str, *, old_value: Any = None, txid: str | None = None, timestamp: datetime | str | None = None
) -> dict[str, Any]:
    """An event that removes a value. Raises what `insert` does."""
    return _written("delete", type, key, _old(old_value), txid, timestamp)


def control(kind: ControlKind, *, offset: str | None = None) -> dict[str, Any]:
    """An event that marks a snapshot's beginning or end, or makes everything before it void. Raises: InvalidEvent."""
    event = {"headers": {"control": kind, **({} if offset is None else {"offset": offset})}}
    parse_event(event)
    return event


def _written(
    operation: Operation,
    type: str,
    key: str,
    values: Mapping[str, Any],
    txid: str | None,
    timestamp: datetime | str | None,
) -> dict[str, Any]:
    headers: dict[str, Any] = {"operation": operation}
    if txid is not None:
        headers["txid"] = txid
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise InvalidEvent("a timestamp needs a time zone")
        timestamp = timestamp.isoformat()
    if timestamp is not None:
        headers["timestamp"] = timestamp
    event = {"type": type, "key": key, **values, "headers": headers}
    parse_event(event)
    return event


def _old(old_value: Any) -> dict[str, Any]:
    return {} if old_value is None else {"old_value": old_value}


def _control(headers: Mapping[str, Any]) -> Control:
    kind, offset = headers["control"], headers.get("offset")
    if not isinstance(kind, str) or kind not in _CONTROLS:
        raise InvalidEvent("`headers.control` is snapshot-start, snapshot-end or reset")
    return Control(cast("ControlKind", kind), offset if isinstance(offset, str) else None)


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidEvent(f"`{what}` is a text that is not empty")
    return value
