"""Who asks: from a request's credential, or its signed URL, to what it may do.

Keys are read from the store and remembered for two seconds, so a key that is revoked anywhere is useless everywhere within
five. In development mode, while there is no key anywhere, whoever comes from this machine may do everything; that ends, as
soon, for good with the first key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from starlette.types import Scope

from streamkeep.proxy.errors import ApiError, Problem, problem
from streamkeep.proxy.jwts import Jwts
from streamkeep.proxy.remembered import Remembered, RememberedByName
from streamkeep.proxy.rules import access as rules
from streamkeep.proxy.rules.access import Credentials, InvalidCredentials, Principal, Right
from streamkeep.proxy.rules.signing import SignatureProblem, Signed, Signer, is_signed
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.upstream import Resolver
from streamkeep.storage import DEFAULT_TENANT, GenerationKey, Store, StreamKey

K = TypeVar("K", GenerationKey, StreamKey)

KEYS_SECONDS = 2.0
_SIGNER_SECONDS = 3.0
_UNKNOWN_SIGNER_SECONDS = 1.0
_MAX_KEYS = 1000

# Who comes from this machine in development mode.
_ANYBODY = Principal(DEFAULT_TENANT, is_operator=True)


@dataclass(slots=True)
class Permit(Generic[K]):
    """The thing that a request may touch. `is_public`: nobody had to show anything for it."""

    key: K
    is_public: bool


class Access:
    """Tells who asks and what they may do; one for each service."""

    def __init__(self, store: Store, settings: Settings, resolve: Resolver) -> None:
        self._settings = settings
        self._jwts = Jwts(settings, resolve)
        self._has_keys = Remembered(store.keys.exists)
        self._keys = RememberedByName(store.keys.find, max_values=_MAX_KEYS)
        self._store = store
        self._signers = Remembered(self._read_signer)
        self._signer: Signer | None = None

    def __repr__(self) -> str:
        return f"Access(keys={len(self._keys)})"

    async def open(self) -> None:
        """Read the keys. Raises: StoreError."""
        await self._renew_signer(_SIGNER_SECONDS)

    async def close(self) -> None:
        await self._jwts.close()

    async def is_open(self) -> bool:
        """Development mode: no keys in the settings, and none was ever made in the store. Raises: StoreUnavailable."""
        if self._settings.has_keys:
            return False
        return not await self._has_keys.get(max_age_seconds=KEYS_SECONDS)

    async def principal(self, scope: Scope, credentials: Credentials = Credentials.OURS) -> Principal:
        """In whose name a request acts.

        Raises:
            ApiError: 401 `missing_credentials` or `invalid_credentials`; 400 `misplaced_credentials` for a key of ours that
                would go to a vendor; in development mode 403 `not_permitted` for whoever comes from elsewhere.
            BadRequest: a header that carries the credential is repeated.
            StoreUnavailable: nobody can tell.
        """
        headers, query_string = scope["headers"], scope["query_string"]
        await self._renew_signer(_SIGNER_SECONDS)
        try:
            text = rules.presented(headers, query_string, credentials)
            if rules.is_misplaced(text, headers, query_string, credentials, self._settings.keys):
                message = "a key of this proxy stands where a vendor would see it; send it in the header Streamkeep-Key"
                raise problem(400, "misplaced_credentials", message)
            is_open = await self.is_open()
            if text is not None and not is_open:
                return await self._principal_of(text)
        except InvalidCredentials as exc:
            raise _unauthorized("invalid_credentials", str(exc), ' error="invalid_token"') from None
        if not is_open:
            message = "this needs a key, in the header Streamkeep-Key or as bearer token"
            raise _unauthorized("missing_credentials", message)
        client = scope.get("client")
        if not rules.is_from_here(
            client and client[0], headers, origins=self._settings.origins, public_url=self._settings.public_url
        ):
            raise problem(403, "not_permitted", "this proxy has no keys yet and serves its own machine alone")
        return _ANYBODY

    async def check_operator(self, scope: Scope) -> None:
        """Whoever asks may do what concerns all tenants. Raises: ApiError, as `principal`, and 403 `not_permitted`."""
        if not (await self.principal(scope)).is_operator:
            raise problem(403, "not_permitted", "this is for the operator's keys")

    async def permit(
        self, scope: Scope, parameters: Mapping[str, str], right: Right, named: Callable[[str], K]
    ) -> Permit[K]:
        """What a request addresses, when it may do that with it: by its signed URL or, without one, in its own name.

        `named` gives the key in a tenant. A signature that is there must be good, whatever else the request carries.

        Raises:
            ApiError: as `principal`; 401 `signature_invalid` or `signature_expired`.
            BadRequest: the tenant's name cannot be one.
        """
        if not is_signed(parameters):
            principal = await self.principal(scope)
            return Permit(named(principal.tenant), is_public=principal is _ANYBODY)
        key = named(parameters.get("tenant", DEFAULT_TENANT))
        await self._renew_signer(_SIGNER_SECONDS)
        if not self.signer.knows(parameters):
            # Another instance may sign with a new key already.
            await self._renew_signer(_UNKNOWN_SIGNER_SECONDS)
        found = self.signer.check(key, parameters, now=time.time(), right=right)
        if found is not None:
            raise _refused(found)
        return Permit(key, is_public=False)

    def expiry(self, seconds: float | None = None) -> int:
        """The unix second until which a URL is to be signed that is good for `seconds` from now, or for the usual ones."""
        return math.ceil(time.time() + (self._settings.url_seconds if seconds is None else seconds))

    def signed_query(self, key: Signed, *rights: Right, expires: int | None = None) -> str:
        """The query string of a fresh URL that permits `rights` (reading, when none is given) until `expires`."""
        until = self.expiry() if expires is None else expires
        return self.signer.query(key, expires=until, rights=rights or (Right.READ,))

    @property
    def signer(self) -> Signer:
        assert self._signer is not None, "access is not open"
        return self._signer

    async def _principal_of(self, text: str) -> Principal:
        """Raises: InvalidCredentials, ApiError, StoreUnavailable."""
        found = self._settings.keys.find(text)
        if found is not None:
            return found
        id = rules.api_key_id(text)
        if id is not None:
            key = await self._keys.get(id, max_age_seconds=KEYS_SECONDS)
            if key is None:
                raise InvalidCredentials("there is no such key")
            return rules.principal_of_key(key, text, now=datetime.now(UTC))
        if text.count(".") == 2:
            tenant_claim = self._settings.jwt_tenant_claim or None
            return rules.principal_of_claims(await self._jwts.claims(text), tenant_claim=tenant_claim)
        raise InvalidCredentials("there is no such key")

    async def _renew_signer(self, max_age_seconds: float) -> None:
        self._signer = await self._signers.get(max_age_seconds=max_age_seconds)

    async def _read_signer(self) -> Signer:
        return Signer.of(await self._store.keys.signing_keys(), now=datetime.now(UTC))


def _unauthorized(code: str, message: str, detail: str = "") -> ApiError:
    return ApiError(Problem(401, code, message, (("WWW-Authenticate", f"Bearer{detail}"),)))


def _refused(found: SignatureProblem) -> ApiError:
    if found is SignatureProblem.EXPIRED:
        return problem(401, found, "the URL has expired; with a key, ask for a fresh one")
    return problem(401, found, "the URL's signature is not ours, or not for this")
