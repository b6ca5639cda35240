"""The shape log: a generation's two streams as rows of two tables, as `ShapeStream` of the npm package `@electric-sql/client` reads them.

A row is a piece of a stream, and its id the position behind it; an offset is such an id and `_0`. So ids grow, and every
position is a legal place to begin. A data row is whole characters of text, however the log is cut; the control row names the
last data row that comes before it. A handle stands for one recording: with another's the client has to begin anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from streamkeep.proxy.rules.sse import split_text
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import InvalidOffset
from streamkeep.storage.rules.json_messages import SEPARATOR
from streamkeep.storage.rules.offsets import START, parse_offset

HANDLE = "electric-handle"
OFFSET = "electric-offset"
SCHEMA = "electric-schema"
CURSOR = "electric-cursor"
UP_TO_DATE = "electric-up-to-date"

MUST_REFETCH = b'[{"headers":{"control":"must-refetch"}}]'

_OFFSET = re.compile(r"([0-9]{1,16})_0")
_ROW_ID_DIGITS = 20

Message = dict[str, object]


class Table(StrEnum):
    """Which stream the rows are of."""

    DATA = "data_chunks"
    CONTROL = "control_messages"

    @property
    def schema(self) -> str:
        """The types of the columns, as the client wants them."""
        return _SCHEMAS[self]


_FIRST_COLUMNS = {"id": {"type": "int8", "not_null": True}, "session": {"type": "uuid"}, "request": {"type": "uuid"}}
_LAST_COLUMNS = {"created_at": {"type": "timestamp"}}
_COLUMNS = {
    Table.DATA: {"data": {"type": "text"}},
    Table.CONTROL: {"event": {"type": "text"}, "data_row_id": {"type": "text"}, "payload": {"type": "jsonb"}},
}
_SCHEMAS = {
    table: json.dumps({**_FIRST_COLUMNS, **columns, **_LAST_COLUMNS}, separators=(",", ":"))
    for table, columns in _COLUMNS.items()
}


@dataclass(frozen=True, slots=True)
class ShapeQuery:
    """The parameters of a read. `offset` is still a token; `handle` is None where none was given."""

    offset: str
    handle: str | None
    is_live: bool
    is_sse: bool
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Shape:
    """The rows of one stream of the generation that the two ids name."""

    table: Table
    session_id: str
    request_id: str

    def rows(self, start: int, data: bytes, *, is_closed: bool) -> tuple[list[Message], int]:
        """What stands from position `start` on, as rows, and the position behind the last; what is behind that is to be read
        again, together with what follows. `is_closed`: nothing follows."""
        if self.table is Table.CONTROL:
            return [self._row(id, _control_values(event)) for id, event in _events(start, data)], start + len(data)
        text, rest = split_text(data)
        if is_closed:
            text, rest = text + rest.decode("utf-8", "replace"), b""
        end = start + len(data) - len(rest)
        return ([self._row(end, {"data": text})] if text else []), end

    def _row(self, id: int, values: Mapping[str, str | None]) -> Message:
        """Every value is text, whatever the column's type."""
        ids = {"id": str(id), "session": self.session_id, "request": self.request_id}
        value = {**ids, **values, "created_at": None}
        return {"key": f"{self.table}/{id}", "value": value, "headers": {"operation": "insert"}}


def is_shape_read(parameters: Mapping[str, str]) -> bool:
    """Whether a read is of the shape log; no read of ours has these parameters."""
    return "log" in parameters or "handle" in parameters


def shape_query(parameters: Mapping[str, str]) -> ShapeQuery:
    """What a read asks for. Raises: BadRequest."""
    if parameters.get("as") == "json":
        raise BadRequest("invalid_parameter", "as=json does not go with the shape log")
    if any(name.startswith("subset__") for name in parameters):
        raise BadRequest("invalid_parameter", "the shape log has no subsets here")
    is_sse = "true" in (parameters.get("live_sse"), parameters.get("experimental_live_sse"))
    return ShapeQuery(
        offset=parameters.get("offset", START),
        handle=parameters.get("handle"),
        is_live=parameters.get("live") == "true",
        is_sse=is_sse,
        cursor=parameters.get("cursor"),
    )


def position_of(query: ShapeQuery) -> int:
    """The position at which a read begins. Raises: InvalidOffset."""
    if query.offset == START:
        return 0
    found = _OFFSET.fullmatch(query.offset)
    if found is None:
        raise InvalidOffset(f"not an offset of a shape: {query.offset[:64]!r}")
    return int(found[1])


def format_position(position: int) -> str:
    return f"{position}_0"


def up_to_date(position: int) -> Message:
    """The message that ends what a read found: the client's offset is then that of this position."""
    return {"headers": {"control": "up-to-date", "global_last_seen_lsn": str(position)}}


def to_array(messages: Sequence[Message]) -> bytes:
    """The messages as one JSON array."""
    return _to_json(messages)


def to_events(messages: Sequence[Message]) -> bytes:
    """The messages as server-sent events."""
    return b"".join(b"data: %b\n\n" % _to_json(message) for message in messages)


def _to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _events(start: int, stored: bytes) -> list[tuple[int, bytes]]:
    """Stored messages, each with the position behind it."""
    events: list[tuple[int, bytes]] = []
    for event in stored.split(SEPARATOR)[:-1]:
        start += len(event) + len(SEPARATOR)
        events.append((start, event))
    return events


def _control_values(terminal_event: bytes) -> dict[str, str | None]:
    """A generation's end in the two words that this client knows; any end but `done` is an error."""
    ending = json.loads(terminal_event)
    is_done = ending["event"] == "done"
    payload = {"finishReason": "complete"} if is_done else {"message": ending["message"]}
    return {
        "event": "done" if is_done else "error",
        "data_row_id": f"{parse_offset(ending['offset']) or 0:0{_ROW_ID_DIGITS}d}",
        "payload": json.dumps(payload),
    }
