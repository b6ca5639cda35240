"""`DurableTransport`: an httpx transport, so that an SDK's own calls become durable and resumable unchanged.

It stands in for httpx's transports and for those of `httpx2`, on which newer SDKs are built, and answers each request
with the classes of the package that the request came from. It does not inherit from httpx's classes when the program
runs, since SDKs on `httpx2` refuse objects whose class does; for type checkers it does, from those of both packages.

What an SDK gets when something goes wrong:

upstream's own error            its response, so that the SDK raises what it always raises
the proxy refused               a response with its status and `{"error": {message, type, code}}`, and a header that
                                keeps the SDK from retrying what cannot succeed
no connection to the proxy      ConnectError before an answer, ReadError within the body
the generation ended badly      `GenerationError`, after all data before it
nothing to resume               `NothingToResume`

An SDK that retries by itself does not pay twice: see `_rules/attempts.py`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast, overload

import httpx

from streamkeep.client._calls import DEFAULT_TTL_SECONDS, timeouts_in, upstream_call
from streamkeep.client._channel import AsyncChannel, BlockingChannel, Channel, run_blocking
from streamkeep.client._errors import BodyConsumed, ConnectionFailed, GenerationError, ProtocolError, ServerError
from streamkeep.client._exchange import Answer, Call, Exchange, new_id
from streamkeep.client._messages import MessageKeeper
from streamkeep.client._responses import HttpLibrary, Translate, async_response, blocking_response, library_of
from streamkeep.client._retry import Patience
from streamkeep.client._rules import wire
from streamkeep.client._rules.attempts import RETRY_COUNT_HEADER, FailedAttempts, Ids, is_repeat
from streamkeep.client._server import Server, UpstreamCall, headers_for
from streamkeep.client._stores import GenerationStore, SQLiteStore

if TYPE_CHECKING:
    import httpx2

    class _Transport(  # type: ignore[misc]  # the two packages' signatures meet in DurableTransport's overloads
        httpx.AsyncBaseTransport, httpx.BaseTransport, httpx2.AsyncBaseTransport, httpx2.BaseTransport
    ):
        """All that a client of either package takes for a transport."""

else:
    _Transport = object

# What an SDK is told of a call that ended without an answer of upstream's; all others are 502.
_STATUS_BY_CODE = {"cancelled": 409, "stalled": 504, "timed_out": 504}

_Respond = Callable[[Answer, Translate, HttpLibrary], httpx.Response]


class DurableTransport(_Transport):
    """Send a client's requests through a proxy, for `AsyncClient` and `Client` alike.

    A call's headers steer it: `X-Session-ID` and `X-Request-ID` name it (else `session_id`, else something random),
    `X-Resume-Active-Generation: true` resumes instead of sending, from the first byte on, since an SDK's parser cannot
    begin within an event; `X-Replay-From-Start: false` resumes where the last reader was. The other arguments are those
    of `FetchClient`; `http` and `async_http` are the transports to the proxy.
    """

    def __init__(
        self,
        proxy_url: str | Sequence[str],
        *,
        store: GenerationStore | None = None,
        session_id: str | None = None,
        key: str | None = None,
        auth: Mapping[str, str] | None = None,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        patience: Patience | None = None,
        messages: MessageKeeper | None = None,
        http: httpx.BaseTransport | None = None,
        async_http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        bases = wire.proxy_bases(proxy_url)
        self._base = bases[0]
        self._session_id = None if session_id is None else wire.check_session_id(session_id)
        self._ttl_seconds = ttl_seconds
        self._own_store = SQLiteStore()
        self._attempts = _Attempts()

        def exchange(channel: Channel) -> Exchange:
            kept = self._own_store if store is None else store
            patient = patience or Patience()
            server = Server(channel, bases, auth=headers_for(key, auth), patience=patient)
            return Exchange(channel, server, kept, patience=patient, messages=messages, skips_finished=True)

        self._blocking = exchange(BlockingChannel(http))
        self._async = exchange(AsyncChannel(async_http))

    def __repr__(self) -> str:
        return f"DurableTransport({self._base!r})"

    @overload
    def handle_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    def handle_request(self, request: httpx2.Request) -> httpx2.Response: ...
    def handle_request(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """What `Client` calls."""
        return run_blocking(self._handle(self._blocking, request, blocking_response))

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """What `AsyncClient` calls."""
        return await self._handle(self._async, request, async_response)

    def close(self) -> None:
        """Close the connections of `Client`'s requests."""
        run_blocking(self._blocking.channel.close())
        self._own_store.close()

    async def aclose(self) -> None:
        """Close the connections of `AsyncClient`'s requests."""
        await self._async.channel.close()
        await self._async.channel.run(self._own_store.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def _handle(
        self, exchange: Exchange, request: httpx.Request | httpx2.Request, respond: _Respond
    ) -> httpx.Response:
        # The packages' classes have the same interface; which of the two it is matters only for what is made anew.
        request = cast("httpx.Request", request)
        library = library_of(request)
        call, attempt = await self._call(exchange, request, library)

        def failed(error: Exception) -> None:
            if not (isinstance(error, GenerationError) and error.is_retryable):
                self._attempts.failed(attempt)

        def translate_in_body(error: Exception) -> Exception:
            failed(error)
            return _translated(error, library.ReadError, request, library)

        try:
            answer = await exchange.open(call)
        except (ServerError, GenerationError) as exc:
            failed(exc)
            answer = _refusal(exc, call)
        except Exception as exc:
            failed(exc)
            translated = _translated(exc, library.ConnectError, request, library)
            if translated is exc:
                raise
            raise translated from exc
        return respond(answer.named_as_theirs(), translate_in_body, library)

    async def _call(
        self, exchange: Exchange, request: httpx.Request, library: HttpLibrary
    ) -> tuple[Call, _Attempt | None]:
        asked = wire.steering(request.headers.raw)
        session_id = asked.session_id or self._session_id
        if asked.resumes and session_id is None:
            raise ValueError(f"a resume names its session, by the header {wire.SESSION_ID}")
        request_id, upstream, attempt = asked.request_id, None, None
        if not asked.resumes:
            upstream = await upstream_call(request, exchange.channel, library)
            if request_id is None:
                attempt = self._attempts.begin(upstream, session_id, request.headers.get(RETRY_COUNT_HEADER))
                session_id, request_id = attempt.ids.session_id, attempt.ids.request_id
        call = Call(
            session_id=session_id or new_id(),
            request_id=request_id,
            upstream=upstream,
            within=timeouts_in(request.extensions),
            resumes=asked.resumes,
            replays=asked.replays is not False,
            ttl_seconds=self._ttl_seconds if asked.ttl_seconds is None else asked.ttl_seconds,
        )
        return call, attempt


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt of an SDK at a call to which it gave no id. `question` is None where it cannot be told again."""

    ids: Ids
    question: bytes | None


class _Attempts:
    """The attempts at calls without ids, shared by threads."""

    def __init__(self) -> None:
        self._failed = FailedAttempts()
        self._lock = threading.Lock()

    def begin(self, upstream: UpstreamCall, session_id: str | None, retry_count: str | None) -> _Attempt:
        question = _question(upstream, session_id)
        ids = None
        if question is not None:
            with self._lock:
                ids = self._failed.begins(question, is_repeat=is_repeat(retry_count), now=time.monotonic())
        return _Attempt(ids or Ids(session_id or new_id(), new_id()), question)

    def failed(self, attempt: _Attempt | None) -> None:
        if attempt is not None and attempt.question is not None:
            with self._lock:
                self._failed.failed(attempt.question, attempt.ids, now=time.monotonic())


def _question(upstream: UpstreamCall, session_id: str | None) -> bytes | None:
    if not isinstance(upstream.content, bytes):
        return None
    head = "\n".join((session_id or "", upstream.method, upstream.url)).encode()
    return hashlib.sha256(head + b"\n" + hashlib.sha256(upstream.content).digest()).digest()


def _refusal(error: ServerError | GenerationError, call: Call) -> Answer:
    """The proxy's own error as a response that SDKs understand."""
    if isinstance(error, ServerError):
        status = error.status
        may_be_repeated = status >= 500 or status == 429
    else:
        status = _STATUS_BY_CODE.get(error.code, 502)
        may_be_repeated = error.is_retryable
    shown = {"message": error.message, "type": "streamkeep_error", "code": error.code}
    headers = [(b"Content-Type", b"application/json")]
    if not may_be_repeated:
        headers.append((b"X-Should-Retry", b"false"))
    content = json.dumps({"type": "error", "error": shown}).encode()
    return Answer(status, tuple(headers), content, call.session_id, call.request_id or "")


def _translated(
    error: Exception, no_connection: type[httpx.TransportError], request: httpx.Request, library: HttpLibrary
) -> Exception:
    """What an exception of the core is in the package that the request came from; ours stay what they are."""
    if isinstance(error, ConnectionFailed):
        return no_connection(str(error), request=request)
    if isinstance(error, ProtocolError):
        return library.RemoteProtocolError(str(error), request=request)
    if isinstance(error, BodyConsumed):
        return library.StreamClosed()
    if isinstance(error, httpx.TransportError):
        counterpart: type[httpx.TransportError] = getattr(library, type(error).__name__)
        return counterpart(str(error), request=request)
    return error
