"""`FetchClient` and `AsyncFetchClient`: one request through the proxy, and what can be asked about generations.

Both are shells over `Exchange`: they turn arguments into a `Call`, and its `Answer` into an `httpx.Response`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self, cast

import httpx

from streamkeep.client._calls import DEFAULT_TIMEOUT, DEFAULT_TTL_SECONDS, timeouts_of, upstream_call
from streamkeep.client._channel import AsyncChannel, BlockingChannel, Channel, run_blocking
from streamkeep.client._errors import NothingToResume
from streamkeep.client._exchange import Answer, Call, Exchange, new_id
from streamkeep.client._messages import MessageKeeper
from streamkeep.client._responses import HttpLibrary, async_response, blocking_response
from streamkeep.client._retry import Patience
from streamkeep.client._rules import wire
from streamkeep.client._rules.wire import Creation
from streamkeep.client._server import Server, headers_for
from streamkeep.client._stores import GenerationStore, SQLiteStore

Target = str | httpx.URL | httpx.Request
Params = (
    Mapping[str, str | int | float | bool | None]
    | list[tuple[str, str | int | float | bool | None]]
    | tuple[tuple[str, str | int | float | bool | None], ...]
)
File = (
    IO[bytes]
    | bytes
    | str
    | tuple[str | None, IO[bytes] | bytes | str]
    | tuple[str | None, IO[bytes] | bytes | str, str]
)
Files = Mapping[str, File] | Sequence[tuple[str, File]]
EventHooks = Mapping[str, Sequence[Callable[..., Any]]]

_HTTPX = cast("HttpLibrary", httpx)


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A generation as the proxy lists it. `state` is creating, running, done, error or cancelled; `code` says more once
    it has ended; `created_at` is ISO 8601."""

    session_id: str
    request_id: str
    state: str
    code: str | None
    content_type: str | None
    upstream_status: int | None
    created_at: str | None


class FetchClient:
    """Send requests through a proxy, so that their responses outlive the connection and this process.

    `proxy_url` may or may not end in `/api`. Where several proxies share a database, it may be all their URLs: one that
    cannot be reached is followed by the next, also within a body. `store` keeps which generations are being read: a `SQLiteStore` in the
    user's state directory unless given. `messages`
    is told what is asked and answered, as `Messages` of `streamkeep.adapters.messages` wants to be. `key` is the proxy's own, and `auth` are more headers for the proxy alone. `http`
    is the httpx transport to it, for TLS settings, HTTP/2 and the like. `event_hooks` are httpx's: `request` functions get
    the caller's request before it is sent, `response` functions the response before its body. Several threads may share a client; a response belongs to one at a time.
    """

    def __init__(
        self,
        proxy_url: str | Sequence[str],
        *,
        store: GenerationStore | None = None,
        key: str | None = None,
        auth: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_TIMEOUT,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        patience: Patience | None = None,
        messages: MessageKeeper | None = None,
        http: httpx.BaseTransport | None = None,
        event_hooks: EventHooks | None = None,
    ) -> None:
        self._core = _Core(
            BlockingChannel(http), proxy_url, store, headers_for(key, auth), timeout, ttl_seconds, patience, messages
        )
        self._hooks = _checked_hooks(event_hooks)

    def __repr__(self) -> str:
        return f"FetchClient({self._core.server.base!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fetch(
        self,
        target: Target | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        content: str | bytes | Iterable[bytes] | None = None,
        data: Mapping[str, Any] | None = None,
        files: Files | None = None,
        json: object = None,
        params: Params | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        resume: bool | None = None,
        replay_from_start: bool | None = None,
        ttl_seconds: float | None = None,
        timeout: httpx.Timeout | float | None = None,
    ) -> httpx.Response:
        """Send a request to `target` through the proxy, or resume one; return when upstream's answer has begun.

        The response has upstream's status and headers, and its body is still on its way: read it to its end, or close
        it. Closing leaves the generation running, to be resumed; `cancel` stops it. A piece of the body counts as taken
        once the next one is asked for, and a resume goes on after what was taken: `iter_raw` and `iter_bytes` keep
        nothing back, while `iter_lines` may hold the beginning of a line.

        `target` may be a whole `httpx.Request`. Without `method` it is a POST when there is a body, else a GET. Ids that
        are not given are random. With `resume` nothing is sent: the body of the session's newest generation, or of the
        one that `request_id` names, goes on where it was left, or from its first byte with `replay_from_start`; the
        header `Streamkeep-Start-Offset` names the byte at which it begins. Where there is nothing to resume the response
        is a 204, and `Streamkeep-Nothing-To-Resume` says why: none, ended, expired. The headers `X-Session-ID`,
        `X-Request-ID`, `X-Resume-Active-Generation`, `X-Replay-From-Start` and `X-Active-Generation-TTL`, in
        milliseconds, say the same as the arguments, which win. `timeout` None is the client's own.

        Raises:
            ServerError: the proxy refused. Upstream's own errors are responses.
            ConnectionFailed, httpx.TimeoutException: no answer; the generation may run, and can be resumed.
            GenerationError: it ended before upstream answered. While the body is read: after all data before the end.
            LocalStoreFailed: the store cannot record the call, so it was not sent.
            ValueError: an argument or header cannot be used.
        """
        request = _request(target, method, headers, content, data, files, json, params)
        options = _Options(session_id, request_id, resume, replay_from_start, ttl_seconds, timeout)
        for hook in self._hooks["request"]:
            hook(request)
        answer = run_blocking(self._core.fetch(request, options))
        response = blocking_response(answer, _as_they_are, _HTTPX)
        response.request = request
        try:
            for hook in self._hooks["response"]:
                hook(response)
        except BaseException:
            response.close()
            raise
        return response

    def resume(
        self,
        session_id: str,
        request_id: str | None = None,
        *,
        replay_from_start: bool = False,
        ttl_seconds: float | None = None,
        timeout: httpx.Timeout | float | None = None,
    ) -> httpx.Response:
        """Go on with a session's newest generation, or the named one: `fetch` with `resume`, which see.

        Where the local store knows nothing, the proxy's registry is asked.
        """
        return self.fetch(
            session_id=session_id,
            request_id=request_id,
            resume=True,
            replay_from_start=replay_from_start,
            ttl_seconds=ttl_seconds,
            timeout=timeout,
        )

    def active(self, session_id: str) -> list[GenerationInfo]:
        """A session's generations that run or ended within the hour, newest first. Raises: StreamkeepError."""
        return run_blocking(self._core.active(session_id))

    def cancel(self, session_id: str, request_id: str) -> str:
        """Stop a generation, for every reader; return its state then. Raises: ServerError (404)."""
        return run_blocking(self._core.cancel(session_id, request_id))

    def close(self) -> None:
        """Close every connection."""
        run_blocking(self._core.close())


class AsyncFetchClient:
    """`FetchClient` for asyncio."""

    def __init__(
        self,
        proxy_url: str | Sequence[str],
        *,
        store: GenerationStore | None = None,
        key: str | None = None,
        auth: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_TIMEOUT,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        patience: Patience | None = None,
        messages: MessageKeeper | None = None,
        http: httpx.AsyncBaseTransport | None = None,
        event_hooks: EventHooks | None = None,
    ) -> None:
        self._core = _Core(
            AsyncChannel(http), proxy_url, store, headers_for(key, auth), timeout, ttl_seconds, patience, messages
        )
        self._hooks = _checked_hooks(event_hooks)

    def __repr__(self) -> str:
        return f"AsyncFetchClient({self._core.server.base!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def fetch(
        self,
        target: Target | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        content: str | bytes | AsyncIterable[bytes] | None = None,
        data: Mapping[str, Any] | None = None,
        files: Files | None = None,
        json: object = None,
        params: Params | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        resume: bool | None = None,
        replay_from_start: bool | None = None,
        ttl_seconds: float | None = None,
        timeout: httpx.Timeout | float | None = None,  # noqa: ASYNC109  # several limits, as httpx means them
    ) -> httpx.Response:
        """`FetchClient.fetch`, awaited. A cancelled call or read leaves no connection open, and loses no byte."""
        request = _request(target, method, headers, content, data, files, json, params)
        options = _Options(session_id, request_id, resume, replay_from_start, ttl_seconds, timeout)
        for hook in self._hooks["request"]:
            await hook(request)
        answer = await self._core.fetch(request, options)
        response = async_response(answer, _as_they_are, _HTTPX)
        response.request = request
        try:
            for hook in self._hooks["response"]:
                await hook(response)
        except BaseException:
            await response.aclose()
            raise
        return response

    async def resume(
        self,
        session_id: str,
        request_id: str | None = None,
        *,
        replay_from_start: bool = False,
        ttl_seconds: float | None = None,
        timeout: httpx.Timeout | float | None = None,  # noqa: ASYNC109  # several limits, as httpx means them
    ) -> httpx.Response:
        """`FetchClient.resume`, awaited."""
        return await self.fetch(
            session_id=session_id,
            request_id=request_id,
            resume=True,
            replay_from_start=replay_from_start,
            ttl_seconds=ttl_seconds,
            timeout=timeout,
        )

    async def active(self, session_id: str) -> list[GenerationInfo]:
        """`FetchClient.active`, awaited."""
        return await self._core.active(session_id)

    async def cancel(self, session_id: str, request_id: str) -> str:
        """`FetchClient.cancel`, awaited."""
        return await self._core.cancel(session_id, request_id)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._core.close()


@dataclass(frozen=True, slots=True)
class _Options:
    """What the arguments of a call say; None is for the headers, and then the client, to say."""

    session_id: str | None
    request_id: str | None
    resume: bool | None
    replay_from_start: bool | None
    ttl_seconds: float | None
    timeout: httpx.Timeout | float | None


class _Core:
    """What both clients do, over a channel of either kind."""

    def __init__(
        self,
        channel: Channel,
        proxy_url: str | Sequence[str],
        store: GenerationStore | None,
        auth: Mapping[str, str],
        timeout: httpx.Timeout | float | None,
        ttl_seconds: float,
        patience: Patience | None,
        messages: MessageKeeper | None,
    ) -> None:
        patience = patience or Patience()
        self.server = Server(channel, wire.proxy_bases(proxy_url), auth=auth, patience=patience)
        self._channel = channel
        self._own_store = SQLiteStore()
        kept = self._own_store if store is None else store
        self._exchange = Exchange(channel, self.server, kept, patience=patience, messages=messages)
        self._timeout = timeout
        self._ttl_seconds = ttl_seconds

    async def fetch(self, request: httpx.Request, options: _Options) -> Answer:
        call = await self._call(request, options)
        try:
            answer = await self._exchange.open(call)
        except NothingToResume as exc:
            reason = (wire.NOTHING_TO_RESUME.encode(), exc.reason.encode())
            return Answer(204, (reason,), b"", call.session_id, call.request_id or "")
        return answer.named_as_ours()

    async def _call(self, request: httpx.Request, options: _Options) -> Call:
        asked = wire.steering(request.headers.raw)
        session_id = options.session_id or asked.session_id
        request_id = options.request_id or asked.request_id
        resumes = asked.resumes if options.resume is None else options.resume
        replays = asked.replays if options.replay_from_start is None else options.replay_from_start
        ttls = (options.ttl_seconds, asked.ttl_seconds, self._ttl_seconds)
        if resumes and session_id is None:
            raise ValueError(f"a resume names its session, as session_id or as the header {wire.SESSION_ID}")
        if not resumes and request.url.host == "":
            raise ValueError("a call that does not resume needs an absolute URL")
        return Call(
            session_id=new_id() if session_id is None else wire.check_session_id(session_id),
            request_id=None if request_id is None else wire.check_request_id(request_id),
            upstream=None if resumes else await upstream_call(request, self._channel, _HTTPX),
            within=timeouts_of(self._timeout if options.timeout is None else options.timeout),
            resumes=resumes,
            replays=replays is True,
            ttl_seconds=next(ttl for ttl in ttls if ttl is not None),
        )

    async def active(self, session_id: str) -> list[GenerationInfo]:
        return [_info(creation) for creation in await self.server.active(wire.check_session_id(session_id))]

    async def cancel(self, session_id: str, request_id: str) -> str:
        return await self.server.cancel(wire.check_session_id(session_id), wire.check_request_id(request_id))

    async def close(self) -> None:
        await self._channel.close()
        await self._channel.run(self._own_store.close)


def _request(
    target: Target | None,
    method: str | None,
    headers: Mapping[str, str] | None,
    content: str | bytes | Iterable[bytes] | AsyncIterable[bytes] | None,
    data: Mapping[str, Any] | None,
    files: Files | None,
    json: object,
    params: Params | None,
) -> httpx.Request:
    bodies = (content, data, files, json)
    if isinstance(target, httpx.Request):
        if any(given is not None for given in (method, headers, params, *bodies)):
            raise ValueError("a whole request brings its own method, headers, parameters and body")
        return target
    has_body = any(given is not None for given in bodies)
    return httpx.Request(
        method or ("POST" if has_body else "GET"),
        target or "",
        headers=headers,
        params=params,
        content=content,
        data=data,
        files=files,
        json=json,
    )


def _checked_hooks(hooks: EventHooks | None) -> EventHooks:
    unknown = set(hooks or ()) - {"request", "response"}
    if unknown:
        raise ValueError(f"event hooks are for request and response, not {', '.join(sorted(unknown))}")
    return {"request": (), "response": (), **(hooks or {})}


def _as_they_are(error: Exception) -> Exception:
    return error


def _info(creation: Creation) -> GenerationInfo:
    return GenerationInfo(
        creation.session_id,
        creation.request_id,
        creation.state,
        creation.code,
        creation.content_type,
        creation.status,
        creation.created_at,
    )
