"""What one can ask a proxy, each as one method: create, find, resume, list, cancel, and read the two streams.

Requests are repeated while they are interrupted: every one of them may be, since a repeat of a creation with the same
ids joins the first one. The answer decides in one place (`_refusal`) what it is: upstream's, ours, or not the proxy's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import httpx

from streamkeep.client._channel import Channel, Reply, timeouts
from streamkeep.client._errors import ConnectionFailed, ProtocolError, ServerError, generation_error
from streamkeep.client._retry import Interrupted, Patience, repeatedly
from streamkeep.client._rules import wire
from streamkeep.client._rules.places import Places
from streamkeep.client._rules.wire import ControlEvent, Creation, Header

USER_AGENT = f"streamkeep/{version('streamkeep')}"

T = TypeVar("T")

Content = bytes | Iterable[bytes] | AsyncIterable[bytes]

_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_MANAGEMENT_READ_SECONDS = 30.0

# Answers of ours after which the same request would only fail in the same way.
_FINAL_CODES = frozenset({"redirect_refused", "timed_out", "upstream_failed", "upstream_unreachable"})
_TRANSIENT = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """A call's limits in seconds, as httpx means them; None is without a limit."""

    connect: float | None = 5.0
    read: float | None = 600.0
    write: float | None = 600.0
    pool: float | None = 600.0

    def extensions(self, *, read: float | None) -> dict[str, Any]:
        return timeouts(connect=self.connect, read=read, write=self.write, pool=self.pool)


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """A request for upstream: what the caller's own method, URL, headers and body are."""

    method: str
    url: str
    headers: tuple[Header, ...] = ()
    content: Content = b""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Upstream accepted; `is_replay` when an earlier request with these ids did the work."""

    creation: Creation
    is_replay: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Upstream's own error answer. `content` is as it was on the wire, encoded when a header says so."""

    status: int
    headers: tuple[Header, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx.Headers
    content: bytes


def headers_for(key: str | None, auth: Mapping[str, str] | None) -> dict[str, str]:
    """The headers for the proxy alone: its key, and whatever else stands before it wants."""
    return {**(auth or {}), **({} if key is None else {wire.KEY: key})}


class Server:
    """A proxy at `base`, or at any of several. `auth` are headers for it alone; they are sent to its own origin only."""

    def __init__(
        self, channel: Channel, base: str | Sequence[str], *, auth: Mapping[str, str], patience: Patience
    ) -> None:
        self._places = Places([base] if isinstance(base, str) else base)
        self.base = self._places.name
        self._channel = channel
        self._auth = {name.lower(): value for name, value in auth.items()}
        self._patience = patience
        if "authorization" in self._auth:
            raise ValueError("Authorization goes on to the vendor; the proxy's own credential is Streamkeep-Key")

    async def create(
        self, session_id: str, request_id: str, call: UpstreamCall, within: Timeouts
    ) -> Accepted | Refused:
        """Have a request sent upstream, once however often this is repeated, and wait for upstream's verdict.

        Raises:
            ServerError, GenerationError: the proxy refused; the call ended without a verdict.
            ConnectionFailed, httpx.TimeoutException: not answered; the generation may run.
        """
        is_repeatable = isinstance(call.content, bytes)
        headers = wire.forwarded(call.headers, keeps_length=not is_repeatable)
        headers = [(name, value) for name, value in headers if name.lower().decode("latin-1") not in self._auth]
        headers += [(b"Accept-Encoding", b"identity"), (wire.PROXY_URL.encode(), _ascii(call.url))]
        headers += [(wire.PROXY_METHOD.encode(), call.method.encode("ascii"))]
        url = wire.api_url(self.base, session_id, request_id)
        answer = await self._ask(
            "POST", url, headers, call.content, within.extensions(read=within.read), is_repeatable=is_repeatable
        )
        if wire.UPSTREAM_STATUS in answer.headers and answer.status != 200:
            return Refused(answer.status, _answer_headers(answer.headers), answer.content)
        creation = wire.parse_creation(self._json(answer))
        if creation.status is None:
            raise ProtocolError("the proxy accepted a call without upstream's status")
        return Accepted(creation, answer.headers.get(wire.REPLAYED) == "true")

    async def find(self, session_id: str, request_id: str) -> Creation:
        """A generation, with fresh URLs. Raises: ServerError (404, 410)."""
        return wire.parse_creation(
            self._json(await self._manage("GET", wire.api_url(self.base, session_id, request_id)))
        )

    async def resumable(self, session_id: str, request_id: str) -> Creation | None:
        """A session's newest running generation; upstream is never called."""
        url = wire.api_url(self.base, session_id, request_id)
        answer = await self._manage("POST", url, [(wire.RESUME_ACTIVE_GENERATION.encode(), b"true")])
        return None if answer.status == 204 else wire.parse_creation(self._json(answer))

    async def active(self, session_id: str) -> list[Creation]:
        """A session's generations that run or ended within the hour, newest first."""
        return wire.parse_creations(
            self._json(await self._manage("GET", wire.api_url(self.base, session_id, "active")))
        )

    async def cancel(self, session_id: str, request_id: str) -> str:
        """Stop a generation; return the state that it is in then. Raises: ServerError (404)."""
        url = wire.api_url(self.base, session_id, request_id, "cancel")
        return wire.parse_cancelled(self._json(await self._manage("POST", url)))

    async def ending(self, creation: Creation) -> ControlEvent | None:
        """A generation's terminal event, if it has ended, by as many attempts as it takes."""
        extensions = timeouts(connect=5.0, read=_MANAGEMENT_READ_SECONDS, write=_MANAGEMENT_READ_SECONDS, pool=None)

        async def attempt() -> ControlEvent | None:
            return await self.control_event(creation.control_url, extensions)

        return await self._repeatedly(attempt)

    async def control_event(self, control_url: str, extensions: dict[str, Any]) -> ControlEvent | None:
        """The same, by one attempt. Raises what `read` does."""
        reply = await self.read(wire.read_url(control_url, offset="-1"), extensions)
        try:
            content = await self._read_all(reply)
        finally:
            await reply.close()
        return wire.parse_control(self._json(_Answer(reply.status, reply.headers, content)))

    async def read(self, url: str, extensions: dict[str, Any], *, accept: str = "*/*") -> Reply:
        """Begin to read a stream; one attempt. The reply is 200 or 204, and the caller closes it.

        Raises:
            Interrupted: another attempt may succeed.
            ServerError, ProtocolError: it will not; 401 means that the URL has expired.
            httpx.ReadTimeout: nothing came for as long as `extensions` allow.
        """
        headers = [(b"Accept", accept.encode()), (b"Accept-Encoding", b"identity"), (b"Cache-Control", b"no-store")]
        reply = await self._send("GET", url, headers, b"", extensions)
        if reply.status in (200, 204):
            return reply
        try:
            content = await self._read_all(reply)
        finally:
            await reply.close()
        raise self._failed(_Answer(reply.status, reply.headers, content), url)

    async def _manage(self, method: str, url: str, headers: Iterable[Header] = ()) -> _Answer:
        extensions = timeouts(connect=5.0, read=_MANAGEMENT_READ_SECONDS, write=_MANAGEMENT_READ_SECONDS, pool=None)
        try:
            return await self._ask(method, url, [*headers, (b"Accept-Encoding", b"identity")], b"", extensions)
        except httpx.ReadTimeout as exc:
            raise ConnectionFailed(f"the proxy did not answer within {_MANAGEMENT_READ_SECONDS:g} seconds") from exc

    async def _ask(
        self,
        method: str,
        url: str,
        headers: list[Header],
        content: Content,
        extensions: dict[str, Any],
        *,
        is_repeatable: bool = True,
    ) -> _Answer:
        """Send, read the whole answer, and do it again while that may help; 2xx and upstream's answers are returned."""

        async def attempt() -> _Answer:
            return await self._attempt(method, url, headers, content, extensions)

        return await self._repeatedly(attempt, is_repeatable=is_repeatable)

    async def _repeatedly(self, attempt: Callable[[], Coroutine[Any, Any, T]], *, is_repeatable: bool = True) -> T:
        return await repeatedly(
            attempt,
            channel=self._channel,
            patience=self._patience,
            failure=f"the proxy at {self.base} cannot be reached",
            is_repeatable=is_repeatable,
        )

    async def _attempt(
        self, method: str, url: str, headers: list[Header], content: Content, extensions: dict[str, Any]
    ) -> _Answer:
        reply = await self._send(method, url, headers, content, extensions)
        try:
            answer = _Answer(reply.status, reply.headers, await self._read_all(reply))
        finally:
            await reply.close()
        if 200 <= answer.status < 300 or wire.UPSTREAM_STATUS in answer.headers:
            return answer
        raise self._failed(answer, url)

    def _failed(self, answer: _Answer, url: str) -> Exception:
        failure = _failure(answer)
        if isinstance(failure, Interrupted):
            self._places.failed(self._places.of(url))
        return failure

    async def _send(
        self, method: str, url: str, headers: list[Header], content: Content, extensions: dict[str, Any]
    ) -> Reply:
        """Send to where the URL leads now; a place that cannot be reached at all is followed by the next at once."""
        for _ in range(len(self._places) - 1):
            place = self._places.of(url)
            try:
                return await self._send_to(place, method, headers, content, extensions)
            except Interrupted as exc:
                self._places.failed(place)
                if not isinstance(exc.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                    raise
        return await self._send_to(self._places.of(url), method, headers, content, extensions)

    async def _send_to(
        self, url: str, method: str, headers: list[Header], content: Content, extensions: dict[str, Any]
    ) -> Reply:
        fields = list(headers)
        if all(name.lower() != b"user-agent" for name, _ in fields):
            fields.append((b"User-Agent", USER_AGENT.encode()))
        if url in self._places:
            fields += [(name.encode("ascii"), _ascii(value)) for name, value in self._auth.items()]
        request = httpx.Request(method, url, headers=fields, content=content, extensions=extensions)
        try:
            return await self._channel.send(request)
        except httpx.LocalProtocolError:
            # The original's message quotes the header, which may be a credential.
            raise httpx.LocalProtocolError("the request has a header that HTTP cannot carry") from None
        except (httpx.ReadTimeout, httpx.UnsupportedProtocol):
            raise
        except httpx.TransportError as exc:
            raise interrupted(exc) from exc

    async def _read_all(self, reply: Reply) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await next_piece(reply):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_ANSWER_BYTES:
                raise ProtocolError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
        return b"".join(pieces)

    @staticmethod
    def _json(answer: _Answer) -> bytes:
        if not wire.is_media_type(answer.headers.get("Content-Type"), "application/json"):
            raise ProtocolError("the answer is not JSON, so it is not the proxy's")
        return answer.content


async def next_piece(reply: Reply) -> bytes:
    """The next of a reply's bytes, empty at the end. Raises: Interrupted, httpx.ReadTimeout."""
    try:
        return await reply.next_piece()
    except httpx.ReadTimeout:
        raise
    except httpx.TransportError as exc:
        raise interrupted(exc) from exc


def interrupted(error: httpx.TransportError) -> Interrupted:
    """What an error of the network means for an attempt."""
    return Interrupted(f"{type(error).__name__}: {error}")


def _failure(answer: _Answer) -> Exception:
    """The exception that an answer without success stands for; `Interrupted` when another attempt may help."""
    if 300 <= answer.status < 400:
        return ProtocolError(f"the proxy answered with a redirect ({answer.status}), which it never does")
    problem = wire.parse_problem(answer.content)
    if problem is not None and problem.ids is not None:
        session_id, request_id = problem.ids
        return generation_error(problem.code, problem.message, session_id=session_id, request_id=request_id)
    code = problem.code if problem is not None else "unexpected_answer"
    message = problem.message if problem is not None else "something that is not the proxy answered in its place"
    retry_after_seconds = wire.retry_after_seconds(answer.headers.get("Retry-After"), now=time.time())
    error = ServerError(answer.status, code, message, retry_after_seconds=retry_after_seconds)
    if answer.status not in _TRANSIENT or code in _FINAL_CODES:
        return error
    interrupted = Interrupted(str(error), retry_after_seconds=retry_after_seconds)
    interrupted.__cause__ = error
    return interrupted


def _answer_headers(headers: httpx.Headers) -> tuple[Header, ...]:
    """Upstream's headers, without those that frame the answer on this connection."""
    framing = {b"connection", b"content-length", b"keep-alive", b"transfer-encoding"}
    return tuple((name, value) for name, value in headers.raw if name.lower() not in framing)


def _ascii(value: str) -> bytes:
    try:
        return value.encode("ascii")
    except UnicodeEncodeError as exc:
        raise ValueError("a URL or credential for the proxy holds characters beyond ASCII") from exc
