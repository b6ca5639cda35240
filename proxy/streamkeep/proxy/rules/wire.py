"""Names on the wire, and what a request may say (design, Interfaces and Decided)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl

from streamkeep.storage.rules.offsets import parse_offset

# Request headers
PROXY_URL = "X-Proxy-Url"
PROXY_METHOD = "X-Proxy-Method"
SESSION_ID = "X-Session-ID"
REQUEST_ID = "X-Request-ID"
RESUME_ACTIVE_GENERATION = "X-Resume-Active-Generation"
REPLAY_FROM_START = "X-Replay-From-Start"
ACTIVE_GENERATION_TTL = "X-Active-Generation-TTL"
RETENTION = "Streamkeep-Retention"
LAST_EVENT_ID = "Last-Event-ID"
IDEMPOTENCY_KEY = "Idempotency-Key"
VIEW = "Streamkeep-View"
UPSTREAM_URL = "Upstream-URL"
UPSTREAM_METHOD = "Upstream-Method"
UPSTREAM_AUTHORIZATION = "Upstream-Authorization"
SIGNED_URL_TTL = "Stream-Signed-URL-TTL"
STREAM_TTL = "Stream-TTL"
STREAM_EXPIRES_AT = "Stream-Expires-At"
STREAM_SEQ = "Stream-Seq"
FORKED_FROM = "Stream-Forked-From"
FORK_OFFSET = "Stream-Fork-Offset"
FORK_SUB_OFFSET = "Stream-Fork-Sub-Offset"
PRODUCER_ID = "Producer-Id"
PRODUCER_EPOCH = "Producer-Epoch"
PRODUCER_SEQ = "Producer-Seq"
ON_DISCONNECT = "Streamkeep-On-Disconnect"
TIMEOUT = "Streamkeep-Timeout"
ACTOR_ID = "X-Actor-Id"
SCHEMA = "Streamkeep-Schema"

# Response headers; some of those above are answered as well
NEXT_OFFSET = "Stream-Next-Offset"
UP_TO_DATE = "Stream-Up-To-Date"
CLOSED = "Stream-Closed"
CURSOR = "Stream-Cursor"
SSE_DATA_ENCODING = "Stream-SSE-Data-Encoding"
PRODUCER_EXPECTED_SEQ = "Producer-Expected-Seq"
PRODUCER_RECEIVED_SEQ = "Producer-Received-Seq"
UPSTREAM_STATUS = "Upstream-Status"
UPSTREAM_CONTENT_TYPE = "Upstream-Content-Type"
UPSTREAM_CONTENT_ENCODING = "Upstream-Content-Encoding"
REPLAYED = "Streamkeep-Replayed"
STREAM_URL = "Stream-Url"
CONTROL_URL = "Control-Url"
# Read by an nginx in front of us, before `Cache-Control`, and not passed on by it.
ACCEL_EXPIRES = "X-Accel-Expires"
# Our request id on an answer where `X-Request-ID` is upstream's own.
RECORDED_AS = "Streamkeep-Request-ID"

UPSTREAM_METHODS = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE", "POST"})

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
_EXPIRES = re.compile(r"[0-9]{1,12}")
_CANCEL_AFTER = re.compile(r"cancel_after=([0-9]{1,6}(?:\.[0-9]{1,3})?)")
_RESERVED_REQUEST_IDS = frozenset({"active"})


class BadRequest(ValueError):
    """What a request says is not acceptable; `code` is for machines, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_id(value: str) -> bool:
    """Whether a text has the form of our ids."""
    return _ID.fullmatch(value) is not None


def check_session_id(value: str) -> str:
    """Raises: BadRequest."""
    if not _ID.fullmatch(value):
        raise BadRequest("invalid_id", "the session id must match [A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
    return value


def check_tenant(value: str) -> str:
    """Raises: BadRequest."""
    if not _ID.fullmatch(value):
        raise BadRequest("invalid_id", "a tenant's name must match [A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
    return value


def check_request_id(value: str) -> str:
    """Raises: BadRequest."""
    if not _ID.fullmatch(value):
        raise BadRequest("invalid_id", "the request id must match [A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
    if value in _RESERVED_REQUEST_IDS:
        raise BadRequest("invalid_id", f"{value!r} cannot be a request id")
    return value


def upstream_method(value: str | None) -> str:
    """The method to use upstream; POST when none is given. Raises: BadRequest."""
    method = "POST" if value is None else value.upper()
    if method not in UPSTREAM_METHODS:
        raise BadRequest(
            "invalid_upstream_method", f"{PROXY_METHOD} must be one of {', '.join(sorted(UPSTREAM_METHODS))}"
        )
    return method


def is_resume(value: str | None) -> bool:
    """Whether `X-Resume-Active-Generation` asks to resume: any value but `false`."""
    return value is not None and value.strip().lower() != "false"


def retention_seconds(value: str | None, *, at_most: float) -> int | None:
    """How long a request's data are to stay, in whole seconds from its end. Raises: BadRequest."""
    if value is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,9}", value.strip()) or int(value) > at_most:
        raise BadRequest("invalid_retention", f"{RETENTION} is a number of seconds from 1 to {int(at_most)}")
    return int(value)


def cancel_after_seconds(policy: str) -> float | None:
    """For how long a generation goes on once it has no reader any more; None: to its end. `continue`, `cancel` (at
    once), or `cancel_after=` with seconds. Raises: BadRequest."""
    text = policy.strip().lower()
    if text == "continue":
        return None
    if text == "cancel":
        return 0.0
    found = _CANCEL_AFTER.fullmatch(text)
    if found is None:
        raise BadRequest(
            "invalid_on_disconnect", "what to do without readers is one of continue, cancel, cancel_after=SECONDS"
        )
    return float(found[1])


def single_headers(headers: Iterable[tuple[bytes, bytes]], names: Iterable[str]) -> dict[str, str | None]:
    """The values of headers that may stand once; their names come in lower case. Raises: BadRequest when one is repeated."""
    wanted = _by_wire_name(tuple(names))
    found: dict[str, str | None] = dict.fromkeys(wanted.values())
    for raw_name, raw_value in headers:
        name = wanted.get(raw_name)
        if name is None:
            continue
        if found[name] is not None:
            raise BadRequest("repeated_header", f"{name} may be given once")
        found[name] = raw_value.decode("latin-1")
    return found


@lru_cache(maxsize=64)
def _by_wire_name(names: tuple[str, ...]) -> Mapping[bytes, str]:
    return {name.lower().encode(): name for name in names}


class Live(StrEnum):
    """How a live read waits (protocol 5.7, 5.8)."""

    LONG_POLL = "long-poll"
    SSE = "sse"


class View(StrEnum):
    """How a generation's data stream is shown: its events as JSON messages, or plain bytes whatever their type."""

    JSON = "json"
    BYTES = "bytes"


def view_parameter(parameters: Mapping[str, str]) -> View | None:
    """The view that a read asks for with `as`. Raises: BadRequest."""
    value = parameters.get("as")
    try:
        return None if value is None else View(value)
    except ValueError:
        raise BadRequest("invalid_parameter", "as must be json or bytes") from None


def view_header(headers: Iterable[tuple[bytes, bytes]]) -> View | None:
    """The view to which `Streamkeep-View` wants a URL. Raises: BadRequest."""
    value = single_headers(headers, (VIEW,))[VIEW]
    try:
        return None if value is None else View(value.strip().lower())
    except ValueError:
        raise BadRequest("invalid_header", f"{VIEW} must be json or bytes") from None


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """The parameters of a read. `offset` is still a token; None where none was given. `url_expires_at`: until when a signed
    URL may be read, in unix seconds; whoever lets the read pass has checked the signature."""

    offset: str | None = None
    live: Live | None = None
    cursor: str | None = None
    is_base64: bool = False
    url_expires_at: int | None = None


def single_parameters(query_string: bytes) -> dict[str, str]:
    """Query parameters by name. Raises: BadRequest when one is repeated or the text is not UTF-8."""
    if not query_string:
        return {}
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError as exc:
        raise BadRequest("invalid_parameter", "the query string cannot be read") from exc
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise BadRequest("invalid_parameter", f"the parameter {name[:64]!r} is repeated")
        parameters[name] = value
    return parameters


def read_query(parameters: Mapping[str, str], *, last_event_id: str | None) -> ReadQuery:
    """What a read asks for. `Last-Event-ID` wins over `offset`. Raises: BadRequest, InvalidOffset."""
    live_text = parameters.get("live")
    try:
        live = None if live_text is None else Live(live_text)
    except ValueError:
        raise BadRequest("invalid_parameter", "live must be long-poll or sse") from None
    encoding = parameters.get("encoding")
    if encoding not in (None, "base64"):
        raise BadRequest("invalid_parameter", "encoding must be base64")
    if encoding is not None and live is not Live.SSE:
        raise BadRequest("invalid_parameter", "encoding=base64 goes with live=sse")
    offset = last_event_id or parameters.get("offset")
    if offset is not None:
        parse_offset(offset)
    expires = parameters.get("expires")
    url_expires_at = int(expires) if expires is not None and _EXPIRES.fullmatch(expires) else None
    return ReadQuery(offset, live, parameters.get("cursor"), encoding is not None, url_expires_at)
