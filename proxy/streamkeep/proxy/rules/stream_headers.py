"""What the headers of creations and appends say (protocol 4.1, 4.2, 5.1, 5.2): values out, or the 400 that is due."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from streamkeep.proxy.rules import stream_paths, wire
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import Expiry, ForkPoint, Producer, StreamKey
from streamkeep.storage.rules.offsets import parse_offset

DEFAULT_CONTENT_TYPE = "application/octet-stream"

CREATE_HEADERS = (
    *("Content-Type", "Content-Length", wire.CLOSED, wire.STREAM_TTL, wire.STREAM_EXPIRES_AT),
    *(wire.FORKED_FROM, wire.FORK_OFFSET, wire.FORK_SUB_OFFSET, wire.SCHEMA),
)
APPEND_HEADERS = (
    *("Content-Type", "Content-Length", wire.CLOSED, wire.STREAM_SEQ),
    *(wire.PRODUCER_ID, wire.PRODUCER_EPOCH, wire.PRODUCER_SEQ),
)

# A hundred years: an end that nobody will see, and whose date can still be computed.
MAX_TTL_SECONDS = 100 * 366 * 24 * 3600
_MAX_PRODUCER_NUMBER = 2**53 - 1
_MAX_NAME_CHARACTERS = 256
_MAX_CONTENT_TYPE_CHARACTERS = 256

_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_DIGITS = re.compile(r"[0-9]{1,19}")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:;[\t\x20-\x7e]*)?")
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}):([0-9]{2})(?:\.([0-9]+))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

Values = Mapping[str, str | None]


def is_true(value: str | None) -> bool:
    """Whether `Stream-Closed` is there: `true` in any letter case; every other value is as if absent (4.1)."""
    return value is not None and value.strip().lower() == "true"


@lru_cache(maxsize=256)
def content_type(value: str | None) -> str | None:
    """A media type with its parameters as it was written; None where the header is absent or empty. Raises: BadRequest."""
    if value is None or not value.strip():
        return None
    text = value.strip()
    if len(text) > _MAX_CONTENT_TYPE_CHARACTERS or not _MEDIA_TYPE.fullmatch(text):
        raise _bad("Content-Type", "must be a media type")
    return text


@lru_cache(maxsize=256)
def is_json(value: str | None) -> bool:
    """Whether a content type means JSON mode (9.1)."""
    return (value or "").partition(";")[0].strip().lower() == "application/json"


def expiry(values: Values) -> Expiry | None:
    """When the new stream is to end by itself; None where the request says nothing. Raises: BadRequest."""
    ttl, expires_at = values[wire.STREAM_TTL], values[wire.STREAM_EXPIRES_AT]
    if ttl is not None and expires_at is not None:
        raise _bad(wire.STREAM_TTL, f"cannot be given together with {wire.STREAM_EXPIRES_AT}")
    if ttl is not None:
        seconds = int(ttl) if _WHOLE_NUMBER.fullmatch(ttl) else -1
        if not 0 <= seconds <= MAX_TTL_SECONDS:
            raise _bad(wire.STREAM_TTL, f"must be a decimal number of seconds, 0 to {MAX_TTL_SECONDS}")
        return Expiry(ttl_seconds=seconds)
    if expires_at is not None:
        return Expiry(expires_at=_timestamp(expires_at))
    return None


def format_timestamp(instant: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds, or microseconds where they matter."""
    fraction = "milliseconds" if instant.microsecond % 1000 == 0 else "microseconds"
    return instant.astimezone(UTC).isoformat(timespec=fraction).replace("+00:00", "Z")


def fork_point(values: Values, tenant: str) -> ForkPoint | None:
    """Where the new stream branches off; None when it is no fork. Raises: BadRequest, InvalidOffset."""
    source, offset, sub_offset = values[wire.FORKED_FROM], values[wire.FORK_OFFSET], values[wire.FORK_SUB_OFFSET]
    if source is None:
        for name in (wire.FORK_OFFSET, wire.FORK_SUB_OFFSET):
            if values[name] is not None:
                raise _bad(name, f"goes with {wire.FORKED_FROM}")
        return None
    if sub_offset is not None and not _WHOLE_NUMBER.fullmatch(sub_offset):
        raise _bad(wire.FORK_SUB_OFFSET, "must be a decimal number, 0 or more")
    return ForkPoint(
        StreamKey(tenant, stream_paths.parse_source(source)),
        None if offset is None else parse_offset(offset),
        None if sub_offset is None else int(sub_offset),
    )


def producer(values: Values) -> Producer | None:
    """The idempotent producer of an append; None when it has none. Raises: BadRequest (5.2.1)."""
    name, epoch, sequence = values[wire.PRODUCER_ID], values[wire.PRODUCER_EPOCH], values[wire.PRODUCER_SEQ]
    if name is None and epoch is None and sequence is None:
        return None
    if name is None or epoch is None or sequence is None:
        raise _bad(wire.PRODUCER_ID, f"{wire.PRODUCER_EPOCH} and {wire.PRODUCER_SEQ} go together, all or none")
    if not name.strip() or len(name) > _MAX_NAME_CHARACTERS:
        raise _bad(wire.PRODUCER_ID, f"must have 1 to {_MAX_NAME_CHARACTERS} characters")
    return Producer(name, _producer_number(wire.PRODUCER_EPOCH, epoch), _producer_number(wire.PRODUCER_SEQ, sequence))


def writer_sequence(values: Values) -> str | None:
    """`Stream-Seq`: opaque, one character for each byte, so that text order is byte order. Raises: BadRequest."""
    value = values[wire.STREAM_SEQ]
    if value is not None and not 0 < len(value) <= _MAX_NAME_CHARACTERS:
        raise _bad(wire.STREAM_SEQ, f"must have 1 to {_MAX_NAME_CHARACTERS} bytes")
    return value


@dataclass(slots=True)
class AppendRequest:
    """The headers of an append."""

    content_type: str | None
    is_close: bool
    producer: Producer | None
    writer_sequence: str | None

    @classmethod
    def of(cls, values: Values) -> AppendRequest:
        """Raises: BadRequest. The content type is not looked at here: without a body it must not matter (5.2)."""
        return cls(values["Content-Type"], is_true(values[wire.CLOSED]), producer(values), writer_sequence(values))


def _producer_number(name: str, value: str) -> int:
    number = int(value) if _DIGITS.fullmatch(value) else -1
    if not 0 <= number <= _MAX_PRODUCER_NUMBER:
        raise _bad(name, f"must be a decimal number, 0 to {_MAX_PRODUCER_NUMBER}")
    return number


def _timestamp(value: str) -> datetime:
    found = _TIMESTAMP.fullmatch(value)
    if found is None:
        raise _bad(wire.STREAM_EXPIRES_AT, "must be an RFC 3339 timestamp with an offset")
    day, minute, second, fraction, zone = found.groups()
    # A leap second is the first instant after it.
    is_leap = second == "60"
    micro = (fraction or "0")[:6].ljust(6, "0")
    try:
        instant = datetime.fromisoformat(f"{day}T{minute}:{'59' if is_leap else second}.{micro}{zone.upper()}")
        return (instant + timedelta(seconds=is_leap)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _bad(wire.STREAM_EXPIRES_AT, "is not a date and time that exists") from None


def _bad(name: str, message: str) -> BadRequest:
    return BadRequest("invalid_header", f"{name} {message}")
