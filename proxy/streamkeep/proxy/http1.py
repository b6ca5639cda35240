"""HTTP/1.1 towards upstream, as bytes: a request's head and framing out, a response in. No socket is touched here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

Headers = Sequence[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024
MAX_INTERIM_RESPONSES = 16

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE_BREAKS = re.compile(rb"[\r\n\0]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,\s])timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE)


class InvalidRequest(ValueError):
    """The request cannot be written as one HTTP/1.1 message."""


class MalformedResponse(Exception):
    """What upstream sent is not one HTTP/1.1 response, or not all of it."""


class HeadTooLarge(MalformedResponse):
    """The status lines and headers are larger than any vendor's."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How a request's body is delimited: chunks, a known length, or, with neither, no body."""

    is_chunked: bool = False
    content_length: int | None = None


def framing_of(headers: Headers) -> Framing | None:
    """What a request's headers say about its body; None when they say nothing.

    Raises:
        InvalidRequest: they contradict each other, or ask for a coding other than chunks.
    """
    codings = _codings(headers)
    lengths = set(_values(headers, b"content-length"))
    if codings:
        if lengths or codings != [b"chunked"]:
            raise InvalidRequest("Transfer-Encoding is `chunked`, alone and without Content-Length")
        return Framing(is_chunked=True)
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise InvalidRequest("Content-Length is one decimal number")
    return Framing(content_length=int(length))


def encode_head(method: str, target: bytes, headers: Headers) -> bytes:
    """A request's head, in the order given.

    Raises:
        InvalidRequest: a part of it would end its line, or be read as something else.
    """
    method_bytes = method.encode("ascii", "replace")
    if not _TOKEN.fullmatch(method_bytes) or not _TARGET.fullmatch(target):
        raise InvalidRequest("the method or the path holds characters that may not stand there")
    lines = [b"%b %b HTTP/1.1\r\n" % (method_bytes, target)]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _VALUE_BREAKS.search(value):
            raise InvalidRequest(f"the header {name[:64]!r} may not be sent")
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What came before the body. `keep_alive_seconds` is how long upstream keeps the idle connection, if it said so."""

    status: int
    reason: bytes
    version: str
    headers: Headers
    is_persistent: bool
    keep_alive_seconds: float | None


class ResponseDecoder:
    """One response: bytes in; its head, its body's pieces and its end out.

    `head` is None until it is known; interim (1xx) responses are passed over. `buffered_bytes` of the body wait to be
    taken. Once `is_complete`, whatever else is fed is no part of the response and only sets `has_surplus`.
    """

    __slots__ = (
        "_ends_with_input",
        "_head_bytes",
        "_header_bytes",
        "_headers",
        "_idle_bytes",
        "_interim_responses",
        "_is_head_request",
        "_max_head_bytes",
        "_parser",
        "_pieces",
        "_reason",
        "_refusal",
        "buffered_bytes",
        "has_surplus",
        "head",
        "is_complete",
    )

    def __init__(self, *, is_head_request: bool = False, max_head_bytes: int = MAX_HEAD_BYTES) -> None:
        self.head: ResponseHead | None = None
        self.buffered_bytes = 0
        self.is_complete = False
        self.has_surplus = False
        self._is_head_request = is_head_request
        self._max_head_bytes = max_head_bytes
        self._pieces: list[bytes] = []
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._header_bytes = 0
        self._interim_responses = 0
        self._idle_bytes = 0
        self._ends_with_input = False
        self._refusal: MalformedResponse | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes | memoryview) -> None:
        """Take what came from the socket.

        Raises:
            MalformedResponse: all that came before the fault has been taken.
        """
        parser = self._parser
        if parser is None:
            self.has_surplus = True
            return
        was_in_head, buffered_bytes = self.head is None, self.buffered_bytes
        if was_in_head:
            self._head_bytes += len(data)
        malformed: MalformedResponse | None = None
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            malformed = self._refusal or MalformedResponse(f"not a valid response: {exc}")
        if malformed is not None:
            if not self.is_complete:
                # Out here, since it would else keep the parser's exception, whose traceback leads back to this object.
                raise malformed
            self.has_surplus = True
        if self.head is None and self._head_bytes > self._max_head_bytes:
            raise HeadTooLarge(f"the response's head is larger than {self._max_head_bytes} bytes")
        if not was_in_head:
            self._idle_bytes = 0 if self.buffered_bytes > buffered_bytes else self._idle_bytes + len(data)
            if self._idle_bytes > self._max_head_bytes and not self.is_complete:
                raise MalformedResponse(
                    f"sent more than {self._max_head_bytes} bytes around its body, and nothing of it"
                )
        if self.is_complete:
            self._parser = None

    def finish(self) -> None:
        """Upstream has ended its side in good order.

        Raises:
            MalformedResponse: that is not where the response ends.
        """
        if self.is_complete:
            return
        if self.head is None:
            raise MalformedResponse("closed the connection without an answer")
        if not self._ends_with_input:
            raise MalformedResponse("closed the connection before the body was complete")
        self.is_complete = True
        self._parser = None

    def take(self) -> bytes:
        """All of the body that waits; empty when nothing does."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.buffered_bytes = 0
        return data

    def stop(self) -> None:
        """Feed no more; what waits can still be taken. Lets go of the parser, which refers back to this object."""
        self._parser = None

    # What the parser calls, in the order of the message

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_surplus = True
        self._reason = b""
        self._headers = []

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too: nobody asked for them, but they may not be endless either.
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._max_head_bytes:
            self._refuse(HeadTooLarge(f"the response's head is larger than {self._max_head_bytes} bytes"))
        if self.head is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self.head is not None:
            return
        status, version = parser.get_status_code(), parser.get_http_version()
        if version not in ("1.0", "1.1") or status < 100:
            self._refuse(MalformedResponse(f"answered in HTTP/{version} with status {status}"))
        if status < 200:
            self._interim_responses += 1
            if status == 101 or self._interim_responses > MAX_INTERIM_RESPONSES:
                self._refuse(MalformedResponse("sent interim responses that nobody asked for"))
            return
        codings = _codings(self._headers)
        if codings and codings != [b"chunked"]:
            self._refuse(MalformedResponse("answered in a transfer coding that nobody asked for"))
        has_no_body = self._is_head_request or status in (204, 304)
        is_delimited = bool(codings or _values(self._headers, b"content-length"))
        self._ends_with_input = not has_no_body and not is_delimited
        self.is_complete = has_no_body
        self.head = ResponseHead(
            status=status,
            reason=self._reason,
            version=version,
            headers=self._headers,
            is_persistent=not self._ends_with_input and _is_persistent(version, self._headers),
            keep_alive_seconds=_keep_alive_seconds(self._headers),
        )

    def on_body(self, piece: bytes) -> None:
        if self.is_complete:
            self.has_surplus = True
            return
        self._pieces.append(piece)
        self.buffered_bytes += len(piece)

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.is_complete = True

    def _refuse(self, refusal: MalformedResponse) -> None:
        # The parser reports an exception of a callback as an error of its own kind.
        self._refusal = refusal
        raise refusal


def _values(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a header that is a list, over all its lines."""
    return [
        member.strip()
        for header, value in headers
        if header.lower() == name
        for member in value.split(b",")
        if member.strip()
    ]


def _codings(headers: Headers) -> list[bytes]:
    """Every line of Transfer-Encoding, whole: parsers differ on empty members (`chunked,`)."""
    return [value.strip().lower() for name, value in headers if name.lower() == b"transfer-encoding"]


def _is_persistent(version: str, headers: Headers) -> bool:
    options = {option.lower() for option in _values(headers, b"connection")}
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


def is_closing(headers: Headers) -> bool:
    """Whether a request's headers ask for the connection to be closed after the answer."""
    return b"close" in {option.lower() for option in _values(headers, b"connection")}


def _keep_alive_seconds(headers: Headers) -> float | None:
    found = [_KEEP_ALIVE_TIMEOUT.search(value) for name, value in headers if name.lower() == b"keep-alive"]
    return min((float(match[1]) for match in found if match), default=None)


def in_chunks(piece: bytes) -> bytes:
    """A piece of a body as one chunk. An empty one is nothing: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


LAST_CHUNK = b"0\r\n\r\n"
