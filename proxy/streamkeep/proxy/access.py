"""Who asks: from a request's credential, or its signed URL, to what it may do.

In development mode, while there is no key anywhere, whoever comes from this machine may do everything.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.types import Scope

from streamkeep.proxy.errors import ApiError, problem
from streamkeep.proxy.rules.access import Credentials, Principal, Right
from streamkeep.proxy.rules.signing import SignatureProblem, Signer, is_signed
from streamkeep.proxy.settings import Settings
from streamkeep.storage import DEFAULT_TENANT, GenerationKey, Store, StreamKey

K = TypeVar("K", GenerationKey, StreamKey)


@dataclass(frozen=True, slots=True)
class Permit(Generic[K]):
    """The thing that a request may touch. `is_public`: nobody had to show anything for it."""

    key: K
    is_public: bool


class Access:
    """Tells who asks and what they may do; one for each service."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._signer: Signer | None = None

    async def open(self) -> None:
        """Read the keys. Raises: StoreError."""
        self._signer = Signer(await self._store.signing_key())

    @property
    def is_open(self) -> bool:
        """Development mode: no keys anywhere."""
        return True

    async def principal(self, scope: Scope, credentials: Credentials = Credentials.OURS) -> Principal:
        """In whose name a request acts.

        Raises:
            ApiError: 401 `missing_credentials` or `invalid_credentials`; in development mode 403 `not_permitted` for whoever
                comes from elsewhere.
        """
        if not _is_loopback(scope):
            raise problem(403, "not_permitted", "this proxy has no keys yet and serves its own machine alone")
        return Principal(DEFAULT_TENANT)

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
            return Permit(named((await self.principal(scope)).tenant), self.is_open)
        key = named(parameters.get("tenant", DEFAULT_TENANT))
        found = self.signer.check(key, parameters, now=time.time(), right=right)
        if found is not None:
            raise _refused(found)
        return Permit(key, is_public=False)

    def signed_query(self, key: GenerationKey | StreamKey, *rights: Right) -> str:
        """The query string of a fresh URL that permits `rights` (reading, when none is given)."""
        expires = int(time.time() + self._settings.url_seconds)
        return self.signer.query(key, expires=expires, rights=rights or (Right.READ,))

    @property
    def signer(self) -> Signer:
        assert self._signer is not None, "access is not open"
        return self._signer


def _refused(found: SignatureProblem) -> ApiError:
    if found is SignatureProblem.EXPIRED:
        return problem(401, found, "the URL has expired; with a key, ask for a fresh one")
    return problem(401, found, "the URL's signature is not ours, or not for this")


def _is_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
