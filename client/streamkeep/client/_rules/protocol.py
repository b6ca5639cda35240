"""The open stream protocol on the wire: names, what an answer's head says, and which error a refusal is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from streamkeep.client._errors import (
    InvalidOffset,
    ProducerFenced,
    ProtocolError,
    SchemaViolation,
    SequenceConflict,
    SequenceGap,
    ServerError,
    StreamClosed,
    StreamExists,
    StreamGone,
    StreamNotFound,
)
from streamkeep.client._rules.schemas import plain
from streamkeep.client._rules.wire import CLOSED, CURSOR, NEXT_OFFSET, is_media_type

START = "-1"
NOW = "now"

UP_TO_DATE = "Stream-Up-To-Date"
SEQUENCE = "Stream-Seq"
TTL = "Stream-TTL"
EXPIRES_AT = "Stream-Expires-At"
FORKED_FROM = "Stream-Forked-From"
SCHEMA = "Streamkeep-Schema"
FORK_OFFSET = "Stream-Fork-Offset"
FORK_SUB_OFFSET = "Stream-Fork-Sub-Offset"
PRODUCER_ID = "Producer-Id"
PRODUCER_EPOCH = "Producer-Epoch"
PRODUCER_SEQUENCE = "Producer-Seq"
PRODUCER_EXPECTED = "Producer-Expected-Seq"
PRODUCER_RECEIVED = "Producer-Received-Seq"

JSON = "application/json"

# The protocol forbids some characters; nobody may make a header or a page of text out of an offset either.
_OFFSET = re.compile(r"[^\x00-\x20\x7f-\U0010ffff,&=?/]{1,256}")
_USUAL_CONTROL = re.compile(
    rb'\{"streamNextOffset":"([0-9A-Za-z_.-]{1,256})","streamCursor":"([0-9A-Za-z_-]{1,64})"(,"upToDate":true)?\}'
)
_NUMBER = re.compile(r"[0-9]{1,16}")
_DESCRIBED_BY = re.compile(r'<([^<>\x00-\x20]{1,4096})>\s*;\s*rel="?describedby"?')
_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Head:
    """What a read's answer says beside its data."""

    next_offset: str
    cursor: str | None
    is_up_to_date: bool
    is_closed: bool
    content_type: str


def parse_head(headers: Mapping[str, str]) -> Head:
    """Raises: ProtocolError: whatever answered is not a stream."""
    return Head(
        next_offset=check_offset(headers.get(NEXT_OFFSET)),
        cursor=headers.get(CURSOR),
        is_up_to_date=is_true(headers.get(UP_TO_DATE)),
        is_closed=is_true(headers.get(CLOSED)),
        content_type=headers.get("Content-Type", ""),
    )


@dataclass(frozen=True, slots=True)
class Control:
    """What a `control` event says."""

    next_offset: str
    cursor: str | None
    is_up_to_date: bool
    is_closed: bool


def parse_control(data: bytes) -> Control:
    """Raises: ProtocolError."""
    # One comes with every piece of data, and nearly all look the same.
    usual = _USUAL_CONTROL.fullmatch(data)
    if usual is not None:
        offset, cursor = usual[1].decode("ascii"), usual[2].decode("ascii")
        return Control(check_offset(offset), cursor, is_up_to_date=usual[3] is not None, is_closed=False)
    fields = parse_json(data, "a control event")
    if not isinstance(fields, dict):
        raise ProtocolError("a control event is not a JSON object")
    cursor = fields.get("streamCursor")
    return Control(
        next_offset=check_offset(fields.get("streamNextOffset")),
        cursor=cursor if isinstance(cursor, str) else None,
        is_up_to_date=fields.get("upToDate") is True,
        is_closed=fields.get("streamClosed") is True,
    )


def check_offset(value: object) -> str:
    """An offset that a server gave. Raises: ProtocolError."""
    if not isinstance(value, str) or value in (START, NOW) or not _OFFSET.fullmatch(value):
        raise ProtocolError("the answer names no offset to go on from, so it is not that of a stream")
    return value


def is_true(value: str | None) -> bool:
    """Flags count as present only with this one value."""
    return value is not None and value.lower() == "true"


def is_json(content_type: str | None) -> bool:
    """Whether a stream of this type holds messages rather than bytes."""
    return is_media_type(content_type, JSON)


def parse_json(data: bytes, what: str) -> object:
    """Raises: ProtocolError."""
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"{what} is not JSON") from exc
    return found


def messages(data: bytes) -> list[object]:
    """The messages in an answer of a JSON stream. Raises: ProtocolError."""
    found = parse_json(data, "what came from a JSON stream")
    if not isinstance(found, list):
        raise ProtocolError("what came from a JSON stream is not an array")
    return found


def payload(data: object, content_type: str | None) -> bytes:
    """One append's data as it is kept: text as UTF-8, bytes as they are, and for a JSON stream any other value as JSON,
    models and dataclasses in it too.

    Texts and bytes for a JSON stream are JSON already.

    Raises:
        TypeError: only a JSON stream takes such a value.
        ValueError: the value is not JSON.
    """
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass")
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if not is_json(content_type):
        raise TypeError(f"a stream of type {content_type or 'unknown'} takes bytes or text, not {type(data).__name__}")
    return json_text(data)


def json_text(value: object) -> bytes:
    """A value as JSON. Raises: TypeError, ValueError: it is none."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain).encode()


def schema_url(link: str | None) -> str | None:
    """Where a stream's schema is read, out of the `Link` of its answers."""
    found = _DESCRIBED_BY.search(link or "")
    return None if found is None else found[1]


def body_of(payloads: list[bytes], content_type: str | None) -> bytes:
    """A request's body with these payloads: one array of messages for a JSON stream, else their bytes."""
    return b"[" + b",".join(payloads) + b"]" if is_json(content_type) else b"".join(payloads)


def path_of(url: str) -> str:
    """The part of a URL that may be shown: no credentials, and no query, since signatures stand there."""
    return unquote(urlsplit(url).path) or "/"


def refusal(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    url: str,
    method: str,
    is_sequenced: bool,
    retry_after_seconds: float | None,
) -> ServerError:
    """The error that an answer without success stands for; `is_sequenced` when the request had a `Stream-Seq`."""
    path = path_of(url)
    code, message = _reason(content, headers.get("Content-Type"))
    message = message or f"the server refused {method} {path}"

    def made(error: type[ServerError], text: str, default_code: str) -> ServerError:
        return error(status, code or default_code, text, retry_after_seconds=retry_after_seconds)

    if status == 404:
        return made(StreamNotFound, f"there is no stream {path}", "not_found")
    if status == 410:
        return made(StreamGone, f"the stream {path}, or what the offset asks for, is gone", "gone")
    if status == 409:
        final_offset, expected = headers.get(NEXT_OFFSET), _number(headers.get(PRODUCER_EXPECTED))
        if is_true(headers.get(CLOSED)) and method != "PUT":
            return StreamClosed(f"the stream {path} is closed", code=code or "stream_closed", final_offset=final_offset)
        if expected is not None:
            return SequenceGap(
                f"an append to {path} is missing",
                code=code or "sequence_gap",
                expected=expected,
                received=_number(headers.get(PRODUCER_RECEIVED)),
            )
        error = StreamExists if method == "PUT" else SequenceConflict if is_sequenced else ServerError
        return made(error, f"{message} at {path}", "conflict")
    epoch = _number(headers.get(PRODUCER_EPOCH))
    if status == 403 and epoch is not None:
        return ProducerFenced(f"a newer producer writes to {path}", code=code or "fenced", current_epoch=epoch)
    if status == 422 and code == "schema_violation":
        return _schema_violation(code, f"{message} at {path}", content)
    if status == 400 and method == "GET" and code in (None, "invalid_offset"):
        return made(InvalidOffset, f"{message} at {path}", "invalid_offset")
    return made(ServerError, f"{message} at {path}", "unexpected_answer")


def _schema_violation(code: str, message: str, content: bytes) -> ServerError:
    found = json.loads(content)
    index, path, reason = found.get("index"), _short(found.get("path")), _short(found.get("reason"))
    return SchemaViolation(
        code, message, index=index if isinstance(index, int) else 0, path=path or "$", reason=reason or message
    )


def _reason(content: bytes, content_type: str | None) -> tuple[str | None, str | None]:
    """Code and message out of an error's body, in whichever form the server chose."""
    if is_media_type(content_type, "text/plain"):
        text = "".join(character for character in content.decode("utf-8", "replace") if character.isprintable())
        return None, text[:_MESSAGE_CHARACTERS] or None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(found, dict):
        return None, None
    error = found.get("error")
    code, message = (
        (error.get("code"), error.get("message")) if isinstance(error, dict) else (error, found.get("message"))
    )
    return _short(code), _short(message)


def _short(value: object) -> str | None:
    return value[:_MESSAGE_CHARACTERS] if isinstance(value, str) and value.isprintable() and value else None


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None
