"""`/v1/stream/__ds/…`: subscriptions and the keys of their webhooks (protocol 6, 7). Errors are `{"error": {"code", "message"}}`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import quote, unquote_to_bytes

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import ApiError, problem_of
from streamkeep.proxy.long_json import written
from streamkeep.proxy.request_body import CallerLeft, WholeBody
from streamkeep.proxy.rules import subscription_requests as requests
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.subscription_requests import SubscriptionRefused
from streamkeep.proxy.rules.subscription_tokens import TokenExpired, TokenInvalid
from streamkeep.proxy.rules.webhook_signing import ALGORITHM
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.proxy.service import Service
from streamkeep.proxy.subscriptions import link_json
from streamkeep.storage import (
    DEFAULT_TENANT,
    AlreadyClaimed,
    Delivery,
    InvalidAck,
    Link,
    NoPendingWork,
    StoreError,
    Subscription,
    SubscriptionExists,
    SubscriptionFenced,
    SubscriptionKey,
    SubscriptionNotFound,
    TooManyLinks,
)
from streamkeep.storage.rules.subscriptions import FAILING_AFTER

ROOT = "/v1/stream/__ds/"
# JSON of this size takes a few milliseconds, whatever it holds.
_MAX_PARSED_AT_ONCE_BYTES = 64 * 1024
_JWKS_HEADERS = [("Content-Type", "application/jwk-set+json"), ("Cache-Control", "public, max-age=300")]


class SubscriptionRoutes:
    """Everything below the reserved segment."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _Request(self._service, scope, receive, send).answer()
        except CallerLeft:
            return
        except (SubscriptionRefused, StoreError, ApiError, BadRequest, TokenInvalid, TokenExpired) as exc:
            refusal = _refusal(exc)
            if refusal is None:
                raise
            error = {"code": refusal.code, "message": str(refusal), **refusal.extra}
            problem = problem_of(exc)
            headers = () if problem is None else problem.headers
            await asgi.answer_json(send, refusal.status, {"error": error}, headers)


class _Request:
    """One request, taken apart by its path."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._subscriptions = service.subscriptions
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method: str = scope["method"]
        self._base_url = asgi.base_url(scope, service.settings.public_url)

    async def answer(self) -> None:
        methods, values = _operation(_segments(self._scope))
        if self._method not in methods:
            message = f"only {', '.join(methods)} can be used here"
            raise SubscriptionRefused(405, "METHOD_NOT_ALLOWED", message)
        await methods[self._method](self, *values)

    async def jwks(self) -> None:
        body = json.dumps(await self._subscriptions.public_keys()).encode()
        await asgi.answer(self._send, 200, body, _JWKS_HEADERS)

    async def create(self, id: str) -> None:
        key = await self._own(id)
        config = requests.config(await self._json(), self._service.webhooks.rules)
        _, is_new = await self._subscriptions.create(key, config, self._base_url)
        await self._json_answer(201 if is_new else 200, await self._shown(*await self._subscriptions.subscription(key)))

    async def show(self, id: str) -> None:
        await self._json_answer(200, await self._shown(*await self._subscriptions.subscription(await self._own(id))))

    async def delete(self, id: str) -> None:
        await self._subscriptions.delete(await self._own(id))
        await self._no_content()

    async def link(self, id: str) -> None:
        await self._subscriptions.link(await self._own(id), requests.stream_list(await self._json()))
        await self._no_content()

    async def unlink(self, id: str, path: str) -> None:
        await self._subscriptions.unlink(await self._own(id), requests.stream_path(path, "the path"))
        await self._no_content()

    async def claim(self, id: str) -> None:
        key = await self._own(id)
        worker = requests.worker(await self._json())
        attempt, token = await self._subscriptions.claim(key, worker)
        await self._json_answer(
            200,
            {
                "wake_id": attempt.wake_id,
                "generation": attempt.generation,
                "token": token,
                "streams": map(link_json, attempt.links),
                "lease_ttl_ms": attempt.subscription.config.lease_ttl_ms,
            },
        )

    async def callback(self, id: str) -> None:
        await self._acknowledge(self._by_token(id), Delivery.WEBHOOK)

    async def acknowledge(self, id: str) -> None:
        await self._acknowledge(self._by_token(id), Delivery.PULL_WAKE)

    async def release(self, id: str) -> None:
        key = self._by_token(id)
        request = requests.wake_request(await self._json())
        await self._subscriptions.release(key, self._bearer(), request)
        await self._no_content()

    async def _own(self, id: str) -> SubscriptionKey:
        """A subscription of whoever asks. Raises: ApiError, SubscriptionRefused."""
        principal = await self._service.access.principal(self._scope)
        return SubscriptionKey(principal.tenant, requests.subscription_id(id))

    def _by_token(self, id: str) -> SubscriptionKey:
        """A subscription as the URL names it: who holds a wake's token needs no key. Raises: BadRequest, SubscriptionRefused."""
        tenant = wire.single_parameters(self._scope["query_string"]).get("tenant", DEFAULT_TENANT)
        return SubscriptionKey(wire.check_tenant(tenant), requests.subscription_id(id))

    async def _acknowledge(self, key: SubscriptionKey, delivery: Delivery) -> None:
        request = requests.wake_request(await self._json())
        next_wake = await self._subscriptions.acknowledge(key, delivery, self._bearer(), request)
        await self._json_answer(200, {"ok": True, "next_wake": next_wake})

    async def _shown(self, subscription: Subscription, links: list[Link]) -> dict[str, object]:
        config = subscription.config
        shown: dict[str, object] = {
            "id": subscription.key.id,
            "subscription_id": subscription.key.id,
            "type": config.delivery.value,
            "pattern": config.pattern,
            "streams": map(link_json, links),
            "lease_ttl_ms": config.lease_ttl_ms,
            "created_at": subscription.created_at.isoformat().replace("+00:00", "Z"),
            "status": "failed" if subscription.wake.attempts >= FAILING_AFTER else "active",
            "description": config.description,
        }
        if config.webhook_url is not None:
            signing = {
                "alg": ALGORITHM,
                "kid": await self._subscriptions.key_id(),
                "jwks_url": f"{self._base_url}{ROOT}jwks.json",
            }
            shown["webhook"] = {"url": config.webhook_url, "signing": signing}
        if config.wake_stream is not None:
            shown["wake_stream"] = config.wake_stream
        return shown

    def _bearer(self) -> str:
        """Raises: TokenInvalid."""
        scheme, _, token = (asgi.header(self._scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            raise TokenInvalid
        return token.strip()

    async def _json(self) -> dict[str, object]:
        async with WholeBody(self._receive, self._service.body_budget, max_bytes=requests.MAX_BODY_BYTES) as body:
            if len(body) <= _MAX_PARSED_AT_ONCE_BYTES:
                return requests.json_object(body)
            return await asyncio.to_thread(requests.json_object, body)

    async def _json_answer(self, status: int, value: object) -> None:
        body = b"".join(await written(value))
        await asgi.answer(self._send, status, body, [("Content-Type", "application/json"), asgi.NO_STORE])

    async def _no_content(self) -> None:
        await asgi.answer(self._send, 204, b"", [asgi.NO_STORE])


Operation: TypeAlias = Callable[..., Awaitable[None]]

OPERATIONS: dict[str, dict[str, Operation]] = {
    "jwks.json": {"GET": _Request.jwks, "HEAD": _Request.jwks},
    "subscriptions/{id}": {
        "PUT": _Request.create,
        "GET": _Request.show,
        "HEAD": _Request.show,
        "DELETE": _Request.delete,
    },
    "subscriptions/{id}/streams": {"POST": _Request.link},
    "subscriptions/{id}/streams/{path}": {"DELETE": _Request.unlink},
    "subscriptions/{id}/callback": {"POST": _Request.callback},
    "subscriptions/{id}/ack": {"POST": _Request.acknowledge},
    "subscriptions/{id}/claim": {"POST": _Request.claim},
    "subscriptions/{id}/release": {"POST": _Request.release},
}
"""All that is served below the root: by path and method. `{path}` stands for the rest, slashes included."""


def _operation(segments: list[str]) -> tuple[dict[str, Operation], list[str]]:
    """What can be done at a path, by method, and what stands in it for the names. Raises: SubscriptionRefused."""
    for path, methods in OPERATIONS.items():
        if (values := _values(path, segments)) is not None:
            return methods, values
    raise SubscriptionRefused(404, "NOT_FOUND", "there is nothing here")


def _values(path: str, segments: list[str]) -> list[str] | None:
    """What stands in a request's path for the names of one of `OPERATIONS`, in order; None when it is another's."""
    names = path.split("/")
    if names[-1] == "{path}":
        last = len(names) - 1
        segments = [*segments[:last], *(["/".join(segments[last:])] if segments[last:] else [])]
    if len(names) != len(segments):
        return None
    pairs = list(zip(names, segments, strict=True))
    if any(name != segment for name, segment in pairs if not name.startswith("{")):
        return None
    return [segment for name, segment in pairs if name.startswith("{")]


def _segments(scope: Scope) -> list[str]:
    """The path below the root, decoded after it was split: a subscription's id holds no slash. Raises: SubscriptionRefused."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    _, _, path = raw.partition(b"?")[0].partition(ROOT.encode())
    try:
        return [unquote_to_bytes(segment).decode() for segment in path.split(b"/")]
    except UnicodeDecodeError:
        raise requests.refused("the path is not UTF-8") from None


def _refusal(exc: Exception) -> SubscriptionRefused | None:
    """What an exception means here; None for what nobody foresaw."""
    match exc:
        case SubscriptionRefused():
            return exc
        case TokenInvalid():
            return SubscriptionRefused(401, "TOKEN_INVALID", "this needs the bearer token of the wake")
        case TokenExpired():
            return SubscriptionRefused(401, "TOKEN_EXPIRED", "the token is too old; another wake follows")
        case SubscriptionNotFound():
            return SubscriptionRefused(404, "SUBSCRIPTION_NOT_FOUND", "there is no such subscription")
        case SubscriptionExists():
            return SubscriptionRefused(
                409, "SUBSCRIPTION_ALREADY_EXISTS", "the id is taken by a subscription of another configuration"
            )
        case SubscriptionFenced():
            return SubscriptionRefused(409, "FENCED", str(exc))
        case AlreadyClaimed():
            extra = {"current_holder": exc.holder, "generation": exc.generation}
            return SubscriptionRefused(409, "ALREADY_CLAIMED", "another worker holds the lease", extra)
        case NoPendingWork():
            return SubscriptionRefused(409, "NO_PENDING_WORK", "every stream is acknowledged up to its tail")
        case InvalidAck():
            return SubscriptionRefused(409, "INVALID_OFFSET", str(exc), {"stream": exc.path})
        case TooManyLinks():
            return requests.refused(str(exc))
        case _:
            problem = problem_of(exc)
            return (
                None if problem is None else SubscriptionRefused(problem.status, problem.code.upper(), problem.message)
            )
