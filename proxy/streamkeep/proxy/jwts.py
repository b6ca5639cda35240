"""JSON web tokens: verify one, by a shared secret or by the public keys of whoever issues them.

The algorithm is never the token's choice alone: HS256 goes with the secret, RS256 with RSA keys and ES256 with P-256 keys,
and nothing else is accepted. Where a token says its key is to be found (`jku`, `x5u`, `jwk`) is not looked at.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from streamkeep.proxy.errors import problem
from streamkeep.proxy.rules.access import InvalidCredentials
from streamkeep.proxy.rules.allowlist import Allowed, Allowlist, AllowlistError
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.upstream import PRIVATE, Resolver, UpstreamTransport

logger = logging.getLogger(__name__)

_LEEWAY_SECONDS = 10
_DEADLINE_SECONDS = 10.0
_MAX_AGE_SECONDS = 600.0
_MIN_PAUSE_SECONDS = 10.0
_MAX_PAGE_BYTES = 256 * 1024
_MAX_KEYS = 100
_MAX_KID_CHARACTERS = 256
_OF_TYPE = {"RS256": ("RSA", None), "ES256": ("EC", "P-256")}

PublicKey = Any  # What cryptography makes of a key; PyJWT takes it back.


class Jwts:
    """Verifies tokens as the settings say."""

    def __init__(self, settings: Settings, resolve: Resolver) -> None:
        self._secret = settings.jwt_secret
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        url = settings.jwt_jwks_url
        self._published = None if url is None else PublishedKeys(url, resolve)

    async def close(self) -> None:
        if self._published is not None:
            await self._published.close()

    async def claims(self, token: str) -> Mapping[str, object]:
        """What a token says, when it is genuine and valid now; `exp` must be in it.

        Raises:
            InvalidCredentials: it is not.
            ApiError: 503 while the issuer's keys cannot be had.
        """
        try:
            algorithm, kid = _header(token)
            key = await self._key(algorithm, kid)
            claims: dict[str, object] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": _required(self._audience, self._issuer), "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidCredentials("the token has expired") from None
        except jwt.InvalidAudienceError:
            raise InvalidCredentials("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise InvalidCredentials("the token is by another issuer") from None
        except jwt.MissingRequiredClaimError as exc:
            raise InvalidCredentials(f"the token has no claim {exc.claim!r}") from None
        # What is not JSON, nested without end, or has numbers beyond all time, fails in its own ways.
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            raise InvalidCredentials("the token is not genuine, or not valid now") from None
        return claims

    async def _key(self, algorithm: str, kid: str | None) -> str | PublicKey:
        if algorithm == "HS256" and self._secret is not None:
            return self._secret
        if algorithm in _OF_TYPE and self._published is not None:
            return await self._published.find(algorithm, kid)
        raise InvalidCredentials("tokens signed in this way are not accepted here")


class PublishedKeys:
    """The keys on an issuer's JWKS page: fetched when they are needed, anew every ten minutes, and for an unknown key id
    every ten seconds at most."""

    def __init__(self, url: str, resolve: Resolver) -> None:
        self._url = url
        self._may_be_private = _may_be_private(url)
        self._transport = UpstreamTransport(resolve=resolve)
        self._keys: list[tuple[str, str | None, PublicKey]] = []
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()

    async def close(self) -> None:
        await self._transport.aclose()

    async def find(self, algorithm: str, kid: str | None) -> PublicKey:
        """The key that a token names; the only one of its type where it names none.

        Raises:
            InvalidCredentials: there is no such key.
            ApiError: 503 while there is no page.
        """
        if _is_older(self._fetched_at, _MAX_AGE_SECONDS):
            await self._fetch()
        found = self._found(algorithm, kid)
        if found is None:
            await self._fetch()
            found = self._found(algorithm, kid)
        if self._fetched_at is None:
            raise problem(503, "keys_unavailable", "the issuer's keys cannot be fetched; try again", retry_after=5)
        if found is None:
            raise InvalidCredentials("the token is signed by a key that its issuer does not publish")
        return found

    def _found(self, algorithm: str, kid: str | None) -> PublicKey | None:
        fitting = [key for of, id, key in self._keys if of == algorithm and kid in (None, id)]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetch(self) -> None:
        """Read the page, unless somebody did so just now. What was read before stays when that fails."""
        async with self._fetching:
            if not _is_older(self._tried_at, _MIN_PAUSE_SECONDS):
                return
            self._tried_at = time.monotonic()
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    self._keys = _keys_of(await self._page())
            except (httpx.TransportError, TimeoutError, ValueError, RecursionError) as exc:
                logger.warning("the keys of tokens could not be fetched: %s", type(exc).__name__)
                return
            self._fetched_at = time.monotonic()

    async def _page(self) -> bytes:
        timeouts = dict.fromkeys(("connect", "read", "write"), _DEADLINE_SECONDS)
        request = httpx.Request(
            "GET",
            self._url,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            extensions={PRIVATE: self._may_be_private, "timeout": timeouts},
        )
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                raise ValueError(f"the page was answered with {response.status_code}")
            body = bytearray()
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for piece in response.stream:
                body += piece
                if len(body) > _MAX_PAGE_BYTES:
                    raise ValueError("the page is too large")
            return bytes(body)
        finally:
            await response.aclose()


def _header(token: str) -> tuple[str, str | None]:
    """The algorithm and the key id that a token names. Raises: InvalidCredentials, jwt.PyJWTError, RecursionError."""
    header = jwt.get_unverified_header(token)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise InvalidCredentials("the token names no algorithm")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _MAX_KID_CHARACTERS):
        raise InvalidCredentials("the token's key id is not one")
    return algorithm, kid


def _required(audience: str | None, issuer: str | None) -> list[str]:
    return ["exp", *(["aud"] if audience is not None else []), *(["iss"] if issuer is not None else [])]


def _keys_of(page: bytes) -> list[tuple[str, str | None, PublicKey]]:
    """The signing keys on a page: algorithm, id, key. Those of other kinds are passed over. Raises: ValueError."""
    value = json.loads(page)
    entries = value.get("keys") if isinstance(value, dict) else None
    if not entries or not isinstance(entries, list):
        raise ValueError("the page is not a set of keys")
    found: list[tuple[str, str | None, PublicKey]] = []
    for entry in entries[:_MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        for algorithm, (kty, curve) in _OF_TYPE.items():
            is_fitting = entry.get("kty") == kty and entry.get("alg", algorithm) == algorithm
            if is_fitting and (curve is None or entry.get("crv") == curve):
                kid = entry.get("kid")
                found += [(algorithm, kid if isinstance(kid, str) else None, key) for key in _public(algorithm, entry)]
    return found


def _public(algorithm: str, entry: dict[str, object]) -> list[PublicKey]:
    """The key, if it can be read. A private part that somebody published is left out."""
    public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        return [ECAlgorithm.from_jwk(public) if algorithm == "ES256" else RSAAlgorithm.from_jwk(public)]
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return []


def _is_older(instant: float | None, seconds: float) -> bool:
    return instant is None or time.monotonic() - instant >= seconds


def _may_be_private(url: str) -> bool:
    """A URL that an operator spells admits the private host that stands in it, as on the allowlist."""
    try:
        decision = Allowlist.parse([url.partition("?")[0]]).decide(url)
    except AllowlistError:
        return False
    return isinstance(decision, Allowed) and decision.origin.may_be_private
