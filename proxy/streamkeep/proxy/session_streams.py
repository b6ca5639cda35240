"""Streams of sessions: where each stands, and how events are appended to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.sessions.events import Event
from streamkeep.storage import Producer, SessionKey, StreamAppend, StreamConfig, StreamKey
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.rules.json_messages import encode_message

CONFIG = StreamConfig("application/json")


def stream_of(key: SessionKey) -> StreamKey:
    """The stream in which a session is written."""
    return StreamKey(key.tenant, f"sessions/{key.id}")


async def append_of(key: SessionKey, written: Iterable[Event], producer: Producer | None = None) -> StreamAppend:
    """Events at the end of a session's stream."""
    return StreamAppend(stream_of(key), await stored(written), CONFIG.content_type, producer=producer)


async def stored(written: Iterable[Event]) -> bytes:
    """Events as a stream keeps them; a whole session may be taken away at once."""
    messages, pauses = [], Pauses()
    for event in written:
        # Ids that others have written may hold halves of characters, which JSON can spell and UTF-8 cannot.
        messages.append(encode_message(_json(event).encode(errors="backslashreplace")))
        await pauses.take()
    return b"".join(messages)


def now() -> str:
    """The time, as events tell it."""
    return format_timestamp(datetime.now(UTC))


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
