"""Who asks, and what they may do: the values behind every route's first question.

A request carries at most one credential of ours: an API key, a bootstrap key or a JWT. Where it may stand depends on the
route, since on some of them `Authorization` is the vendor's. `access.py` turns it into a `Principal`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.allowlist import Allowlist, AllowlistError, Refused
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import DEFAULT_TENANT, ApiKey

MAX_CREDENTIAL_BYTES = 8 * 1024

SDK_KEY_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Where vendors' SDKs put the key that they are given."""

_MAX_SUBJECT_CHARACTERS = 256
_MAX_LIMIT = 2**31 - 1
_API_KEY = re.compile(r"stk_([0-9a-f]{16})_([0-9a-f]{64})")
_ANY_API_KEY = re.compile(rb"stk_[0-9a-f]{16}_[0-9a-f]{64}")
_BOOTSTRAP_KEY = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9._~:@-]{0,199})=)?([A-Za-z0-9._~+/-]{16,512}={0,2})")


class Right(StrEnum):
    """What a signed URL may permit; the values are those on the wire."""

    READ = "read"
    CANCEL = "cancel"
    APPEND = "append"


class Credentials(Enum):
    """Where a request may carry our credential. `Streamkeep-Key` is ours everywhere, and wins over the others."""

    OURS = "ours"
    """Also `Authorization: Bearer`: routes on which no vendor is called."""

    VENDORS = "vendors"
    """Nowhere else: the other headers are the vendor's and go to upstream."""

    SDKS = "sdks"
    """Also in whichever header an SDK puts its key: routes where the vendor's key is configured here."""

    PROXY = "proxy"
    """Also `Authorization: Bearer` or the parameter `secret`: the open proxy protocol."""


_PLACES = {
    Credentials.OURS: ("Streamkeep-Key", "Authorization"),
    Credentials.VENDORS: ("Streamkeep-Key",),
    Credentials.SDKS: ("Streamkeep-Key", "Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key"),
    Credentials.PROXY: ("Streamkeep-Key", "Authorization"),
}
_OUR_HEADERS = {
    credentials: frozenset(name.lower().encode() for name in names) for credentials, names in _PLACES.items()
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How many generations at once, and how many begun within a minute; None: no limit."""

    max_running: int | None = None
    max_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """In whose name a request acts. `key_id` names the key that was used and `subject` the user that a JWT speaks of.

    `upstreams` are the named upstreams and URL globs that it may call; None: all that this proxy may.
    """

    tenant: str
    key_id: str | None = None
    subject: str | None = None
    upstreams: tuple[str, ...] | None = None
    limits: Limits = Limits()
    is_operator: bool = False

    def may_call(self, url: str) -> bool:
        """Whether a URL is among those that it may call. A named upstream is asked for by its name."""
        if self.upstreams is None:
            return True
        globs = _globs(tuple(entry for entry in self.upstreams if is_glob(entry)))
        return not isinstance(globs.decide(url), Refused)

    def may_use(self, name: str) -> bool:
        """Whether it may call a named upstream."""
        return self.upstreams is None or name in self.upstreams

    @property
    def holder(self) -> str | None:
        """Under which name its generations are counted against its limits; None where nobody is known."""
        if self.key_id is not None:
            return f"key:{self.key_id}"
        return None if self.subject is None else f"subject:{self.subject}"


def is_glob(upstream: str) -> bool:
    """Whether an entry of `upstreams` is a URL glob; a name has none of these."""
    return any(character in upstream for character in ".:/*")


@lru_cache(maxsize=256)
def _globs(entries: tuple[str, ...]) -> Allowlist:
    return Allowlist.parse(entries)


class InvalidCredentials(Exception):
    """What was presented opens nothing; the message says why, and holds none of it."""


# Development mode


def is_from_here(
    address: str | None, headers: Collection[tuple[bytes, bytes]], *, origins: Iterable[str], public_url: str | None
) -> bool:
    """Whether a request is this machine's own: from a loopback address, and by no page from elsewhere, which a browser
    would let in with its user's address.

    Such a page tells its origin, unless its own name leads here (DNS rebinding), and then it is the name that is asked
    for: one with a dot in it, since nobody elsewhere can have another. Pages that are listed by their origin may come.
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    pages = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    ours = None if public_url is None else urlsplit(public_url).hostname
    return (
        address is not None
        and _is_loopback(address)
        and all("." not in host or _is_loopback(host) or host == ours for host in map(_host_of, hosts))
        and all(page in origins or _is_loopback(_host_of(page.partition("://")[2])) for page in pages)
    )


@lru_cache(maxsize=64)
def _host_of(authority: str) -> str:
    """The host in `host:port`; empty for what cannot be read."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# What a request presents


def presented(headers: Iterable[tuple[bytes, bytes]], query_string: bytes, credentials: Credentials) -> str | None:
    """The credential of ours that a request carries, if any.

    Raises:
        BadRequest: a header that carries it is repeated.
        InvalidCredentials: `Authorization` is ours here and is no bearer token, or the credential is far too long.
    """
    values = wire.single_headers(headers, _PLACES[credentials])
    found = next((name for name, value in values.items() if value), None)
    text = None if found is None else values[found]
    if found == "Authorization" and text is not None:
        text = _bearer(text)
    if text is None and credentials is Credentials.PROXY:
        text = wire.single_parameters(query_string).get("secret")
    if text is None:
        return None
    if len(text) > MAX_CREDENTIAL_BYTES:
        raise InvalidCredentials("the credential is too long to be one")
    return text.strip()


def is_misplaced(
    text: str | None,
    headers: Iterable[tuple[bytes, bytes]],
    query_string: bytes,
    credentials: Credentials,
    keys: BootstrapKeys,
) -> bool:
    """Whether a key of ours stands where it would travel on to a vendor, or into somebody's log: any API key, the
    credential that was presented once more, or a bootstrap key in a place for vendors' keys."""
    ours = _OUR_HEADERS[credentials]
    # Neither a header's value nor a credential has an end of line in it.
    text_of_others = b"\n".join([value for name, value in headers if name not in ours])
    if credentials is not Credentials.PROXY:
        text_of_others += b"\n" + query_string
    if _ANY_API_KEY.search(text_of_others):
        return True
    if text is not None and text.encode("latin-1", "replace") in text_of_others:
        return True
    if not keys:
        return False
    vendors = SDK_KEY_HEADERS - ours
    values = [value.decode("latin-1") for name, value in headers if name in vendors]
    return any(keys.find(value.rpartition(" ")[2]) is not None for value in values)


def _bearer(value: str) -> str:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise InvalidCredentials("Authorization must be a bearer token")
    return token.strip()


# API keys


def format_api_key(id: str, secret: str) -> str:
    """A key as its owner sees it. The form is one that scanners for leaked secrets can be taught."""
    return f"stk_{id}_{secret}"


def api_key_id(text: str) -> str | None:
    """The id in an API key; None for what is none."""
    match = _API_KEY.fullmatch(text)
    return None if match is None else match[1]


def digest(secret: str) -> bytes:
    """What is stored of a secret, and compared."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def api_key_digest(text: str) -> bytes:
    """The digest of an API key's secret."""
    return digest(text.rpartition("_")[2])


def principal_of_key(key: ApiKey, text: str, *, now: datetime) -> Principal:
    """In whose name the holder of a key acts. Raises: InvalidCredentials."""
    if not hmac.compare_digest(key.digest, api_key_digest(text)):
        raise InvalidCredentials("there is no such key")
    if key.revoked_at is not None:
        raise InvalidCredentials("the key was revoked")
    if key.expires_at is not None and now >= key.expires_at:
        raise InvalidCredentials("the key has expired")
    return Principal(
        key.tenant,
        key_id=key.id,
        upstreams=key.upstreams,
        limits=Limits(key.max_running, key.max_per_minute),
        is_operator=key.is_operator,
    )


@dataclass(frozen=True, slots=True)
class BootstrapKeys:
    """Keys from the environment: `secret`, which is the operator's, or `tenant=secret`, which is a tenant's."""

    _by_digest: Mapping[bytes, Principal] = field(repr=False)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> BootstrapKeys:
        """Raises: ValueError, whose message holds none of it."""
        found: dict[bytes, Principal] = {}
        for number, text in enumerate(texts, start=1):
            match = _BOOTSTRAP_KEY.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"key {number} must be [tenant=]secret, the secret 16 or more of A-Z a-z 0-9 . _ ~ + / -"
                )
            hashed = digest(match[2])
            if hashed in found:
                raise ValueError(f"key {number} stands twice")
            key_id = f"env-{hashed.hex()[:12]}"
            found[hashed] = Principal(match[1] or DEFAULT_TENANT, key_id=key_id, is_operator=match[1] is None)
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    def find(self, text: str) -> Principal | None:
        """Whose key it is. Every key is compared, each in constant time."""
        hashed = digest(text)
        matches = [one for known, one in self._by_digest.items() if hmac.compare_digest(known, hashed)]
        return matches[0] if matches else None


# JWTs


def principal_of_claims(claims: Mapping[str, object], *, tenant_claim: str | None) -> Principal:
    """In whose name the bearer of a verified JWT acts; without a claim to look for, everybody is of the default tenant.

    Raises:
        InvalidCredentials: there is no tenant, or a claim is not of its form.
    """
    tenant = DEFAULT_TENANT if tenant_claim is None else claims.get(tenant_claim)
    subject = claims.get("sub")
    is_operator = claims.get("operator", False)
    if not isinstance(tenant, str):
        raise InvalidCredentials(f"the token has no claim {tenant_claim!r} with a tenant's name")
    if subject is not None and not (isinstance(subject, str) and 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS):
        raise InvalidCredentials("the claim 'sub' must be a short text")
    # JSON also spells NUL and halves of characters, which no database takes.
    if subject is not None and not subject.isprintable():
        raise InvalidCredentials("the claim 'sub' holds characters that cannot be printed")
    if not isinstance(is_operator, bool):
        raise InvalidCredentials("the claim 'operator' must be true or false")
    try:
        wire.check_tenant(tenant)
    except BadRequest as exc:
        raise InvalidCredentials(str(exc)) from None
    return Principal(
        tenant,
        subject=subject,
        upstreams=_upstreams(claims.get("upstreams")),
        limits=_limits(claims.get("limits", {})),
        is_operator=is_operator,
    )


def check_upstreams(entries: Iterable[str]) -> tuple[str, ...]:
    """Names of upstreams and URL globs. Raises: AllowlistError."""
    found = tuple(entries)
    Allowlist.parse([entry for entry in found if is_glob(entry)])
    return found


def _upstreams(claim: object) -> tuple[str, ...] | None:
    if claim is None:
        return None
    if not isinstance(claim, list) or not all(isinstance(entry, str) for entry in claim):
        raise InvalidCredentials("the claim 'upstreams' must be a list of names and URL globs")
    try:
        return check_upstreams(claim)
    except AllowlistError as exc:
        raise InvalidCredentials(f"the claim 'upstreams': {exc}") from None


def _limits(claim: object) -> Limits:
    if not isinstance(claim, dict):
        raise InvalidCredentials("the claim 'limits' must be an object")
    values = [claim.get("maxRunning"), claim.get("maxPerMinute")]
    if any(value is not None and (type(value) is not int or not 0 < value <= _MAX_LIMIT) for value in values):
        raise InvalidCredentials("the claim 'limits' has maxRunning and maxPerMinute, numbers above 0")
    return Limits(*values)
