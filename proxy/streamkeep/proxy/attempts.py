"""Attempts: one request, sent upstream until it is accepted, refused or unknown.

A request is sent again only while it is certain that upstream has not got it (no connection could be made), or when
upstream itself refused it with 429 or 503. Everything else leaves the outcome unknown, and the generation ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from streamkeep.proxy.calls import Call
from streamkeep.proxy.connections import ResponseBody
from streamkeep.proxy.errors import ApiError
from streamkeep.proxy.http1 import Headers, ResponseHead
from streamkeep.proxy.relay import End
from streamkeep.proxy.request_body import CallerLeft, RequestBody
from streamkeep.proxy.rules.allowlist import Allowed
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.headers import kept_headers
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.tallies import GenerationTally
from streamkeep.proxy.upstream import AddressRefused, Resolver, UpstreamTransport
from streamkeep.storage import Code, Refusal, UpstreamHead

_T = TypeVar("_T")

_MAX_ERROR_BODY_BYTES = 64 * 1024
_ERROR_BODY_SECONDS = 10.0
_MAX_CONTENT_TYPE_CHARACTERS = 256
_RETRYABLE_STATUSES = frozenset({429, 503})
_BACK_OFF = wait_random_exponential(multiplier=0.2, max=5.0)
# The status of a refusal that is ours to tell, not upstream's.
NOT_UPSTREAMS = 0


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What to send upstream: where a rule allows it, end-to-end headers only, and how long upstream may take."""

    method: str
    target: Allowed
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    body: RequestBody
    clocks: Clocks

    def fingerprint(self) -> bytes:
        """What makes two requests the same: method, URL and the body's digest (complete bodies only)."""
        text = f"{self.method}\n{self.target.url}\n".encode()
        return hashlib.sha256(text + self.body.digest).digest()


class Refused(Exception):
    """Upstream said no, or was certainly never reached; the ids may be used again."""

    def __init__(self, refusal: Refusal, *, retry_after: float | None = None) -> None:
        super().__init__(refusal.head.status)
        self.refusal = refusal
        self.retry_after = retry_after


class _Retryable(Refused):
    """A refusal after which the same request may be sent again."""


class Unknown(Exception):
    """The request was sent and not answered."""

    def __init__(self, end: End) -> None:
        super().__init__(end.code)
        self.end = end


class Attempts:
    """The way out for all calls of this process; `close` ends the connections."""

    def __init__(self, settings: Settings, tally: GenerationTally, resolve: Resolver) -> None:
        self._settings = settings
        self._tally = tally
        self._transport = UpstreamTransport(resolve=resolve)

    async def close(self) -> None:
        await self._transport.aclose()

    async def accepted(self, call: Call, request: UpstreamRequest) -> tuple[UpstreamHead, ResponseBody]:
        """Upstream's acceptance, with the body still to come, and to be closed. Raises: Refused, Unknown."""
        attempts = 1 + (self._settings.upstream_retries if request.body.content is not None else 0)
        began_at = time.monotonic()

        def policy() -> AsyncRetrying:
            left_seconds = self._settings.retry_seconds - (time.monotonic() - began_at)
            return AsyncRetrying(
                retry=retry_if_exception_type(_Retryable),
                stop=stop_after_attempt(attempts) | stop_before_delay(left_seconds),
                wait=_retry_pause,
                before=self._count_retry,
                reraise=True,
            )

        return await persistently(lambda: self._send(call, request), _Retryable, policy)

    def _count_retry(self, state: RetryCallState) -> None:
        self._tally.retries += state.attempt_number > 1

    async def _send(self, call: Call, request: UpstreamRequest) -> tuple[UpstreamHead, ResponseBody]:
        clocks, target = request.clocks, request.target
        call.sent_at = time.monotonic()
        call.head_deadline = time.monotonic() + clocks.connect_seconds + clocks.first_byte_seconds

        async def upload() -> AsyncIterator[bytes]:
            async for data in request.body.stream():
                call.head_deadline = time.monotonic() + clocks.first_byte_seconds
                yield data

        content = request.body.content if request.body.content is not None else upload()
        try:
            head, body = await self._transport.send(
                request.method,
                target.origin,
                target.resource,
                request.headers,
                content,
                connect_seconds=clocks.connect_seconds,
            )
            if 200 <= head.status < 300:
                return _head_of(head, self._settings.keep_headers), body
            async with aclosing(body):
                raise await self._refusal_of(head, body)
        except AddressRefused as exc:
            raise Refused(our_refusal(403, "upstream_not_allowed", str(exc))) from exc
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise _Retryable(our_refusal(502, "upstream_unreachable", f"no connection to upstream: {exc}")) from exc
        except httpx.TimeoutException as exc:
            raise Unknown(End(Code.TIMED_OUT)) from exc
        except httpx.TransportError as exc:
            raise Unknown(End(Code.UPSTREAM_FAILED, f"upstream did not answer: {exc}")) from exc
        except CallerLeft as exc:
            raise Unknown(End(Code.UPSTREAM_FAILED, "the caller's request body was cut short")) from exc
        except ApiError as exc:
            # The caller's body was too large or too slow: upstream got a part of it, which is no request.
            problem = exc.problem
            raise Refused(our_refusal(problem.status, problem.code, problem.message)) from exc
        finally:
            call.head_deadline = None

    async def _refusal_of(self, head: ResponseHead, body: ResponseBody) -> Refused:
        """Upstream's error, its body cut at 64 KiB and at ten seconds."""
        status = head.status
        if 300 <= status < 400 and status != HTTPStatus.NOT_MODIFIED:
            return Refused(our_refusal(502, "redirect_refused", f"upstream answered {status}; redirects are refused"))
        if not 300 <= status < 600:
            return Refused(our_refusal(502, "upstream_failed", f"upstream answered {status}, which is no final status"))
        content = bytearray()
        with suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(_ERROR_BODY_SECONDS):
                async for data in body:
                    content += data
                    if len(content) >= _MAX_ERROR_BODY_BYTES:
                        break
        refusal = Refusal(_head_of(head, self._settings.keep_headers), bytes(content[:_MAX_ERROR_BODY_BYTES]))
        if status in _RETRYABLE_STATUSES:
            return _Retryable(refusal, retry_after=retry_after_seconds(_header_of(head.headers, b"retry-after")))
        return Refused(refusal)


async def persistently(
    attempt: Callable[[], Awaitable[_T]], failure: type[Exception], policy: Callable[[], AsyncRetrying]
) -> _T:
    """Do it, and after a failure of that kind again for as long as the policy says. A policy makes more garbage than most of
    what is to be done, so there is none while nothing fails. Nor is anything left to the collector, which may come late: what
    was raised leads to the calls that it went through, and so to the policy's state, or to a name of its own."""
    failed: list[Exception] = []
    try:
        return await attempt()
    except failure as exc:
        failed.append(exc)

    async def again() -> _T:
        if failed:
            # What has failed already is the policy's first attempt.
            raise failed.pop()
        return await attempt()

    try:
        return await policy()(again)
    except failure as exc:
        exc.__traceback__ = None
        raise


def our_refusal(status: int, code: str, message: str) -> Refusal:
    """A refusal that is ours to tell: upstream has no part in the answer, and the ids may be used again."""
    body = json.dumps({"status": status, "error": code, "message": message}).encode()
    return Refusal(UpstreamHead(NOT_UPSTREAMS, "application/json"), body)


def retry_after_seconds(value: str | None) -> float | None:
    """`Retry-After` in seconds; dates and nonsense count as absent."""
    if value is None or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value.strip()):
        return None
    return float(value)


def _retry_pause(state: RetryCallState) -> float:
    exc = state.outcome.exception() if state.outcome is not None else None
    retry_after = exc.retry_after if isinstance(exc, Refused) else None
    return max(retry_after or 0.0, float(_BACK_OFF(state)))


def _head_of(head: ResponseHead, further: frozenset[bytes]) -> UpstreamHead:
    content_type = _header_of(head.headers, b"content-type") or ""
    encoding = (_header_of(head.headers, b"content-encoding") or "").lower()
    return UpstreamHead(
        status=head.status,
        content_type=content_type if 0 < len(content_type) <= _MAX_CONTENT_TYPE_CHARACTERS else None,
        content_encoding=encoding if encoding not in ("", "identity") else None,
        headers=kept_headers(head.headers, further),
    )


def _header_of(headers: Headers, name: bytes) -> str | None:
    """A header as it can be written again: latin-1, without control characters."""
    value = next((value for known, value in headers if known.lower() == name), None)
    return None if value is None else re.sub(r"[\x00-\x1f\x7f]", "", value.decode("latin-1")).strip()
