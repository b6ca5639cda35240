"""Settings: one frozen value, read once from the environment. The README has a line for each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamkeep.proxy.logs import LogFormat
from streamkeep.proxy.rules import webhook_urls
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.proxy.rules.allowlist import Allowlist, AllowlistError
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.headers import ANY_HEADER, ForwardRule, further_kept
from streamkeep.proxy.rules.signing import MAX_LIFETIME_SECONDS
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.proxy.rules.wire import cancel_after_seconds
from streamkeep.storage.encryption import Keyring


class InvalidSetting(ValueError):
    """A variable has a value that cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose. Durations are seconds, sizes bytes. `on_disconnect` is how long a generation goes on
    without a reader, None: to its end."""

    host: str = "127.0.0.1"
    port: int = 4000
    workers: int = 1
    database_url: str | None = None
    direct_database_url: str | None = None
    database_pool_size: int = 10
    streams_url: str | None = None
    streams_token: str | None = field(default=None, repr=False)
    data_dir: Path = Path(".streamkeep")
    postgres_bin: Path | None = None
    public_url: str | None = None
    allow: Allowlist = field(default_factory=Allowlist.default)
    webhook_allow: Allowlist = field(default_factory=lambda: Allowlist.parse(webhook_urls.DEFAULT_GLOBS))
    upstreams: Upstreams = field(default_factory=Upstreams.default)
    keys: BootstrapKeys = field(default_factory=lambda: BootstrapKeys.parse(()), repr=False)
    jwt_secret: str | None = field(default=None, repr=False)
    jwt_jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_tenant_claim: str = "tenant"
    origins: tuple[str, ...] = ("*",)
    forward_headers: ForwardRule = ANY_HEADER
    keep_headers: frozenset[bytes] = frozenset()
    log_level: str = "info"
    log_format: LogFormat | None = None
    traces: bool = False

    long_poll_seconds: float = 20.0
    sse_seconds: float = 60.0
    heartbeat_seconds: float = 15.0
    reader_stall_seconds: float = 30.0

    connect_seconds: float = 10.0
    first_byte_seconds: float = 600.0
    idle_seconds: float = 300.0
    total_seconds: float = 3600.0
    on_disconnect: float | None = None
    upstream_retries: int = 2
    retry_seconds: float = 20.0

    max_running: int | None = None
    max_per_minute: int | None = None
    max_generations: int = 2000
    max_readers: int = 10_000
    max_turns: int = 10
    max_active_sessions: int = 500

    max_buffered_request_bytes: int = 1024 * 1024
    max_request_bytes: int = 100 * 1024 * 1024
    max_append_bytes: int = 10 * 1024 * 1024
    max_response_bytes: int = 1024 * 1024 * 1024
    stream_budget_bytes: int = 256 * 1024
    process_budget_bytes: int = 64 * 1024 * 1024
    request_budget_bytes: int = 128 * 1024 * 1024

    storage_outage_seconds: float = 60.0
    retention_seconds: float = 24 * 3600.0
    max_retention_seconds: float = 30 * 24 * 3600.0
    url_seconds: float = 24 * 3600.0
    drain_seconds: float = 30.0
    encryption_keys: Keyring = field(default_factory=Keyring)
    observe_endings: bool = True

    @property
    def clocks(self) -> Clocks:
        """Upstream's, of which a request may shorten some."""
        return Clocks(self.connect_seconds, self.first_byte_seconds, self.idle_seconds, self.total_seconds)

    @property
    def has_keys(self) -> bool:
        """Whether keys of some kind are set here; there may be others in the store."""
        return bool(self.keys) or self.jwt_secret is not None or self.jwt_jwks_url is not None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read `STREAMKEEP_*` and `DATABASE_URL`; OpenTelemetry's own variables only tell whether to trace.

        Raises:
            InvalidSetting: a value cannot be used.
        """
        chosen: dict[str, Any] = {}
        for setting in fields(cls):
            variable = _VARIABLES.get(setting.name, f"STREAMKEEP_{setting.name.upper()}")
            text = environ.get(variable)
            if text is None or (text == "" and setting.name not in _MAY_BE_EMPTY):
                continue
            try:
                if setting.name == "upstreams":
                    chosen[setting.name] = _upstreams(text, environ)
                else:
                    chosen[setting.name] = _READERS[setting.name](text)
            except (ValueError, AllowlistError, OSError) as exc:
                raise InvalidSetting(f"{variable}: {exc}") from exc
        if "streams_url" in chosen and "database_url" in chosen:
            raise InvalidSetting("STREAMKEEP_STREAMS_URL: DATABASE_URL is set too, and there is one store")
        if "streams_url" in chosen and "encryption_keys" in chosen:
            raise InvalidSetting(
                "STREAMKEEP_ENCRYPTION_KEYS: what is kept on another stream server is not encrypted here"
            )
        chosen.setdefault("traces", any(environ.get(variable) for variable in _TRACE_ENDPOINTS))
        return cls(**chosen)


_TRACE_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_MIN_JWT_SECRET_CHARACTERS = 32
_VARIABLES = {"database_url": "DATABASE_URL"}
_MAY_BE_EMPTY = frozenset({"allow", "jwt_tenant_claim", "upstreams", "webhook_allow"})


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError("must be a positive number of seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("must be at least 1")
    return value


def _size(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("must be a positive number of bytes")
    return value


def _limit(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("must be a positive number")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be a port number")
    return value


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _allowlist(text: str) -> Allowlist:
    return Allowlist.parse(_list(text))


def _upstreams(text: str, environ: Mapping[str, str]) -> Upstreams:
    """`name=url, …`, or the path of a TOML file."""
    if text.strip().endswith(".toml"):
        return Upstreams.parse_toml(Path(text.strip()).read_text(encoding="utf-8"), environ)
    return Upstreams.parse(text)


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must be an absolute http or https URL")
    return text.rstrip("/")


def _database_url(text: str) -> str:
    """Said here in words of ours: a driver's complaint about a URL quotes it, password and all."""
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValueError("must be a postgresql:// URL")
    if "@" in urlsplit(text).path:
        raise ValueError("cannot be read; special characters in its password must be percent-encoded")
    return text


def streams_url(text: str) -> str:
    """Where another server keeps streams for us: a URL that streams can lie below."""
    url = urlsplit(_url(text))
    if not url.hostname or url.query or url.fragment:
        raise ValueError("must be an http or https URL without a query")
    if url.username or url.password:
        raise ValueError("must hold no password; STREAMKEEP_STREAMS_TOKEN is sent as a bearer token")
    return url.geturl()


def _token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("must be printable ASCII without spaces")
    return text


def _url_seconds(text: str) -> float:
    value = _seconds(text)
    if value > MAX_LIFETIME_SECONDS:
        raise ValueError(f"must be {MAX_LIFETIME_SECONDS} at most, 31 days")
    return value


def _jwt_secret(text: str) -> str:
    if len(text) < _MIN_JWT_SECRET_CHARACTERS:
        raise ValueError(f"must have {_MIN_JWT_SECRET_CHARACTERS} characters or more")
    return text


def _flag(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _level(text: str) -> str:
    if text.lower() not in {"debug", "info", "warning", "error"}:
        raise ValueError("must be debug, info, warning or error")
    return text.lower()


def _log_format(text: str) -> LogFormat:
    try:
        return LogFormat(text.lower())
    except ValueError:
        raise ValueError("must be text or json") from None


_BY_UNIT: dict[str, Callable[[str], Any]] = {
    name: _seconds if name.endswith("_seconds") else _size
    for name in Settings.__dataclass_fields__
    if name.endswith(("_seconds", "_bytes"))
}
_READERS: dict[str, Callable[[str], Any]] = _BY_UNIT | {
    "host": str,
    "port": _port,
    "workers": _positive,
    "database_url": _database_url,
    "direct_database_url": _database_url,
    "database_pool_size": _size,
    "streams_url": streams_url,
    "streams_token": _token,
    "data_dir": Path,
    "postgres_bin": Path,
    "public_url": _url,
    "allow": _allowlist,
    "webhook_allow": _allowlist,
    "keys": lambda text: BootstrapKeys.parse(_list(text)),
    "jwt_secret": _jwt_secret,
    "jwt_jwks_url": _url,
    "jwt_audience": str,
    "jwt_issuer": str,
    "jwt_tenant_claim": str.strip,
    "url_seconds": _url_seconds,
    "origins": _list,
    "forward_headers": lambda text: ForwardRule.parse(_list(text)),
    "keep_headers": lambda text: further_kept(_list(text)),
    "log_level": _level,
    "log_format": _log_format,
    "traces": _flag,
    "upstream_retries": _count,
    "on_disconnect": cancel_after_seconds,
    "max_running": _limit,
    "max_per_minute": _limit,
    "max_generations": _limit,
    "max_turns": _limit,
    "max_active_sessions": _limit,
    "max_readers": _limit,
    "encryption_keys": Keyring.parse,
    "observe_endings": _flag,
}
