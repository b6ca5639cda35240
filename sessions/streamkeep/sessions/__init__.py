"""What the events of a durable session mean, on both sides of the wire: pure, no I/O and no clock."""

from streamkeep.sessions.errors import InvalidEvent, StreamkeepError
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import Message, SessionChanges, as_json

__all__ = ["InvalidEvent", "Message", "SessionChanges", "SessionFold", "StreamkeepError", "as_json"]
