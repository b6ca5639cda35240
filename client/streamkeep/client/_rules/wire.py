"""Names on the wire, and what the proxy's answers say (design, Interfaces and Decided)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from streamkeep.client._errors import ProtocolError

# Request headers
KEY = "Streamkeep-Key"
PROXY_URL = "X-Proxy-Url"
PROXY_METHOD = "X-Proxy-Method"
SESSION_ID = "X-Session-ID"
REQUEST_ID = "X-Request-ID"
RESUME_ACTIVE_GENERATION = "X-Resume-Active-Generation"
REPLAY_FROM_START = "X-Replay-From-Start"
ACTIVE_GENERATION_TTL = "X-Active-Generation-TTL"
VIEW = "Streamkeep-View"
LAST_EVENT_ID = "Last-Event-ID"

# Response headers of the proxy
NEXT_OFFSET = "Stream-Next-Offset"
CLOSED = "Stream-Closed"
CURSOR = "Stream-Cursor"
SSE_DATA_ENCODING = "Stream-SSE-Data-Encoding"
UPSTREAM_STATUS = "Upstream-Status"
UPSTREAM_CONTENT_ENCODING = "Upstream-Content-Encoding"
REPLAYED = "Streamkeep-Replayed"

# Response headers that the client adds
OUR_REQUEST_ID = "Streamkeep-Request-ID"
START_OFFSET = "Streamkeep-Start-Offset"
NOTHING_TO_RESUME = "Streamkeep-Nothing-To-Resume"
UPSTREAM_REQUEST_ID = "Upstream-Request-ID"

MAX_POSITION = 10**16 - 1

Header = tuple[bytes, bytes]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
_RESERVED_REQUEST_IDS = frozenset({"active"})
_OFFSET = re.compile(r"0{16}_[0-9]{16}")
_USUAL_STATUS = re.compile(
    rb'\{"streamNextOffset":"0{16}_([0-9]{16})","streamCursor":"([0-9]+)"(?:,"upToDate":(?:true|false))?\}'
)
_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_SECONDS = re.compile(r"[0-9]{1,9}")

_STEERING = frozenset(
    name.lower().encode()
    for name in (
        *(SESSION_ID, REQUEST_ID, RESUME_ACTIVE_GENERATION, REPLAY_FROM_START, ACTIVE_GENERATION_TTL),
        *(PROXY_URL, PROXY_METHOD, VIEW),
    )
)
_OF_ONE_CONNECTION = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"host", b"accept-encoding"),
    }
)
_NOT_IN_ANSWERS = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"})

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?")


def position_of(offset: str | None) -> int:
    """The byte position that an offset of the proxy stands for. Raises: ProtocolError."""
    if offset is None or not _OFFSET.fullmatch(offset):
        raise ProtocolError(f"not an offset: {offset and offset[:64]!r}")
    return int(offset[17:])


def offset_of(position: int) -> str:
    """The offset for a byte position."""
    if not 0 <= position <= MAX_POSITION:
        raise ValueError(f"no offset for position {position}")
    return f"{0:016d}_{position:016d}"


def check_session_id(value: str) -> str:
    """Raises: ValueError."""
    if not _ID.fullmatch(value):
        raise ValueError("the session id must match [A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
    return value


def check_request_id(value: str) -> str:
    """Raises: ValueError."""
    if not _ID.fullmatch(value):
        raise ValueError("the request id must match [A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
    if value in _RESERVED_REQUEST_IDS:
        raise ValueError(f"{value!r} cannot be a request id")
    return value


def proxy_base(proxy_url: str) -> str:
    """The proxy's base URL out of one that may end in `/`, in `/api`, or in both.

    Raises:
        ValueError: it is not an absolute http or https URL, or holds more than a place.
    """
    parts = urlsplit(proxy_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the proxy's URL must be absolute, with http or https")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("the proxy's URL may hold neither a query, nor a fragment, nor credentials")
    path = parts.path.rstrip("/").removesuffix("/api").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def proxy_bases(proxy_urls: str | Sequence[str]) -> list[str]:
    """The same for one or several. Raises: ValueError: one is none, or there is none."""
    bases = [proxy_base(url) for url in ([proxy_urls] if isinstance(proxy_urls, str) else proxy_urls)]
    if not bases:
        raise ValueError("at least one proxy's URL is needed")
    return bases


def api_url(base: str, session_id: str, *more: str) -> str:
    """The URL of something in a session, as in `/api/{session}/{request}/cancel`."""
    return "/".join((base, "api", quote(session_id, safe=""), *(quote(part, safe="") for part in more)))


def read_url(url: str, **parameters: str | None) -> str:
    """A stream's URL with the parameters of one read; those that are None are left out."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in parameters]
    query += [(name, value) for name, value in parameters.items() if value is not None]
    return urlunsplit(parts._replace(query=urlencode(query), fragment=""))


def control_url_of(data_url: str) -> str:
    """The URL of the control stream beside a data stream: one signature serves both. Raises: ValueError."""
    parts = urlsplit(data_url)
    head, _, last = parts.path.rpartition("/")
    if parts.scheme not in ("http", "https") or last != "data":
        raise ValueError("not the URL of a generation's data stream")
    return urlunsplit(parts._replace(path=f"{head}/control"))


def is_header_name(name: str) -> bool:
    """Whether HTTP allows a header of this name (RFC 9110, 5.1)."""
    return _HEADER_NAME.fullmatch(name) is not None


def is_header_value(value: str) -> bool:
    """Whether a header can carry this, with every server on its way: ASCII without control characters."""
    return _HEADER_VALUE.fullmatch(value) is not None


def without_query(url: str) -> str:
    """A URL that may be shown: signatures stand in the query, and credentials before the host."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin_url(url: str) -> str:
    """The root of the server that a URL is on."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, to compare two URLs by."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@dataclass(frozen=True, slots=True)
class Steering:
    """What a call's headers ask of the client. `replays` and `ttl_seconds` are None where they say nothing."""

    session_id: str | None = None
    request_id: str | None = None
    resumes: bool = False
    replays: bool | None = None
    ttl_seconds: float | None = None


def steering(headers: Iterable[Header]) -> Steering:
    """Read the headers that steer the client.

    Raises:
        ValueError: an id or the TTL cannot be used.
    """
    found = {name.lower(): value.decode("latin-1").strip() for name, value in headers if name.lower() in _STEERING}

    def value(name: str) -> str | None:
        return found.get(name.lower().encode())

    session_id, request_id = value(SESSION_ID), value(REQUEST_ID)
    resume, replay, ttl = value(RESUME_ACTIVE_GENERATION), value(REPLAY_FROM_START), value(ACTIVE_GENERATION_TTL)
    if ttl is not None and not _MILLISECONDS.fullmatch(ttl):
        raise ValueError(f"{ACTIVE_GENERATION_TTL} must be a number of milliseconds, not {ttl[:32]!r}")
    return Steering(
        session_id=None if session_id is None else check_session_id(session_id),
        request_id=None if request_id is None else check_request_id(request_id),
        resumes=resume is not None and resume.lower() != "false",
        replays=None if replay is None else replay.lower() == "true",
        ttl_seconds=None if ttl is None else int(ttl) / 1000,
    )


def forwarded(headers: Iterable[Header], *, keeps_length: bool) -> list[Header]:
    """A call's headers without those that steer the client or speak of one connection.

    `Content-Length` stays only where the body is a stream, whose length nobody else knows.
    """
    dropped = _STEERING | _OF_ONE_CONNECTION if keeps_length else _STEERING | _OF_ONE_CONNECTION | {b"content-length"}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def without_nested_encodings(headers: Iterable[Header]) -> list[Header]:
    """An answer's headers, with a content encoding inside another one renamed: the body is then given as it is.

    Nobody asked for one encoding, and of each layer a decoder makes up to a thousand times as much.
    """
    nested = [name for name, value in headers if name.lower() == b"content-encoding" for _ in value.split(b",")]
    renamed = UPSTREAM_CONTENT_ENCODING.encode()
    return [(renamed if len(nested) > 1 and name in nested else name, value) for name, value in headers]


@dataclass(frozen=True, slots=True)
class Creation:
    """A generation as the proxy shows it. `status` is None until upstream has accepted; the URLs are secrets."""

    session_id: str
    request_id: str
    state: str
    stream_url: str
    control_url: str
    status: int | None = None
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    code: str | None = None
    created_at: str | None = None

    def __repr__(self) -> str:
        return f"<Creation {self.session_id}/{self.request_id} {self.state}>"

    @property
    def awaits_verdict(self) -> bool:
        return self.state == "creating"

    @property
    def content_encoding(self) -> str | None:
        return next((value for name, value in self.headers if name == "content-encoding"), None)

    def answer_headers(self) -> list[tuple[str, str]]:
        """Upstream's headers for the caller; the length is left out, since a body may end before it."""
        headers = [(name, value) for name, value in self.headers if name not in _NOT_IN_ANSWERS]
        if self.content_type is not None and all(name != "content-type" for name, _ in headers):
            headers.append(("content-type", self.content_type))
        return headers


def parse_creation(body: bytes) -> Creation:
    """Raises: ProtocolError."""
    return _creation(_json(body, "the generation"))


def parse_creations(body: bytes) -> list[Creation]:
    """Raises: ProtocolError."""
    found = _json(body, "the list of generations")
    if not isinstance(found, list):
        raise ProtocolError("the list of generations is no list")
    return [_creation(item) for item in found]


def _creation(found: object) -> Creation:
    fields = _Fields(found, "the generation")
    headers = fields.value("upstreamHeaders")
    headers = {} if headers is None else headers
    if not isinstance(headers, dict) or not all(n.isascii() and isinstance(v, str) for n, v in headers.items()):
        raise ProtocolError("upstreamHeaders of the generation are not texts by name")
    status = fields.value("upstreamStatus")
    if status is not None and not (isinstance(status, int) and 100 <= status <= 599):
        raise ProtocolError("upstreamStatus of the generation is not a status")
    try:
        session_id, request_id = check_session_id(fields.text("sessionId")), check_request_id(fields.text("requestId"))
    except ValueError as exc:
        raise ProtocolError(str(exc)) from exc
    return Creation(
        session_id=session_id,
        request_id=request_id,
        state=fields.text("state"),
        stream_url=_http_url(fields.text("streamUrl")),
        control_url=_http_url(fields.text("controlUrl")),
        status=status,
        content_type=fields.optional_text("contentType"),
        headers=tuple((name.lower(), value) for name, value in headers.items()),
        code=fields.optional_text("code"),
        created_at=fields.optional_text("createdAt"),
    )


def parse_cancelled(body: bytes) -> str:
    """The state in which a cancel left a generation. Raises: ProtocolError."""
    return _Fields(_json(body, "the answer to a cancel"), "the answer to a cancel").text("state")


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """A generation's one terminal event; `position` is where its data end."""

    name: str
    code: str
    position: int
    is_retryable: bool = False
    message: str = ""

    @property
    def is_done(self) -> bool:
        return self.name == "done"


def parse_control(body: bytes) -> ControlEvent | None:
    """The terminal event out of the control stream's JSON array, or None while there is none. Raises: ProtocolError."""
    events = _json(body, "the control stream")
    if not isinstance(events, list):
        raise ProtocolError("the control stream is not an array of events")
    for event in events:
        fields = _Fields(event, "the control event")
        name = fields.text("event")
        if name in ("done", "error", "cancelled"):
            return ControlEvent(
                name,
                fields.text("code"),
                position_of(fields.text("offset")),
                fields.value("retryable") is True,
                fields.optional_text("message") or "",
            )
    return None


class StreamStatus(NamedTuple):
    """What a `control` event inside a live read says: where to go on, and whether that is the end."""

    next_position: int
    cursor: str | None
    is_closed: bool


def parse_stream_status(data: bytes) -> StreamStatus:
    """Raises: ProtocolError."""
    # One comes with every piece of data, and nearly all look the same.
    usual = _USUAL_STATUS.fullmatch(data)
    if usual is not None:
        return StreamStatus(int(usual[1]), usual[2].decode("ascii"), is_closed=False)
    fields = _Fields(_json(data, "a control event"), "a control event")
    return StreamStatus(
        position_of(fields.text("streamNextOffset")),
        fields.optional_text("streamCursor"),
        fields.value("streamClosed") is True,
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer of the proxy's own. `ids` are those of the generation that ended before upstream answered."""

    code: str
    message: str
    ids: tuple[str, str] | None = None


def parse_problem(body: bytes) -> Problem | None:
    """None where the answer is not the proxy's, but somebody's between it and us."""
    try:
        fields = _Fields(_json(body, "an error"), "an error")
        session_id, request_id = fields.optional_text("sessionId"), fields.optional_text("requestId")
        ids = None if session_id is None or request_id is None else (session_id, request_id)
        return Problem(fields.text("error"), fields.optional_text("message") or "the proxy refused", ids)
    except ProtocolError:
        return None


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """The pause that `Retry-After` asks for, in either of its forms; `now` is unix time."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def is_media_type(value: str | None, expected: str) -> bool:
    """Whether a content type is `expected`, whatever its parameters."""
    return (value or "").partition(";")[0].strip().lower() == expected


class _Fields:
    """Typed access to a JSON object; whatever is not as it must be is a ProtocolError naming the field."""

    def __init__(self, found: object, what: str) -> None:
        if not isinstance(found, Mapping):
            raise ProtocolError(f"{what} is not a JSON object")
        self._found: Mapping[str, object] = found
        self._what = what

    def value(self, name: str) -> object:
        return self._found.get(name)

    def text(self, name: str) -> str:
        value = self._found.get(name)
        if not isinstance(value, str):
            raise ProtocolError(f"{name} of {self._what} is not a text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._found.get(name) is None else self.text(name)


def _json(body: bytes, what: str) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"{what} is not JSON") from exc
    return found


def _http_url(url: str) -> str:
    try:
        scheme, host, _ = origin(url)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or host is None:
        raise ProtocolError("a stream's URL is not an absolute http URL")
    return url
