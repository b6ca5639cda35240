"""What can go wrong in the client.

StreamkeepError
├── ConnectionFailed       the proxy could not be reached, or not again, for as long as patience lasts
├── ProtocolError          what answered does not speak the proxy's protocol
├── ServerError            the proxy refused: `status`, `code`
│   ├── StreamNotFound     there is no such stream
│   ├── StreamGone         it was deleted, or what the offset asks for was
│   ├── SessionNotFound    there is no such session
│   ├── StreamExists       a stream with another configuration has this URL
│   ├── StreamClosed       nothing can be appended any more: `final_offset`
│   ├── InvalidOffset      the offset is none of this stream's
│   ├── SchemaViolation    a message is not as the stream's schema says: `index`, `path`, `reason`
│   ├── SequenceConflict   a later `seq` was appended before
│   ├── SequenceGap        an append of this producer is missing: `expected`, `received`
│   └── ProducerFenced     a newer producer has taken over: `current_epoch`
├── LeaseLost              a worker's lease went to somebody else; what it did last does not count
├── WebhookRefused         a webhook is not what its signature says
├── DeliveryFailed         a producer gave up: `undelivered` names what was not stored
├── InvalidEvent           an event of a state stream, or a value in it, is not as it must be
├── InvalidMessage         a message of a stream is not as the schema says that was asked for
├── BodyConsumed           the body was closed before it was read on
├── NothingToResume        `reason`: none, ended or expired
├── LocalStoreFailed       the local record of generations cannot be read or written
└── GenerationError        the generation ended badly: `code`, `is_retryable`; raised after all data before it
    ├── Truncated          upstream closed without its format's end mark
    ├── UpstreamFailed     upstream broke off, or reported an error in band
    ├── TimedOut           upstream took longer than it may
    ├── Stalled            upstream stayed silent for longer than it may
    ├── TooLarge           the response is larger than it may be
    ├── StorageUnavailable the proxy's database stayed away
    ├── OwnerLost          the process that recorded the generation died
    ├── Shutdown           the proxy was stopped
    └── GenerationCancelled somebody asked for it to stop

No message of these holds a header's value or the query of a URL.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from streamkeep.sessions.errors import InvalidEvent as InvalidEvent  # noqa: PLC0414
from streamkeep.sessions.errors import StreamkeepError as StreamkeepError  # noqa: PLC0414


class ConnectionFailed(StreamkeepError):
    """The proxy cannot be reached. What was sent may have arrived: the generation may run and can be resumed."""


class ProtocolError(StreamkeepError):
    """The answer is not one that a proxy gives: another service, a redirect, or bytes that do not join up."""


class ServerError(StreamkeepError):
    """The proxy, not upstream, refused. `code` is for machines; see the proxy's list of errors."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class StreamNotFound(ServerError):
    """There is no stream at this URL, or none that may be seen."""


class StreamGone(ServerError):
    """The stream was deleted, or the data that the offset asks for are no longer kept."""


class SessionNotFound(ServerError):
    """There is no session of this id, or none that may be seen."""


class StreamExists(ServerError):
    """Another stream has this URL, with another content type, expiry, state or origin."""


class InvalidOffset(ServerError):
    """The offset is malformed, or was never given out for this stream."""


class SchemaViolation(ServerError):
    """A message is not as the stream's schema says; nothing was stored. It is the one with this `index` in the request, from
    0; `path` is the JSON path in it, and `reason` what is wrong there."""

    def __init__(self, code: str, message: str, *, index: int, path: str, reason: str) -> None:
        super().__init__(422, code, message)
        self.index = index
        self.path = path
        self.reason = reason


class SequenceConflict(ServerError):
    """The `seq` of an append is not later than the last one's; nothing was stored."""


class StreamClosed(ServerError):
    """The stream is closed; nothing was stored. `final_offset` is its end, where the server says it."""

    def __init__(self, message: str, *, code: str, final_offset: str | None) -> None:
        super().__init__(409, code, message)
        self.final_offset = final_offset


class SequenceGap(ServerError):
    """A producer's earlier append has not arrived; nothing was stored."""

    def __init__(self, message: str, *, code: str, expected: int, received: int | None) -> None:
        super().__init__(409, code, message)
        self.expected = expected
        self.received = received


class ProducerFenced(ServerError):
    """A producer with the same id and a later epoch writes here now; nothing was stored."""

    def __init__(self, message: str, *, code: str, current_epoch: int) -> None:
        super().__init__(403, code, message)
        self.current_epoch = current_epoch


class DeliveryFailed(StreamkeepError):
    """A producer could not store everything, and has stopped; `__cause__` says why.

    `undelivered` are the payloads that are not known to be stored, in the order in which they were appended. Of those up
    to `unknown` at its front the outcome is unknown, since a request with them was not answered; the rest was not stored.
    """

    def __init__(self, undelivered: tuple[bytes, ...], *, unknown: int) -> None:
        super().__init__(f"{len(undelivered)} messages were not stored, or are not known to be")
        self.undelivered = undelivered
        self.unknown = unknown


class LeaseLost(StreamkeepError):
    """The lease of a worker ended, so that another may have its work; what was not acknowledged does not count."""


class WebhookRefused(StreamkeepError):
    """A webhook has no signature, or one of somebody else, of something else, or of long ago: answer 401."""


class InvalidMessage(StreamkeepError):
    """What was read or is to be appended is not as the given schema says. A reader may go on behind it."""


class BodyConsumed(StreamkeepError):
    """The body was closed; what is left of it can be had by resuming."""


class ResumeReason(StrEnum):
    """Why there is nothing to resume."""

    NONE = "none"
    ENDED = "ended"
    EXPIRED = "expired"


class NothingToResume(StreamkeepError):
    """No generation waits to be resumed: there was none, its end was delivered, or it is too old."""

    _MESSAGES: ClassVar = {
        ResumeReason.NONE: "no generation is known for this session",
        ResumeReason.ENDED: "the session's last generation was delivered to its end",
        ResumeReason.EXPIRED: "the session's last generation is older than it may be",
    }

    def __init__(self, reason: ResumeReason) -> None:
        super().__init__(f"nothing to resume: {self._MESSAGES[reason]}")
        self.reason = reason


class LocalStoreFailed(StreamkeepError):
    """The local store cannot keep generations, so they could not be resumed; another store can be given."""


class GenerationError(StreamkeepError):
    """A generation ended in another way than `done`. All data before the end were delivered first.

    `is_retryable` is true when the fault was the proxy's own, so that a new request has a fair chance.
    """

    def __init__(self, code: str, message: str, *, is_retryable: bool, session_id: str, request_id: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.is_retryable = is_retryable
        self.session_id = session_id
        self.request_id = request_id


class Truncated(GenerationError):
    """Upstream closed the connection without its format's end mark."""


class UpstreamFailed(GenerationError):
    """Upstream broke off, or reported an error inside its stream."""


class TimedOut(GenerationError):
    """Upstream took longer than it may."""


class Stalled(GenerationError):
    """Upstream stayed silent for longer than it may."""


class TooLarge(GenerationError):
    """The response is larger than it may be."""


class StorageUnavailable(GenerationError):
    """The proxy's database stayed away for too long."""


class OwnerLost(GenerationError):
    """The process that recorded the generation died."""


class Shutdown(GenerationError):
    """The proxy was stopped before upstream finished."""


class GenerationCancelled(GenerationError):
    """Somebody asked for the generation to stop."""


_BY_CODE: dict[str, type[GenerationError]] = {
    "truncated": Truncated,
    "upstream_failed": UpstreamFailed,
    "timed_out": TimedOut,
    "stalled": Stalled,
    "too_large": TooLarge,
    "storage_unavailable": StorageUnavailable,
    "owner_lost": OwnerLost,
    "shutdown": Shutdown,
    "cancelled": GenerationCancelled,
}


_OUR_FAULTS = frozenset({"owner_lost", "shutdown", "storage_unavailable"})


def generation_error(
    code: str, message: str, *, session_id: str, request_id: str, is_retryable: bool | None = None
) -> GenerationError:
    """The error for an end's code; a code that is not known here is a plain `GenerationError`.

    Where nobody said whether it is retryable, the code does.
    """
    error = _BY_CODE.get(code, GenerationError)
    if is_retryable is None:
        is_retryable = code in _OUR_FAULTS
    return error(code, message, is_retryable=is_retryable, session_id=session_id, request_id=request_id)
