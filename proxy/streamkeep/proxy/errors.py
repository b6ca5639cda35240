"""One table: what went wrong → status, code, message, headers. Routes raise, and nothing else decides a status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.headers import HeadersTooLarge, InvalidHeader
from streamkeep.proxy.rules.session_requests import ForeignActor
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import (
    ContentTypeMismatch,
    FingerprintMismatch,
    GenerationNotFound,
    Gone,
    GoneReason,
    InvalidEpochStart,
    InvalidFork,
    InvalidOffset,
    ItemRefused,
    KeyUnavailable,
    ProducerFenced,
    RateLimited,
    SchemaMismatch,
    SequenceConflict,
    SequenceGap,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
    StreamClosed,
    StreamExists,
    StreamGone,
    StreamNotFound,
    TooManyGenerations,
)
from streamkeep.storage.rules.offsets import format_offset

PLACE_RETRY_SECONDS = 5
"""When to ask again for a place that comes free nobody knows when."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer of ours: the status, `{"error": code, "message": …}` with `extra` fields, and headers."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        return {"error": self.code, "message": self.message, **self.extra}


class ApiError(Exception):
    """A request ends with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem(
    status: int, code: str, message: str, *, retry_after: int | None = None, extra: Mapping[str, object] | None = None
) -> ApiError:
    """An `ApiError` to raise; `retry_after` is seconds."""
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return ApiError(Problem(status, code, message, headers, extra or {}))


def not_found() -> ApiError:
    return problem(404, "not_found", "there is no such generation")


_GONE = {
    GoneReason.RETENTION: "the generation ended longer ago than its data are kept",
    GoneReason.DELETED: "the generation's data were deleted",
}


def gone(found: Gone) -> ApiError:
    """The answer for a generation without data. Its ids stay taken: upstream is not called again under them."""
    extra = {"reason": found.reason.value, "goneAt": format_timestamp(found.at)}
    return problem(410, "gone", _GONE[found.reason], extra=extra)


def problem_of(exc: BaseException) -> Problem | None:
    """The answer that an exception stands for; None for what nobody foresaw."""
    match exc:
        case ApiError():
            return exc.problem
        case BadRequest():
            return Problem(400, exc.code, str(exc))
        case InvalidHeader():
            return Problem(400, "invalid_header", str(exc))
        case HeadersTooLarge():
            return Problem(431, "headers_too_large", str(exc))
        case InvalidOffset():
            return Problem(400, "invalid_offset", str(exc))
        case FingerprintMismatch():
            return Problem(
                409, "request_conflict", "these ids were used before for a request with another method, URL or body"
            )
        case TooManyGenerations():
            message = f"{exc}; try again when one of them has ended"
            return Problem(429, "too_many_generations", message, (("Retry-After", str(PLACE_RETRY_SECONDS)),))
        case RateLimited():
            return Problem(429, "rate_limited", str(exc), (("Retry-After", str(math.ceil(exc.retry_after_seconds))),))
        case GenerationNotFound():
            return not_found().problem
        case SessionNotFound():
            return Problem(404, "not_found", "there is no such session")
        case ForeignActor():
            return Problem(403, "foreign_actor", "the token is another one's; whoever has it writes in its own name")
        case KeyUnavailable():
            message = "the data are encrypted with a key that this server does not have"
            return Problem(410, "gone", message, extra={"reason": "key_destroyed"})
        case StoreUnavailable():
            return Problem(
                503, "storage_unavailable", "the database does not answer; try again", (("Retry-After", "1"),)
            )
        case StoreError():
            return _stream_problem(exc)
        case _:
            return None


def _stream_problem(exc: StoreError) -> Problem | None:
    """The answers of the open protocol (5.1, 5.2)."""
    match exc:
        case StreamNotFound():
            return Problem(404, "not_found", "there is no such stream")
        case StreamGone():
            return Problem(410, "gone", "the stream was deleted; only its forks still read its data")
        case StreamExists():
            return Problem(409, "stream_exists", str(exc) or "the path is taken by a stream of another configuration")
        case StreamClosed():
            headers = ((wire.CLOSED, "true"), (wire.NEXT_OFFSET, format_offset(exc.final_position)))
            return Problem(409, "stream_closed", "the stream is closed; nothing can be appended", headers)
        case ContentTypeMismatch():
            message = (
                f"the stream's content type is {exc.expected!r}, this request's is {exc.received!r}; "
                f"send Content-Type: {exc.expected}"
            )
            return Problem(409, "content_type_mismatch", message)
        case SchemaMismatch():
            return Problem(409, "schema_mismatch", str(exc))
        case SequenceConflict():
            message = "Stream-Seq must be greater, byte by byte, than that of the stream's last append with one"
            return Problem(409, "sequence_conflict", message)
        case ProducerFenced():
            message = "a newer epoch of this producer writes here; start again with the next epoch and sequence 0"
            return Problem(403, "producer_fenced", message, ((wire.PRODUCER_EPOCH, str(exc.current_epoch)),))
        case SequenceGap():
            headers = (
                (wire.PRODUCER_EXPECTED_SEQ, str(exc.expected)),
                (wire.PRODUCER_RECEIVED_SEQ, str(exc.received)),
            )
            return Problem(409, "sequence_gap", "an earlier append of this producer is missing", headers)
        case InvalidEpochStart():
            return Problem(400, "invalid_epoch_start", "a new epoch begins with Producer-Seq: 0")
        case InvalidFork():
            return Problem(400, "invalid_fork", "the fork point is not in the source's data")
        case ItemRefused():
            return Problem(409, "read_only", "this stream is written by the proxy alone")
        case _:
            return None
