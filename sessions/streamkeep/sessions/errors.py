"""The root of what streamkeep raises on purpose, and what is wrong with an event."""


class StreamkeepError(Exception):
    """The root of everything that the client raises on purpose."""


class InvalidEvent(StreamkeepError):
    """An event is not one of the State Protocol, or its value not what the schema of its type admits."""
