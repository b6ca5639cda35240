"""Where a fork branches off (protocol 4.2), and whether a creation asks for the stream that is there already (5.1).

A repeated creation is compared as it was asked for, not as it was resolved: a fork "at the tail" is the same wish after
the source has grown, and a fork that inherited its expiry is asked for again without one. What was resolved may be named
too.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from streamkeep.storage._errors import ContentTypeMismatch, InvalidFork, SchemaMismatch
from streamkeep.storage._types import Expiry, ForkPoint, StreamConfig
from streamkeep.storage.rules import content_types
from streamkeep.storage.rules.json_messages import SEPARATOR
from streamkeep.storage.rules.schemas import schema_id

_WINDOW_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Standing:
    """A stream as a repeated creation meets it: what its creation asked for, and what came of that."""

    asked: StreamConfig
    content_type: str
    expiry: Expiry
    is_closed: bool
    fork_position: int | None = None
    schema_id: bytes | None = None


def is_same_configuration(standing: Standing, again: StreamConfig) -> bool:
    """Whether a creation asks for this stream."""
    return (
        again.is_closed == standing.is_closed
        and _is_same_point(standing, again.fork)
        and _is_same_content_type(standing, again)
        and _is_same_expiry(standing, again)
        and _is_same_schema(standing, again)
    )


def _is_same_point(standing: Standing, again: ForkPoint | None) -> bool:
    asked = standing.asked.fork
    if asked is None or again is None:
        return asked is again
    if asked.source != again.source:
        return False
    if again.position == standing.fork_position and not again.sub_offset:
        return True
    return (asked.position, asked.sub_offset or 0) == (again.position, again.sub_offset or 0)


def _is_same_content_type(standing: Standing, again: StreamConfig) -> bool:
    if again.content_type is None and again.fork is not None:
        return True  # Inherited: no other was possible.
    return content_types.is_same(standing.content_type, again.content_type or content_types.DEFAULT)


def _is_same_expiry(standing: Standing, again: StreamConfig) -> bool:
    if again.expiry is None and again.fork is not None:
        return standing.asked.expiry is None
    return standing.expiry == (again.expiry or Expiry())


def _is_same_schema(standing: Standing, again: StreamConfig) -> bool:
    if again.schema is None:
        return again.fork is not None or standing.schema_id is None
    return standing.schema_id == schema_id(again.schema)


def inherited_schema(config: StreamConfig, source_schema: str | None) -> str | None:
    """The schema of a fork.

    Raises:
        SchemaMismatch: it asks for another than the source has.
    """
    if config.schema is not None and config.schema != source_schema:
        raise SchemaMismatch("a fork has the schema of its source")
    return source_schema


def inherited_content_type(config: StreamConfig, source_content_type: str) -> str:
    """The content type of a fork.

    Raises:
        ContentTypeMismatch: it asks for another than the source has.
    """
    if config.content_type is None:
        return source_content_type
    if not content_types.is_same(config.content_type, source_content_type):
        raise ContentTypeMismatch(source_content_type, config.content_type)
    return config.content_type


def resolve(point: ForkPoint, *, tail: int, is_message_stream: bool) -> Generator[tuple[int, int], bytes, int]:
    """Find the position of a fork point in a source with that tail.

    Yields the ranges of the source that must be looked at, as a position and a size, and takes their bytes, of which
    there may be fewer; returns the position. Nothing needs to be looked at but messages.

    Raises:
        InvalidFork: beyond the tail, or inside a message.
    """
    position = tail if point.position is None else point.position
    left = point.sub_offset or 0
    if not 0 <= position <= tail or left < 0:
        raise InvalidFork(f"{position} is not within 0 and {tail}")
    if not is_message_stream:
        if position + left > tail:
            raise InvalidFork(f"{left} bytes after {position} are beyond {tail}")
        return position + left
    if 0 < position < tail and (yield position - 1, 1) != SEPARATOR:
        raise InvalidFork(f"{position} is inside a message")
    while left:
        if position >= tail:
            raise InvalidFork(f"there are {left} messages too few before {tail}")
        window = yield position, min(_WINDOW_BYTES, tail - position)
        size, found = _skip(window, left)
        position += size
        left -= found
    return position


def _skip(window: bytes, count: int) -> tuple[int, int]:
    """How many bytes hold the next `count` messages, and how many messages they hold; a part at the end is passed too."""
    end = 0
    for found in range(count):
        at = window.find(SEPARATOR, end)
        if at < 0:
            return len(window), found
        end = at + 1
    return end, count
