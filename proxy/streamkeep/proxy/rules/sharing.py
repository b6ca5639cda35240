"""What a request for a shared URL may say."""

from __future__ import annotations

import json
from dataclasses import dataclass

from streamkeep.proxy.rules import stream_paths, wire
from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.signing import MAX_LIFETIME_SECONDS, Signed
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import GenerationKey, StreamKey

MAX_BODY_BYTES = 16 * 1024

_FIELDS = frozenset({"sessionId", "requestId", "path", "rights", "seconds"})
_OF_GENERATIONS = frozenset({Right.READ, Right.CANCEL})
_OF_STREAMS = frozenset({Right.READ, Right.APPEND})


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """What shall be shared, with which rights, for how long. `seconds` is None where the request leaves it to us."""

    subject: Signed
    rights: tuple[Right, ...]
    seconds: float | None

    @classmethod
    def parse(cls, body: bytes, tenant: str) -> ShareRequest:
        """Read `{"sessionId", "requestId"}` or `{"path"}`, with `rights` and `seconds`. Raises: BadRequest."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise _bad("the body must be JSON") from None
        if not isinstance(value, dict) or not value.keys() <= _FIELDS:
            raise _bad(f"the body must be an object of {', '.join(sorted(_FIELDS))}")
        subject = _subject(value, tenant)
        allowed = _OF_GENERATIONS if isinstance(subject, GenerationKey) else _OF_STREAMS
        return cls(subject, _rights(value.get("rights", [Right.READ]), allowed), _seconds(value.get("seconds")))


def _subject(value: dict[str, object], tenant: str) -> Signed:
    session_id, request_id, path = (value.get(name) for name in ("sessionId", "requestId", "path"))
    if isinstance(path, str) and session_id is None and request_id is None:
        parsed = _parsed(path)
        if stream_paths.first_segment(parsed) in (stream_paths.GENERATIONS, stream_paths.OPERATIONS):
            raise _bad("a generation's streams are shared by sessionId and requestId")
        return StreamKey(tenant, parsed)
    if path is None and isinstance(session_id, str) and isinstance(request_id, str):
        return GenerationKey(tenant, wire.check_session_id(session_id), wire.check_request_id(request_id))
    raise _bad("give sessionId and requestId, or a path")


def _parsed(path: str) -> str:
    try:
        return stream_paths.parse_path(stream_paths.url_path(path).removeprefix(stream_paths.ROOT).encode())
    except UnicodeEncodeError:
        raise _bad("the path cannot be written in UTF-8") from None


def _rights(value: object, allowed: frozenset[Right]) -> tuple[Right, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one in allowed for one in value):
        raise _bad(f"rights is a list of {', '.join(sorted(allowed))}")
    return tuple(sorted({Right(one) for one in value}))


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_LIFETIME_SECONDS:
        raise _bad(f"seconds is a number above 0, {MAX_LIFETIME_SECONDS} at most")
    return float(value)


def _bad(message: str) -> BadRequest:
    return BadRequest("invalid_share", message)
