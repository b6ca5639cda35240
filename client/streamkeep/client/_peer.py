"""One stream's server, as the core asks it: an address that may change between requests, and requests with their repeats.

The URL, each header and each parameter is a value or a callable, sync or async. Callables of headers and parameters are asked
before every request, the URL's own at first and whenever the server answers 401: it is where a signature that has
expired is renewed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import httpx

from streamkeep.client._channel import Channel, Reply
from streamkeep.client._errors import ConnectionFailed, ProducerFenced, ProtocolError, ServerError, StreamNotFound
from streamkeep.client._retry import Interrupted, Patience, repeatedly
from streamkeep.client._rules import protocol, wire
from streamkeep.client._server import USER_AGENT, Timeouts, next_piece

Value = str | Callable[[], str | Awaitable[str]]
Values = Mapping[str, Value]

_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_ANSWER_SECONDS = 30.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_NO_HEADER_NAME = "the request has a header whose name HTTP does not allow"
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Address:
    """A stream's URL, and what goes along with each request. Raises: ValueError: the URL is not absolute http."""

    def __init__(self, url: Value, headers: Values | None = None, params: Values | None = None) -> None:
        self._url = url
        self.headers: dict[str, Value] = dict(headers or {})
        self.params: dict[str, Value] = dict(params or {})
        self._known = checked_url(url) if isinstance(url, str) else None
        self._is_renewed = False

    def __repr__(self) -> str:
        return f"<Address {self}>"

    def __str__(self) -> str:
        return "a URL that is not known yet" if self._known is None else wire.without_query(self._known)

    async def url(self) -> str:
        """The URL with its parameters, as it is now."""
        if self._known is None:
            self._known = checked_url(await _value_of(self._url))
        params = {name: await _value_of(value) for name, value in self.params.items()}
        return wire.read_url(self._known, **params) if params else self._known

    async def fields(self) -> list[tuple[bytes, bytes]]:
        """The headers, as they are now."""
        return [(_header_name(name), _header(await _value_of(value))) for name, value in self.headers.items()]

    def renew(self) -> bool:
        """Ask for the URL anew before the next request; whether that may help."""
        if isinstance(self._url, str) or self._is_renewed:
            return False
        self._known = None
        self._is_renewed = True
        return True

    def worked(self) -> None:
        """A request was accepted: a URL that expires later may be renewed again."""
        self._is_renewed = False


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A whole answer with success. `may_be_repeat` when an earlier attempt may have been done, and not answered."""

    status: int
    headers: httpx.Headers
    content: bytes
    may_be_repeat: bool = False


class Peer:
    """Ask the server of one address."""

    def __init__(self, channel: Channel, address: Address, *, within: Timeouts, patience: Patience) -> None:
        self.channel = channel
        self.address = address
        self.within = within
        self.patience = patience

    def at(self, url: str) -> Peer:
        """The same for another URL of the same server; what was said of headers and parameters holds there too."""
        return Peer(
            self.channel,
            Address(url, self.address.headers, self.address.params),
            within=self.within,
            patience=self.patience,
        )

    async def ask(
        self,
        method: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        *,
        is_repeatable: bool = True,
        max_bytes: int | None = None,
    ) -> PeerAnswer:
        """Send until it is answered; what may be stored already is not sent again unless it `is_repeatable`.

        An answer of more than `max_bytes` (4 MiB) is a ProtocolError.

        Raises:
            ServerError: refused. ProtocolError: answered by something else.
            ConnectionFailed: not answered; an append may be stored or not.
        """
        may_be_repeat = False

        async def attempt() -> PeerAnswer:
            nonlocal may_be_repeat
            try:
                answer = await self._attempt(
                    method,
                    headers or {},
                    content,
                    is_repeatable=is_repeatable,
                    max_bytes=max_bytes or _MAX_ANSWER_BYTES,
                )
            except Interrupted as exc:
                cause = exc.__cause__
                is_refused = isinstance(cause, ServerError) and cause.status in (401, 429)
                may_be_repeat = may_be_repeat or not (is_refused or isinstance(cause, _NOT_SENT))
                raise
            return replace(answer, may_be_repeat=may_be_repeat)

        try:
            return await repeatedly(
                attempt, channel=self.channel, patience=self.patience, failure=f"{method} at {self.address} failed"
            )
        except StreamNotFound:
            if method == "DELETE" and may_be_repeat:
                return PeerAnswer(204, httpx.Headers(), b"", may_be_repeat=True)
            raise
        except ProducerFenced as exc:
            if may_be_repeat:
                raise ConnectionFailed("an append was not answered, and its repeat came too late to tell") from exc
            raise

    async def open(self, query: Mapping[str, str | None], *, accept: str, read_seconds: float) -> Reply:
        """Begin to read; one attempt. The reply is 200 or 204, and the caller closes it.

        Raises:
            Interrupted: another attempt may succeed. ServerError, ProtocolError: it will not.
            httpx.ReadTimeout: nothing came for so long.
        """
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        reply, url = await self._send("GET", headers, b"", query, read_seconds)
        if reply.status in (200, 204):
            if reply.headers.get("Content-Encoding", "identity").lower() == "identity":
                self.address.worked()
                return reply
            await reply.close()
            raise ProtocolError("the answer is encoded, which nobody asked for")
        try:
            content = await _read_all(reply, _MAX_ANSWER_BYTES)
        finally:
            await reply.close()
        raise self._failure(reply, content, url=url, method="GET")

    async def _attempt(
        self, method: str, headers: Mapping[str, str], content: bytes, *, is_repeatable: bool, max_bytes: int
    ) -> PeerAnswer:
        try:
            reply, url = await self._send(method, headers, content, {}, self.within.read or _ANSWER_SECONDS)
            try:
                answer = PeerAnswer(reply.status, reply.headers, await _read_all(reply, max_bytes))
            finally:
                await reply.close()
        except (Interrupted, httpx.ReadTimeout) as exc:
            cause = exc.__cause__ if isinstance(exc, Interrupted) else exc
            if is_repeatable or isinstance(cause, _NOT_SENT):
                raise Interrupted(str(exc)) from cause
            raise ConnectionFailed(
                f"{method} at {self.address} was not answered; it may have been done, or not: {exc}"
            ) from cause
        if 200 <= answer.status < 300:
            self.address.worked()
            return answer
        may_repeat = is_repeatable or answer.status in (401, 429)
        # Never a local: its traceback would lead to this call, and so back to it.
        raise _final(
            self._failure(reply, answer.content, url=url, method=method, is_sequenced=protocol.SEQUENCE in headers),
            may_repeat=may_repeat,
        )

    async def _send(
        self,
        method: str,
        headers: Mapping[str, str],
        content: bytes,
        query: Mapping[str, str | None],
        read_seconds: float,
    ) -> tuple[Reply, str]:
        url = await self.address.url()
        if query:
            url = wire.read_url(url, **query)
        own = await self.address.fields()
        said = {name.lower() for name, _ in own}
        fields = [(name.encode(), _header(value)) for name, value in headers.items()]
        fields = [*own, *((name, value) for name, value in fields if name.lower() not in said)]
        if b"user-agent" not in said:
            fields.append((b"User-Agent", USER_AGENT.encode()))
        extensions = self.within.extensions(read=read_seconds)
        try:
            request = httpx.Request(method, url, headers=fields, content=content, extensions=extensions)
            return await self.channel.send(request), url
        except httpx.LocalProtocolError:
            raise ValueError(_NO_HEADER_NAME) from None
        except (httpx.ReadTimeout, httpx.UnsupportedProtocol):
            raise
        except httpx.TransportError as exc:
            raise Interrupted(f"{type(exc).__name__}: {exc}") from exc

    def _failure(
        self, reply: Reply, content: bytes, *, url: str, method: str, is_sequenced: bool = False
    ) -> ProtocolError | ServerError | Interrupted:
        """The exception for an answer without success; `Interrupted` where another attempt may help."""
        if 300 <= reply.status < 400:
            return ProtocolError(f"the server answered with a redirect ({reply.status}), which is not followed")
        if reply.status < 300:
            return ProtocolError(f"the server answered {method} with {reply.status}")
        retry_after_seconds = wire.retry_after_seconds(reply.headers.get("Retry-After"), now=time.time())
        error = protocol.refusal(
            reply.status,
            reply.headers,
            content,
            url=url,
            method=method,
            is_sequenced=is_sequenced,
            retry_after_seconds=retry_after_seconds,
        )
        if reply.status not in _TRANSIENT and not (reply.status == 401 and self.address.renew()):
            return error
        interrupted = Interrupted(str(error), retry_after_seconds=retry_after_seconds)
        interrupted.__cause__ = error
        return interrupted


def checked_url(url: str) -> str:
    """Raises: ValueError: it is not an absolute http URL."""
    try:
        scheme, host, _ = wire.origin(url)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise ValueError("a stream's URL must be absolute, with http or https")
    return url


async def _value_of(value: Value) -> str:
    if isinstance(value, str):
        return value
    found = value()
    return found if isinstance(found, str) else await found


def _header_name(name: str) -> bytes:
    if not wire.is_header_name(name):
        raise ValueError(_NO_HEADER_NAME)
    return name.encode("ascii")


def _header(value: str) -> bytes:
    # Refused here, since the transport would open a connection first, and quote the value in its message.
    if not wire.is_header_value(value):
        raise ValueError("a header for the server holds characters that a header cannot carry")
    return value.encode("ascii")


def _final(failure: ProtocolError | ServerError | Interrupted, *, may_repeat: bool) -> Exception:
    """What is raised for a failure: where nothing may be sent again, an interruption's cause."""
    if may_repeat or not isinstance(failure, Interrupted):
        return failure
    assert isinstance(failure.__cause__, ServerError)
    return failure.__cause__


async def _read_all(reply: Reply, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await next_piece(reply):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise ProtocolError(f"the answer has more than {max_bytes} bytes")
    return b"".join(pieces)
