"""Which headers travel on: a caller's to upstream, and upstream's to readers.

Towards upstream every end-to-end header passes but what is listed here, since vendors keep inventing them: not what is
meant for us, or says who the caller is and how the request came, and nothing that would change which URL upstream
serves, since that was what a rule allowed. Towards readers only what is listed passes, since whatever passes is stored,
and served again from our own origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_FORWARDED_HEADERS = 128
MAX_FORWARDED_BYTES = 64 * 1024
MAX_KEPT_HEADERS = 64
MAX_KEPT_BYTES = 16 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKS = re.compile(rb"[\r\n\0]")
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# They speak of one connection, not of the message (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host",  # upstream's own is sent
    b"content-length",  # framing is decided anew
    b"accept-encoding",  # identity is asked for: bytes are stored as they come
    b"expect",  # the body is on its way already
    b"cookie",  # belongs to the proxy's origin, not to the vendor's
    b"x-session-id",  # the wire between our client and us
    b"x-request-id",
    b"x-resume-active-generation",
    b"x-replay-from-start",
    b"x-active-generation-ttl",
    b"last-event-id",  # a position in our streams
    b"forwarded",  # who the caller is, is nothing to the vendor
    b"via",
    b"cdn-loop",
    b"cf-connecting-ip",
    b"cf-connecting-ipv6",
    b"cf-ipcountry",
    b"cf-visitor",
    b"x-real-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-scheme",
    b"true-client-ip",
    b"fastly-client-ip",
    b"x-azure-clientip",
    b"x-azure-socketip",
    b"x-amzn-trace-id",
    b"x-rewrite-url",  # another URL than the one that was allowed
    b"x-http-method-override",  # another method
    b"x-http-method",
    b"x-method-override",
    b"origin",  # the page's: a vendor that checks it would refuse, one that logs it would learn
    b"referer",
    b"priority",  # a browser's order among its own requests
}
# Without them upstream cannot read the body, whatever the rule.
_FRAMING = frozenset({b"content-type", b"content-encoding"})
_NOT_FORWARDED_PREFIXES = (
    b"x-proxy-",  # the wire between our client and us
    b"streamkeep-",
    b"upstream-",
    b"proxy-",
    b"x-forwarded-",  # who the caller is
    b"x-envoy-",
    b"x-original-",  # another URL, host or caller
    b"sec-",  # what a browser says about the page
)

_KEPT = frozenset(
    {
        b"apim-request-id",  # request ids, by vendor
        b"request-id",
        b"x-amzn-requestid",
        b"x-request-id",
        b"cf-ray",
        b"retry-after",  # when to come back
        b"retry-after-ms",
        b"x-should-retry",
        b"content-disposition",  # about the body
        b"content-language",
        b"link",
        b"location",  # where a created resource is; redirects are refused elsewhere
        b"server-timing",
        b"www-authenticate",  # which credentials upstream wanted
    }
)
_KEPT_PREFIXES = (
    b"ratelimit-",
    b"x-ratelimit-",
    b"anthropic-",
    b"openai-",
    b"x-ai-",  # marks by which AI SDKs recognise a stream's format
    b"x-vercel-",
)


# Even where an operator wants more: what frames, describes or unlocks our own answers.
_NEVER_KEPT = _HOP_BY_HOP | {
    b"alt-svc",
    b"cache-control",
    b"clear-site-data",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"etag",
    b"refresh",
    b"service-worker-allowed",
    b"set-cookie",
    b"set-cookie2",
    b"strict-transport-security",
    b"vary",
    b"x-content-type-options",
    b"x-session-id",
}
_NEVER_KEPT_PREFIXES = (
    b"access-control-",
    b"content-security-policy",
    b"cross-origin-",
    b"proxy-",
    b"stream-",
    b"streamkeep-",
    b"upstream-",
)


class InvalidHeader(ValueError):
    """A header that would not be one header on the wire; `name` is its name as far as it can be shown."""

    def __init__(self, name: bytes) -> None:
        self.name = name[:64].decode("ascii", "backslashreplace")
        super().__init__(f"the header {self.name!r} cannot be forwarded")


class HeadersTooLarge(ValueError):
    """More headers for upstream, or larger ones, than are forwarded."""

    def __init__(self) -> None:
        super().__init__(
            f"up to {MAX_FORWARDED_HEADERS} headers and {MAX_FORWARDED_BYTES} bytes of them are forwarded to upstream"
        )


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """Which of a caller's headers an operator lets through to upstream; what may never pass does not pass by any rule."""

    _names: frozenset[bytes] = frozenset()
    _prefixes: tuple[bytes, ...] = (b"",)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> ForwardRule:
        """Names, and beginnings of names with `*` behind them. Raises: ValueError."""
        for text in texts:
            if not _TOKEN.fullmatch(text.encode()) or "*" in text[:-1]:
                raise ValueError(f"{text[:64]!r} is neither a header's name nor the beginning of one with * behind it")
        lower = [text.lower().encode() for text in texts]
        return cls(
            frozenset(text for text in lower if not text.endswith(b"*")),
            tuple(text[:-1] for text in lower if text.endswith(b"*")),
        )

    def admits(self, name: bytes) -> bool:
        """Whether a header passes; the name is in lower case."""
        return name.startswith(self._prefixes) or name in self._names or name in _FRAMING


ANY_HEADER = ForwardRule()


def forwarded_headers(raw: Iterable[tuple[bytes, bytes]], rule: ForwardRule = ANY_HEADER) -> list[tuple[bytes, bytes]]:
    """A request's headers as they go upstream, in their order; connection-bound ones, named in `Connection` too, do not.

    Raises:
        InvalidHeader: a name that is no token, or a value with CR, LF or NUL, also among those that are dropped.
        HeadersTooLarge: what would be forwarded is more than 128 headers or 64 KiB.
    """
    headers = list(raw)
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _BREAKS.search(value):
            raise InvalidHeader(name)
    dropped = _NOT_FORWARDED | _nominated(headers)
    forwarded = [
        (name, value)
        for name, value in headers
        if name.lower() not in dropped
        and not name.lower().startswith(_NOT_FORWARDED_PREFIXES)
        and rule.admits(name.lower())
    ]
    size_bytes = sum(len(name) + len(value) for name, value in forwarded)
    if len(forwarded) > MAX_FORWARDED_HEADERS or size_bytes > MAX_FORWARDED_BYTES:
        raise HeadersTooLarge
    return forwarded


def further_kept(names: Iterable[str]) -> frozenset[bytes]:
    """Names of headers to keep besides those above. Raises: ValueError, one of them may never be kept."""
    wanted = frozenset(name.lower().encode() for name in names)
    for name in wanted:
        if not _TOKEN.fullmatch(name) or name in _NEVER_KEPT or name.startswith(_NEVER_KEPT_PREFIXES):
            raise ValueError(f"the header {name.decode()!r} cannot be kept")
    return wanted


def kept_headers(
    raw: Iterable[tuple[bytes, bytes]], further: frozenset[bytes] = frozenset()
) -> tuple[tuple[str, str], ...]:
    """Upstream's headers that readers get, lower-case, in their order, at most 64 and 16 KiB in all.

    Content type and encoding are not among them: they have places of their own. A value with control characters, and
    what does not fit any more, is left out.
    """
    headers = [(name.lower(), value) for name, value in raw]
    nominated = _nominated(headers)
    kept: list[tuple[str, str]] = []
    size_bytes = 0
    for name, value in headers:
        is_wanted = name in _KEPT or name in further or name.startswith(_KEPT_PREFIXES)
        if not is_wanted or name in nominated or not _TOKEN.fullmatch(name) or _CONTROLS.search(value):
            continue
        if len(kept) == MAX_KEPT_HEADERS or size_bytes + len(name) + len(value) > MAX_KEPT_BYTES:
            continue
        size_bytes += len(name) + len(value)
        kept.append((name.decode("ascii"), value.decode("latin-1").strip()))
    return tuple(kept)


def _nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that `Connection` declares to be of this connection only."""
    return frozenset(
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    )
