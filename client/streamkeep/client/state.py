"""State on a stream: values by type and key, changed by events of the State Protocol, and the same for all who read them.

`Collection` says what the values of a type are, and makes their events. `StreamDB` follows a stream and keeps collections
up to date, with questions, subscriptions, and changes that show before they are stored. `MaterializedState` is the same
without types and without I/O. `mirror` keeps an SQLite table equal to a stream, `amirror` does it for asyncio.
"""

from streamkeep.client._database import AsyncStreamDB, StreamDB
from streamkeep.client._mirror import amirror, mirror
from streamkeep.client._rules.collections import Collection, Query, RowChange, Rows
from streamkeep.client._rules.materialized import MaterializedState
from streamkeep.sessions.state_events import Change, Control, control, delete, insert, parse_event, update, upsert

__all__ = [
    "AsyncStreamDB",
    "Change",
    "Collection",
    "Control",
    "MaterializedState",
    "Query",
    "RowChange",
    "Rows",
    "StreamDB",
    "amirror",
    "control",
    "delete",
    "insert",
    "mirror",
    "parse_event",
    "update",
    "upsert",
]
