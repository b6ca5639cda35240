"""What one event says, apart from what it changes. No session is needed for that, so large events may be read in a thread."""

from __future__ import annotations

from dataclasses import dataclass

from streamkeep.sessions.chunks import Chunk, parse_chunk
from streamkeep.sessions.errors import InvalidEvent
from streamkeep.sessions.messages import WholeMessage
from streamkeep.sessions.state_events import Change, Control, parse_event


@dataclass(frozen=True, slots=True)
class Reading:
    """An event: what kind of change it is, the chunk in it, and the message that this writes whole, each where there is one."""

    event: Change | Control | None = None
    chunk: Chunk | None = None
    whole: WholeMessage | None = None


def read_event(event: object) -> Reading:
    """An event as it was read from the stream. What is malformed says nothing."""
    try:
        found = parse_event(event)
    except InvalidEvent:
        return Reading()
    chunk = parse_chunk(found) if isinstance(found, Change) and found.type == "chunk" else None
    if chunk is None or chunk.type != "user-message":
        return Reading(found, chunk)
    message = chunk.fields.get("message")
    return Reading(found, chunk, WholeMessage.parse(message) if isinstance(message, dict) else None)
