"""Values as lines of JSON, and back: how commands and snapshots stand in a journal on another server.

Numbers, texts, true, false and null are themselves; sequences are arrays and come back as tuples; everything else is an
object of one name: `{"Owner": [1, 1]}` is that dataclass with its fields in order, `{"bytes": "…"}` is base64. Fields that
were added since a line was written take their defaults.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum

from streamkeep.storage import _keys, _sessions, _subscriptions, _types
from streamkeep.storage._errors import StoreError
from streamkeep.storage.rules.generations import Code, State, Terminal, Usage

_DATACLASSES: dict[str, type] = {
    found.__name__: found
    for found in (
        *(_types.Append, _types.Ending, _types.Expiry, _types.ForkPoint, _types.Generation, _types.GenerationKey),
        *(_types.Erasure, _types.Gone, _types.StreamChange, _keys.ApiKey, _keys.SigningKey),
        *(_types.Lease, _types.Owner, _types.Producer, _types.Refusal, _types.Retention, _types.StreamAppend),
        *(_types.StreamConfig, _types.StreamKey, _types.Terms, _types.UpstreamHead),
        *(_sessions.DueSession, _sessions.SessionKey, _sessions.SessionRecord),
        *(_subscriptions.Link, _subscriptions.StreamNews, _subscriptions.Subscription, _subscriptions.Wake),
        *(_subscriptions.SubscriptionConfig, _subscriptions.SubscriptionKey, _subscriptions.WebhookKey),
        *(Terminal, Usage),
    )
}
_ENUMS: dict[str, type[Enum]] = {
    found.__name__: found for found in (State, Code, _types.GoneReason, _subscriptions.Delivery, _subscriptions.Phase)
}


def encode_record(*values: object) -> bytes:
    """One line, newline included.

    Raises:
        TypeError: a value of a type that has no form here.
    """
    return json.dumps([_to_json(value) for value in values], separators=(",", ":")).encode() + b"\n"


def decode_record(line: bytes) -> tuple[object, ...]:
    """The values of a line.

    Raises:
        StoreError: nothing that `encode_record` writes.
    """
    try:
        values = json.loads(line)
        if not isinstance(values, list):
            raise TypeError("a record is an array")
        return tuple(_from_json(value) for value in values)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise StoreError(f"no record of this version: {line[:100]!r}") from exc


def _to_json(value: object) -> object:
    name = type(value).__name__
    if name in _ENUMS and isinstance(value, Enum):
        return {name: value.value}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray):
        return {"bytes": b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if name in _DATACLASSES and is_dataclass(value):
        return {name: [_to_json(getattr(value, field.name)) for field in fields(value)]}
    if isinstance(value, list | tuple | AbstractSet):
        return [_to_json(each) for each in value]
    raise TypeError(f"a {name} cannot stand in a record")


def _from_json(value: object) -> object:
    if isinstance(value, list):
        return tuple(_from_json(each) for each in value)
    if not isinstance(value, Mapping):
        return value
    ((name, content),) = value.items()
    if name == "bytes":
        return b64decode(content, validate=True)
    if name == "time":
        return datetime.fromisoformat(content)
    if name in _ENUMS:
        return _ENUMS[name](content)
    return _DATACLASSES[name](*(_from_json(each) for each in content))
