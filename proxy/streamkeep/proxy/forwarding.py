"""From a caller's request to a generation: what every route that calls upstream does alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from starlette.types import Receive, Scope

from streamkeep.proxy.attempts import UpstreamRequest
from streamkeep.proxy.errors import problem
from streamkeep.proxy.generations import Generations
from streamkeep.proxy.request_body import BodyBudget, RequestBody
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.access import Limits, Principal
from streamkeep.proxy.rules.allowlist import OTHER, Allowed, Refused
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.headers import forwarded_headers
from streamkeep.proxy.settings import Settings
from streamkeep.storage import Generation, GenerationKey, Terms

# Whom limits are counted for where there are no keys.
_ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request may go. `headers` are ours to add, and replace the caller's, of which those in `without` do not
    travel on; `times` are the clocks that are upstream's own."""

    target: Allowed
    headers: tuple[tuple[bytes, bytes], ...] = ()
    without: frozenset[bytes] = frozenset()
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The name for people: of a URL no more than the host, since paths and queries may hold secrets."""
        return self.target.origin.authority if self.target.label == OTHER else self.target.label


class Forwarder:
    """Sends callers' requests upstream as generations."""

    def __init__(self, generations: Generations, settings: Settings, budget: BodyBudget) -> None:
        self._generations = generations
        self._budget = budget
        self._settings = settings

    def allowed(self, principal: Principal, url: str) -> Destination:
        """The destination that a caller's URL names. Raises: ApiError (400, 403)."""
        decision = self._settings.allow.decide(url)
        if isinstance(decision, Refused):
            if decision.is_malformed:
                raise problem(400, "invalid_upstream_url", decision.message)
            raise problem(403, "upstream_not_allowed", decision.message)
        if not principal.may_call(url):
            raise problem(403, "not_permitted", "the key that was used may not call this upstream")
        return Destination(decision)

    async def forward(
        self,
        principal: Principal,
        key: GenerationKey,
        method: str,
        destination: Destination,
        scope: Scope,
        receive: Receive,
        *,
        is_reader: bool = False,
    ) -> tuple[Generation, bool]:
        """Call upstream with the caller's headers and body, or join whoever did: the row once upstream's verdict is known,
        and whether it was a replay. `is_reader`: the caller will be answered with what upstream says.

        Raises:
            ApiError: the request is too large, or as `Generations.create` says.
            BadRequest, InvalidHeader: its headers cannot be forwarded.
            CallerLeft: there is nobody to answer.
            FingerprintMismatch, StoreUnavailable: as `Generations.create` says.
        """
        terms = self._terms(principal, destination, scope)
        clocks = self._clocks(destination, scope)
        # The answer looks at it, and then it is too late to refuse.
        wire.view_header(scope["headers"])
        headers = _replaced(forwarded_headers(scope["headers"], self._settings.forward_headers), destination)
        limit = self._settings.max_request_bytes
        content_length = wire.single_headers(scope["headers"], ("Content-Length",))["Content-Length"]
        if content_length is not None and int(content_length) > limit:
            raise problem(413, "body_too_large", f"request bodies may have up to {limit} bytes")
        body = await RequestBody.read(
            receive, self._budget, max_buffered_bytes=self._settings.max_buffered_request_bytes, max_bytes=limit
        )
        if body.content is None and content_length is not None:
            headers.append((b"Content-Length", content_length.encode()))
        request = UpstreamRequest(method, destination.target, headers, body, clocks)
        return await self._generations.create(key, request, terms, reader=receive if is_reader else None)

    async def post(
        self,
        key: GenerationKey,
        destination: Destination,
        headers: list[tuple[bytes, bytes]],
        content: bytes,
        *,
        holder: str | None,
        limits: Limits,
    ) -> Generation:
        """Make a call of this service's own, in the name of somebody who is not here: the row once upstream's verdict is
        known. It goes on to its end whoever reads it. Raises: as `Generations.create` does.
        """
        body = await RequestBody.of(content, self._budget)
        request = UpstreamRequest("POST", destination.target, headers, body, self._settings.clocks)
        terms = self._limited(holder, limits, destination)
        generation, _ = await self._generations.create(key, request, terms)
        return generation

    def _terms(self, principal: Principal, destination: Destination, scope: Scope) -> Terms:
        """What the caller may have, its own limits or else everybody's, and what it asks for. Raises: BadRequest."""
        settings = self._settings
        asked = wire.single_headers(scope["headers"], (wire.RETENTION, wire.ON_DISCONNECT))
        policy = asked[wire.ON_DISCONNECT]
        return replace(
            self._limited(principal.holder, principal.limits, destination),
            retention_seconds=wire.retention_seconds(asked[wire.RETENTION], at_most=settings.max_retention_seconds),
            cancel_after_seconds=settings.on_disconnect if policy is None else wire.cancel_after_seconds(policy),
        )

    def _limited(self, holder: str | None, limits: Limits, destination: Destination) -> Terms:
        """What somebody may have: his own limits, or else everybody's."""
        settings = self._settings
        max_running = settings.max_running if limits.max_running is None else limits.max_running
        max_per_minute = settings.max_per_minute if limits.max_per_minute is None else limits.max_per_minute
        is_limited = max_running is not None or max_per_minute is not None
        return Terms(
            holder=holder or (_ANYBODY if is_limited else None),
            max_running=max_running,
            max_per_minute=max_per_minute,
            upstream=destination.shown,
        )

    def _clocks(self, destination: Destination, scope: Scope) -> Clocks:
        clocks = self._settings.clocks.with_times(destination.times)
        asked = wire.single_headers(scope["headers"], (wire.TIMEOUT,))[wire.TIMEOUT]
        return clocks if asked is None else clocks.shortened(asked)


def _replaced(headers: Iterable[tuple[bytes, bytes]], destination: Destination) -> list[tuple[bytes, bytes]]:
    dropped = {name.lower() for name, _ in destination.headers} | destination.without
    return [*(pair for pair in headers if pair[0].lower() not in dropped), *destination.headers]
