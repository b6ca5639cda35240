"""What measurements through a front door mean: a finding for each check, and what to change where it is bad.

Measured is what a reader's life depends on: that its requests arrive, that bytes and headers come as they were sent, that
each event comes when it is sent, and that a connection on which nothing happens is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from urllib.parse import urljoin

from streamkeep.client._rules import protocol, wire

# Of what browsers keep from a page unless it is exposed, all that a client of the protocol reads.
_READ_BY_PAGES = (wire.NEXT_OFFSET, wire.CURSOR, protocol.UP_TO_DATE, wire.CLOSED, "ETag", wire.SSE_DATA_ENCODING)
_WAIT_ENDS_SECONDS = 25.0
_SLOW_SECONDS = 1.0

_UNBUFFERED = "let answers pass as they come: in nginx `proxy_buffering off;`, and no `proxy_ignore_headers`"
_UNCOMPRESSED = "compress no text/event-stream: in nginx take it out of `gzip_types`"
_PATIENT = "give quiet connections more time: in nginx `proxy_read_timeout 660s;`"
_NO_TRANSFORM = "let bodies pass as they are, with no filter, compression or rewriting of text/* and application/*"


class Verdict(StrEnum):
    """`NOTE` is worth knowing, and breaks nothing."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was measured, and what to change where that is not as it should be."""

    check: str
    verdict: Verdict
    measured: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `failure` says why there is none, and then the rest is empty."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    version: str = ""
    failure: str | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def shown(self) -> str:
        """What to tell of it in a few words."""
        if self.failure is not None:
            return f"no answer ({self.failure})"
        server = "".join(c for c in self.headers.get("Server", "") if c.isprintable())[:40]
        return f"{self.status} by {server}" if server else str(self.status)


@dataclass(frozen=True, slots=True)
class Live:
    """What was appended one by one, and how it came: `delays_seconds` from sending an append to seeing it live."""

    appended: int
    delays_seconds: tuple[float, ...]
    came_at_end: bool = False
    is_equal: bool = True
    encoding: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Quiet:
    """A live read on which nothing happens. `ending` is None when it was still open after `seconds`."""

    seconds: float
    ending: str | None = None
    is_clean: bool = False
    heartbeats: int = 0


def connection(url: str, answer: Answer, protocol_offered: str | None) -> Finding:
    """How the door speaks; `protocol_offered` is what TLS agreed on when HTTP/2 was asked for."""
    measured = f"{answer.version}, an answer in {_milliseconds(answer.seconds)}"
    if answer.version == "HTTP/1.0":
        return Finding("connection", Verdict.BAD, measured, "speak HTTP/1.1: HTTP/1.0 has no way to end a stream")
    if protocol_offered == "h2":
        return Finding("connection", Verdict.OK, f"{measured}; HTTP/2 is offered")
    if wire.origin(url)[0] == "https":
        advice = "offer HTTP/2: with HTTP/1.1 a browser holds six connections, so a seventh live read waits"
        return Finding("connection", Verdict.NOTE, measured, advice)
    return Finding("connection", Verdict.OK, measured)


def address(url: str, made: str | None) -> Finding:
    """Whether the server knows under which address it is asked, by a URL that it made."""
    if made is None:
        return Finding("address", Verdict.NOTE, "the server made no URL of its own", "let `Location` pass")
    try:
        is_same, shown = wire.origin(urljoin(url, made)) == wire.origin(url), wire.without_query(made)
    except ValueError:
        is_same, shown = False, "nowhere"
    if is_same:
        return Finding("address", Verdict.OK, "the server's own URLs lead here")
    advice = (
        "pass on the name that was asked for: in nginx `proxy_set_header Host $http_host;` and "
        "`proxy_set_header X-Forwarded-Proto $scheme;`, or set STREAMKEEP_PUBLIC_URL"
    )
    return Finding("address", Verdict.BAD, f"the server's own URLs lead to {_printable(shown)}", advice)


def append(answer: Answer) -> Finding:
    """A small append that was refused."""
    return Finding("append", Verdict.BAD, answer.shown, "let PUT, POST, GET, HEAD, DELETE and OPTIONS pass")


def upload(size_bytes: int, answer: Answer) -> Finding:
    """One large append."""
    size = f"{size_bytes // 1024} KiB at once"
    if answer.is_success:
        return Finding("upload", Verdict.OK, f"{size} in {_milliseconds(answer.seconds)}")
    return Finding("upload", Verdict.BAD, f"{size}: {answer.shown}", "in nginx `client_max_body_size 0;`")


def body(sent: bytes, answer: Answer) -> Finding:
    """A catch-up read that asked for no encoding."""
    encoding = _encoding(answer)
    if not answer.is_success:
        return Finding("bytes", Verdict.BAD, answer.shown, "let GET pass, with its query")
    if encoding is not None:
        return Finding("bytes", Verdict.BAD, f"encoded as {encoding}, which nobody asked for", _NO_TRANSFORM)
    if answer.body != sent:
        return Finding("bytes", Verdict.BAD, f"{len(answer.body)} other bytes than the {len(sent)} sent", _NO_TRANSFORM)
    return Finding("bytes", Verdict.OK, f"{len(sent)} bytes, all equal, in {_milliseconds(answer.seconds)}")


def headers(answer: Answer) -> Finding:
    """What clients need of a catch-up read's head."""
    missing = [
        name for name in (wire.NEXT_OFFSET, "ETag", "Content-Type", "Cache-Control") if not answer.headers.get(name)
    ]
    if wire.NEXT_OFFSET in missing:
        return Finding("headers", Verdict.BAD, f"{wire.NEXT_OFFSET} is missing", "let all `Stream-…` headers pass")
    if missing:
        return Finding("headers", Verdict.NOTE, f"without {', '.join(missing)}", "let them pass: caches need them")
    return Finding("headers", Verdict.OK, "all that clients need are there")


def cross_origin(origin: str, answer: Answer, preflight: Answer) -> Finding:
    """What a page of another origin may see."""
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    if allowed is not None and "," in allowed:
        return Finding("browsers", Verdict.BAD, "CORS headers come twice", "let only one of both servers add them")
    if allowed not in ("*", origin) or not answer.is_success:
        advice = "where browsers read streams: set STREAMKEEP_ORIGINS, and let `Access-Control-…` headers pass"
        return Finding("browsers", Verdict.NOTE, f"pages of {origin} may not read", advice)
    exposed = {name.strip().lower() for name in answer.headers.get("Access-Control-Expose-Headers", "").split(",")}
    hidden = [name for name in _READ_BY_PAGES if name.lower() not in exposed and "*" not in exposed]
    if hidden:
        advice = "let `Access-Control-Expose-Headers` pass as the server sends it"
        return Finding("browsers", Verdict.BAD, f"pages cannot see {', '.join(hidden)}", advice)
    if not preflight.is_success or "Access-Control-Allow-Methods" not in preflight.headers:
        return Finding("browsers", Verdict.BAD, f"OPTIONS: {preflight.shown}", "let OPTIONS pass, without a key")
    return Finding("browsers", Verdict.OK, f"pages of {origin} may read, and see what they need")


def revalidation(answer: Answer) -> Finding:
    """A read that names the entity tag it has."""
    if answer.status == 304:
        return Finding("revalidation", Verdict.OK, "304 for what is known")
    return Finding("revalidation", Verdict.NOTE, answer.shown, "let `If-None-Match` and `ETag` pass: it saves bytes")


def head(tail: str | None, answer: Answer) -> Finding:
    """HEAD, after the tail has moved."""
    if not answer.is_success or answer.body:
        return Finding(
            "HEAD", Verdict.BAD, answer.shown, "let HEAD pass as it is: in nginx `proxy_cache_convert_head off;`"
        )
    if answer.headers.get(wire.NEXT_OFFSET) != tail:
        return Finding("HEAD", Verdict.BAD, "tells of a tail that is no more", "cache no answer to HEAD")
    return Finding("HEAD", Verdict.OK, "tells where the tail is")


def ranges(sent: bytes, answer: Answer) -> Finding:
    """A read that asks for a range, which the protocol does not know."""
    if answer.status == 200 and answer.body == sent:
        return Finding("ranges", Verdict.OK, "an offset alone says what is read")
    advice = "let `Range` do nothing: in nginx `max_ranges 0;`, since `Stream-Next-Offset` tells of the whole"
    return Finding("ranges", Verdict.BAD, f"a part of the answer: {answer.shown}", advice)


def strangers(answer: Answer) -> Finding:
    """The same URL, read by somebody without the key."""
    if answer.status in (401, 403, 404):
        return Finding("cache", Verdict.OK, "who has no key gets nothing")
    if answer.is_success:
        advice = "cache no answer that a key was shown for (examples/nginx.conf), and see that the server wants keys"
        return Finding("cache", Verdict.BAD, "whoever asks without the key is answered", advice)
    return Finding("cache", Verdict.NOTE, f"without the key: {answer.shown}", "401 would be the answer")


def events(live: Live) -> Finding:
    """Server-sent events, each awaited before the next one is appended."""
    check = "events"
    if live.failure is not None:
        return Finding(check, Verdict.BAD, live.failure, "let GET with `live=sse` pass, for as long as it takes")
    seen = len(live.delays_seconds)
    encoding = None if live.encoding is None else _printable(live.encoding)
    if seen < live.appended:
        when = "; the rest came when the stream was closed" if live.came_at_end else ""
        advice = _UNBUFFERED if encoding is None else f"{_UNCOMPRESSED}; and {_UNBUFFERED}"
        encoded = f", encoded as {encoding}" if encoding else ""
        return Finding(check, Verdict.BAD, f"held back: {seen} of {live.appended} came in time{when}{encoded}", advice)
    if not live.is_equal:
        return Finding(check, Verdict.BAD, "other bytes came than were sent", _NO_TRANSFORM)
    measured = f"each before the next is sent, {_delays(live)}"
    if encoding is not None:
        return Finding(check, Verdict.NOTE, f"{measured}, encoded as {encoding}", _UNCOMPRESSED)
    return _unless_slow(Finding(check, Verdict.OK, measured), live)


def polls(live: Live) -> Finding:
    """Long-polls, each answered by one append."""
    check = "long-polls"
    if live.failure is not None:
        advice = f"{_PATIENT}; and cache no answer to `live=long-poll` beyond its `Cache-Control`"
        return Finding(check, Verdict.BAD, live.failure, advice)
    if not live.is_equal:
        return Finding(check, Verdict.BAD, "other bytes came than were sent", _NO_TRANSFORM)
    return _unless_slow(Finding(check, Verdict.OK, f"answered by the append, {_delays(live)}"), live)


def quiet_events(quiet: Quiet) -> Finding:
    """Server-sent events while nothing happens."""
    check = "quiet events"
    if quiet.ending is not None and not (quiet.is_clean and quiet.seconds >= _WAIT_ENDS_SECONDS):
        return Finding(check, Verdict.BAD, f"cut after {quiet.seconds:.1f} s ({quiet.ending})", _PATIENT)
    if quiet.ending is not None:
        return Finding(check, Verdict.OK, f"ended after {quiet.seconds:.0f} s, in order; readers come back")
    return Finding(check, Verdict.OK, f"open for {quiet.seconds:.0f} s, {quiet.heartbeats} heartbeats")


def quiet_poll(quiet: Quiet) -> Finding:
    """A long-poll to which nothing comes."""
    check = "quiet long-poll"
    if quiet.ending is None:
        return Finding(check, Verdict.OK, f"still waits after {quiet.seconds:.0f} s")
    if quiet.is_clean:
        return Finding(check, Verdict.OK, f"answered after {quiet.seconds:.1f} s, in order")
    return Finding(check, Verdict.BAD, f"cut after {quiet.seconds:.1f} s ({quiet.ending})", _PATIENT)


def _unless_slow(finding: Finding, live: Live) -> Finding:
    if median(live.delays_seconds) < _SLOW_SECONDS:
        return finding
    return Finding(finding.check, Verdict.NOTE, finding.measured, "slow: is there a buffer with a timer on the way?")


def _delays(live: Live) -> str:
    return f"in {_milliseconds(median(live.delays_seconds))}, at most {_milliseconds(max(live.delays_seconds))}"


def _encoding(answer: Answer) -> str | None:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    return None if encoding == "identity" else _printable(encoding)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:100]
