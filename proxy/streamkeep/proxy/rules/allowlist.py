"""Which URLs may be called, written as globs: `[scheme://]host[:port][/path]`, or `private:scheme://host…`.

| part | written as | matches |
|---|---|---|
| scheme | `http://`, `https://`, or nothing | that one; both |
| host | `api.example.com` | that host; case, a trailing dot and the spelling of an international name do not matter |
| | `*.example.com` | every name below it at any depth, not `example.com` itself |
| | `api-*.example.com`, `eu.*.example.com` | `*` elsewhere stands for any text inside one label |
| | `*` | every host |
| port | nothing | the scheme's own port, 443 or 80, written out in the URL or not |
| | `:8080`, `:*` | that port; every port |
| path | nothing, `/*`, `/**` | every path |
| | `/v1/*` | one segment more: `/v1/models`, not `/v1/models/x` |
| | `/v1/**` | everything below: `/v1/models/x`, not `/v1` itself |
| | `/v1/*/chat`, `/v1/chat` | `*` as a whole segment is any one segment; all else is exact |

A URL's query and fragment are never looked at. What two parsers could read in two ways is refused as malformed before
any glob is asked: user information, backslashes, white space and control characters, dot segments, percent-encoded
slashes, IPv4 addresses in other than four decimal numbers, URLs over 8 KiB.

A glob with `*` in its host never leads to a private network. Only a glob that spells a private host (an address that
is not public, `localhost`, a name with no dot or under `.local`, `.internal` and their like) admits one, and so does a
glob marked `private:`, for a server of one's own whose name looks public: `private:https://models.example.com/**`. The
marker goes before a scheme, and admits `*` within a host, but not `*` alone. Where a name may then lead is said in
`addresses.py`: to loopback and private networks, never to link-local or metadata addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, unquote

import idna

from streamkeep.proxy.rules.addresses import is_private_host

VARIABLE = "STREAMKEEP_ALLOW"
DEFAULT_GLOBS = (
    "https://api.openai.com/**",
    "https://api.anthropic.com/**",
    "http://127.0.0.1:4001/**",
    "http://localhost:4001/**",
)
MAX_URL_BYTES = 8 * 1024
OTHER = "other"

DEFAULT_PORTS = {"http": 80, "https": 443}
_ANY_PORT = 0
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_IN_LABEL = "[a-z0-9_-]"
_WILD_LABEL = re.compile(r"[a-z0-9_*-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MARKED = re.compile(r"private:(?=https?://)", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
_ESCAPE = re.compile(r"%(.{0,2})", re.DOTALL)
_HEX_PAIR = re.compile(r"[0-9A-Fa-f]{2}")
_HIDING_ESCAPE = re.compile(r"%(?:2[ef]|5c|25|00)", re.IGNORECASE)
_MAX_SHOWN = 200
# What stands in a path and in a query as it is written, besides letters, digits and `-._~`.
_PATH_SAFE = "!$%&'()*+,/:;=@[]^|"
_QUERY_SAFE = _PATH_SAFE + "?`{}"


class AllowlistError(ValueError):
    """A glob cannot be used; `glob` and `reason` say which and why."""

    def __init__(self, glob: str, reason: str) -> None:
        super().__init__(f"{glob!r} is not a glob for URLs: {reason}")
        self.glob = glob
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Origin:
    """What a connection is to, and whether it may lead to an address that is not public. `host` is what is resolved: a name
    in lower-case ASCII, with a trailing dot where there was one, or an address as it was written, IPv6 without brackets."""

    scheme: str
    host: str
    port: int
    may_be_private: bool

    @property
    def authority(self) -> str:
        """Host and port as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The URL may be called, and is read no more: `origin` is where to connect, `resource` what to ask for there. `label` is
    its host if a glob spells it, else `other`: a name of which there are only as many as there are globs."""

    url: str = field(repr=False)
    origin: Origin
    resource: bytes = field(repr=False)
    label: str = OTHER


@dataclass(frozen=True, slots=True)
class Refused:
    """The URL may not be called. `message` holds neither its query nor its user information; `is_malformed` says that
    no glob could ever allow it."""

    message: str
    is_malformed: bool = False


@dataclass(frozen=True, slots=True)
class Allowlist:
    """The URLs that may be called."""

    globs: tuple[str, ...]
    _rules: tuple[_Rule, ...]

    @classmethod
    def parse(cls, globs: Sequence[str]) -> Allowlist:
        """Read globs; no globs at all refuse every URL.

        Raises:
            AllowlistError: one of them cannot be used.
        """
        rules = tuple(_Rule.parse(glob) for glob in globs)
        return cls(tuple(globs), rules)

    @classmethod
    def default(cls) -> Allowlist:
        """The public OpenAI and Anthropic APIs, and the demo vendor on this machine."""
        return cls.parse(DEFAULT_GLOBS)

    def decide(self, url: str) -> Allowed | Refused:
        """Whether an absolute URL may be called; a refusal says what would allow it."""
        try:
            target = _Target.parse(url)
        except _Malformed as exc:
            return Refused(f"{_without_secrets(url)} cannot be called: {exc}", is_malformed=True)
        matching = [rule for rule in self._rules if rule.matches(target)]
        private = any(rule.is_private for rule in matching)
        if matching and (private or not is_private_host(target.host)):
            origin = Origin(target.scheme, target.name, target.port, private)
            return Allowed(url, origin, target.resource, self._label(target.host))
        why = "is on a private host, which only a glob that spells it admits" if matching else "is not allowed"
        return Refused(f"{_cut(target.origin + target.path)} {why}; {self._remedy(f'{target.origin}/**')}")

    def _remedy(self, glob: str) -> str:
        """What would allow it. An operator's own globs are not told: they may name what is inside."""
        if self.globs in ((), DEFAULT_GLOBS):
            return f"this would allow it: {VARIABLE}={','.join((*self.globs, glob))}"
        return f"adding this to {VARIABLE} would allow it: {glob}"

    def _label(self, host: str) -> str:
        return host if any(rule.host.pattern == re.escape(host) for rule in self._rules) else OTHER


class _Malformed(ValueError):
    """Why a URL, or a part of one, is refused whatever the globs say."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart. `name` is its host as it is resolved, `host` the same normalised: lower-case ASCII without a
    trailing dot, IPv6 in brackets. `resource` is the path and the query as they are sent."""

    scheme: str
    name: str
    host: str
    port: int
    path: str
    resource: bytes

    @classmethod
    def parse(cls, url: str) -> _Target:
        if len(url.encode("utf-8", "surrogatepass")) > MAX_URL_BYTES:
            raise _Malformed(f"it is longer than {MAX_URL_BYTES} bytes")
        _check_characters(url)
        found = _URL.match(url)
        if found is None:
            raise _Malformed("it is not an absolute URL")
        scheme, authority, path, query = found[1].lower(), found[2], found[3] or "/", found[4] or ""
        if scheme not in DEFAULT_PORTS:
            raise _Malformed("only http and https can be called")
        if "@" in authority:
            raise _Malformed("it holds user information; send credentials in a header")
        host_text, port_text = _split_authority(authority)
        port = DEFAULT_PORTS[scheme] if port_text is None else _read_port(port_text)
        _check_path(path)
        name = _ascii_host(host_text)
        resource = quote(path, safe=_PATH_SAFE) + quote(query, safe=_QUERY_SAFE)
        return cls(scheme, name.strip("[]"), _normalize_host(name), port, path, resource.encode())

    @property
    def origin(self) -> str:
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One glob. `scheme` and `port` None: either scheme, the scheme's own port; `path` None: every path. `is_private`: it
    admits what is not public."""

    scheme: str | None
    host: re.Pattern[str]
    port: int | None
    path: _PathRule | None
    is_private: bool

    @classmethod
    def parse(cls, glob: str) -> _Rule:
        try:
            _check_characters(glob)
            marker = _MARKED.match(glob)
            unmarked = glob if marker is None else glob[marker.end() :]
            scheme, separator, rest = unmarked.partition("://")
            if not separator:
                scheme, rest = "", unmarked
            if scheme.lower() not in {"", *DEFAULT_PORTS}:
                raise _Malformed("the scheme is http or https, or left out")
            if any(character in rest for character in "@?#,"):
                raise _Malformed("it has a host, a port and a path, and neither user information nor a query")
            authority, slash, path = rest.partition("/")
            host_text, port_text = _split_authority(authority)
            host, is_private = _host_rule(host_text)
            if marker is not None and host_text == "*":
                raise _Malformed("private: marks hosts, and * alone is every host there is")
            port = None if port_text is None else _ANY_PORT if port_text == "*" else _read_port(port_text)
            return cls(
                scheme.lower() or None, host, port, _PathRule.parse(slash + path), is_private or marker is not None
            )
        except _Malformed as exc:
            raise AllowlistError(glob, str(exc)) from None

    def matches(self, target: _Target) -> bool:
        port = DEFAULT_PORTS[target.scheme] if self.port is None else self.port
        return (
            self.scheme in (None, target.scheme)
            and port in (_ANY_PORT, target.port)
            and self.host.fullmatch(target.host) is not None
            and (self.path is None or self.path.matches(target.path))
        )


@dataclass(frozen=True, slots=True)
class _PathRule:
    """Segments to be equal, `*` for any one that is not empty; `is_open`: at least one more follows."""

    segments: tuple[str, ...]
    is_open: bool

    @classmethod
    def parse(cls, path: str) -> _PathRule | None:
        if path in ("", "/*", "/**"):
            return None
        _check_path(path)
        segments = path.split("/")[1:]
        is_open = segments[-1] == "**"
        if is_open:
            segments.pop()
        if any("*" in segment and segment != "*" for segment in segments):
            raise _Malformed("in a path, * is a whole segment, and ** the last one")
        return cls(tuple(segments), is_open)

    def matches(self, path: str) -> bool:
        segments = path.split("/")[1:]
        has_length = len(segments) > len(self.segments) if self.is_open else len(segments) == len(self.segments)
        return has_length and all(
            segment != "" if wanted == "*" else segment == wanted
            for wanted, segment in zip(self.segments, segments, strict=False)
        )


def _host_rule(text: str) -> tuple[re.Pattern[str], bool]:
    """What a glob's host matches, and whether it spells a private host."""
    if "*" not in text:
        host = _normalize_host(text)
        return re.compile(re.escape(host)), is_private_host(host)
    if text == "*":
        return re.compile(".+"), False
    labels = text.lower().removesuffix(".").split(".")
    if not all(_WILD_LABEL.fullmatch(label) and "**" not in label for label in labels):
        raise _Malformed("in a host, * stands for text inside a label of letters, digits and hyphens")
    if not any(character.isalpha() for character in text):
        raise _Malformed("an address is spelled out, without *")
    parts = [_wild_label(label) for label in labels]
    if labels[0] == "*":
        parts[0] = rf"(?:{_IN_LABEL}+\.)*{_IN_LABEL}+"
    return re.compile(r"\.".join(parts)), False


def _wild_label(label: str) -> str:
    return f"{_IN_LABEL}+" if label == "*" else f"{_IN_LABEL}*".join(re.escape(part) for part in label.split("*"))


def _split_authority(authority: str) -> tuple[str, str | None]:
    """The host and the port, as they are written."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None or not found[1]:
        raise _Malformed("it names no valid host")
    return found[1], found[2]


def _read_port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise _Malformed("the port is a number from 1 to 65535")
    return int(text)


def _ascii_host(text: str) -> str:
    if text.isascii():
        return text if text.startswith("[") else text.lower()
    try:
        return idna.encode(text.lower()).decode("ascii")
    except idna.IDNAError:
        raise _Malformed("its host is not a valid international name") from None


def _normalize_host(text: str) -> str:
    if text.startswith("["):
        try:
            # Zone ids are refused: an address that needs one is of this machine's own networks.
            if "%" in text or not text.endswith("]"):
                raise _Malformed("its IPv6 address is not valid")
            return f"[{IPv6Address(text[1:-1])}]"
        except AddressValueError:
            raise _Malformed("its IPv6 address is not valid") from None
    host = _ascii_host(text).removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _Malformed("its host is not a valid name")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers read 127.1, 0x7f.1 and 2130706433 as addresses, each in its own way.
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise _Malformed("its IPv4 address is not written as four decimal numbers") from None
    return host


def _check_characters(text: str) -> None:
    # Of all white space only this one is printable.
    if "\\" in text or " " in text or not text.isprintable():
        raise _Malformed("it holds a backslash, white space or a control character")


def _check_path(path: str) -> None:
    for escape in _ESCAPE.finditer(path):
        if not _HEX_PAIR.fullmatch(escape[1]):
            raise _Malformed("a percent sign in its path is followed by no two hexadecimal digits")
        code = int(escape[1], 16)
        if code in b"/\\" or code < 0x20 or code == 0x7F:
            raise _Malformed("its path holds a percent-encoded slash, backslash or control character")
    decoded = unquote(path, encoding="latin-1")
    if _HIDING_ESCAPE.search(decoded):
        raise _Malformed("its path is percent-encoded twice")
    for segment in decoded.split("/"):
        # Some servers cut `;parameters` off a segment before they resolve dots.
        if segment.partition(";")[0] in (".", ".."):
            raise _Malformed("its path holds a dot segment")


def _without_secrets(url: str) -> str:
    """A malformed URL as it may be told; where one with an `@` keeps its secrets is anybody's guess."""
    return "the URL" if "@" in url else repr(_cut(re.split("[?#]", url, maxsplit=1)[0]))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
