"""Named upstreams: where `/u/{name}/…` leads, and what is sent along.

Written as `name=url, name=url`, or in a TOML file with a table for each name:

    [openai]
    url = "https://api.openai.com"
    headers = { Authorization = "Bearer ${OPENAI_API_KEY}" }   # callers need no key of the vendor's, and theirs is not sent
    seconds = { first_byte = 900, idle = 600 }                 # its clocks, where they are others than everybody's

    [ours]
    url = "private:http://models.example.com:8000"

`${NAME}` stands for a variable of the environment. A URL that spells a private host admits it, and so does the mark
`private:` before a name that leads to one, as in `allowlist`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamkeep.proxy.rules.access import SDK_KEY_HEADERS
from streamkeep.proxy.rules.allowlist import Allowed, Allowlist, AllowlistError, Refused
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.headers import InvalidHeader, forwarded_headers

DEFAULT = "openai=https://api.openai.com,anthropic=https://api.anthropic.com,demo=http://127.0.0.1:4001"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FIELDS = frozenset({"url", "headers", "seconds"})
_MARK = "private:"
_ANY_CLOCKS = Clocks(1.0, 1.0, 1.0, 1.0)


class InvalidUpstream(ValueError):
    """The description of an upstream cannot be used; the message names it and holds no secret."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A vendor by name. `headers` are sent with every request in the place of the caller's; `times` are those of its
    clocks that are its own."""

    name: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    times: Mapping[str, float]
    _allow: Allowlist = field(repr=False)

    @property
    def has_credentials(self) -> bool:
        """Whether callers need none of the vendor's: what their SDK sends as a key is then meant for us."""
        return any(name.lower() in SDK_KEY_HEADERS for name, _ in self.headers)

    def decide(self, path: str) -> Allowed | Refused:
        """Whether the URL for a path, which begins with a slash and may carry a query, may be called."""
        return self._allow.decide(self.url + path)


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The upstreams that have names."""

    by_name: Mapping[str, Upstream]

    @classmethod
    def parse(cls, text: str) -> Upstreams:
        """Read `name=url, name=url`. Raises: InvalidUpstream."""
        tables: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, url = part.partition("=")
            if not equals:
                raise InvalidUpstream(f"{name[:64]!r} is not of the form name=url")
            if name.strip() in tables:
                raise InvalidUpstream(f"{name.strip()[:64]!r} stands twice")
            tables[name.strip()] = {"url": url.strip()}
        return cls._of_tables(tables, {})

    @classmethod
    def parse_toml(cls, text: str, environ: Mapping[str, str]) -> Upstreams:
        """Read a table for each name. Raises: InvalidUpstream."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise InvalidUpstream(f"the file is not TOML: {exc}") from exc
        return cls._of_tables(tables, environ)

    @classmethod
    def default(cls) -> Upstreams:
        """OpenAI, Anthropic, and the demo vendor on this machine."""
        return cls.parse(DEFAULT)

    @classmethod
    def _of_tables(cls, tables: Mapping[str, Any], environ: Mapping[str, str]) -> Upstreams:
        return cls({name: _upstream(name, table, environ) for name, table in tables.items()})


def _upstream(name: str, table: object, environ: Mapping[str, str]) -> Upstream:
    if not _NAME.fullmatch(name):
        raise InvalidUpstream(f"the name {name[:64]!r} must match {_NAME.pattern}")
    if not isinstance(table, dict) or not isinstance(table.get("url"), str):
        raise InvalidUpstream(f"{name}: it needs a table with a url")
    unknown = table.keys() - _FIELDS
    if unknown:
        raise InvalidUpstream(f"{name}: unknown: {', '.join(sorted(unknown))}")
    glob = table["url"].rstrip("/")
    url = glob.removeprefix(_MARK)
    if "*" in url or not url.startswith(("http://", "https://")):
        raise InvalidUpstream(f"{name}: its url must be an absolute http or https URL")
    try:
        allow = Allowlist.parse([f"{glob}/**"])
    except AllowlistError as exc:
        raise InvalidUpstream(f"{name}: {exc.reason}") from None
    return Upstream(name, url, _headers(name, table.get("headers", {}), environ), _times(name, table), allow)


def _times(name: str, table: Mapping[str, Any]) -> Mapping[str, float]:
    times = table.get("seconds", {})
    if not isinstance(times, dict):
        raise InvalidUpstream(f"{name}: seconds is a table of numbers")
    try:
        _ANY_CLOCKS.with_times(times)
    except ValueError as exc:
        raise InvalidUpstream(f"{name}: {exc}") from None
    return times


def _headers(name: str, table: object, environ: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise InvalidUpstream(f"{name}: headers is a table of texts")
    headers: list[tuple[bytes, bytes]] = []
    for header, text in table.items():
        missing = [variable for variable in _VARIABLE.findall(text) if variable not in environ]
        if missing:
            raise InvalidUpstream(f"{name}: the variable {missing[0]} is not set")
        value = _VARIABLE.sub(lambda found: environ[found[1]], text)
        try:
            sent = forwarded_headers([(header.encode(), value.encode())])
        except InvalidHeader:
            sent = []
        if not sent:
            raise InvalidUpstream(f"{name}: the header {header[:64]!r} cannot be sent")
        headers += sent
    return tuple(headers)
