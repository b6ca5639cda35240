"""Sessions of a server: listed, renamed, forked, exported, deleted; `Sessions` and `AsyncSessions` over one core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import AsyncChannel, BlockingChannel, Channel, run_blocking
from streamkeep.client._errors import ServerError
from streamkeep.client._peer import Address, Peer, Value, Values, checked_url
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, session_calls, wire
from streamkeep.client._rules.session_calls import SessionRecord
from streamkeep.client._streams import DEFAULT_STREAM_TIMEOUT

_MAX_EXPORT_BYTES = 1024 * 1024 * 1024
_PAGE_ROWS = 100


class Sessions:
    """The durable sessions of the server at `url`. An id that none can have is a ValueError, and nothing is asked.

    `key` is the server's key. It, and each value in `headers` and `params`, is a text or a callable that gives one.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Value | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = SessionsCore(BlockingChannel(http), url, Access(key, headers, params), timeout, patience)

    def __repr__(self) -> str:
        return f"<Sessions of {self._core!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def list(self, *, search: str | None = None) -> Iterator[SessionRecord]:
        """All sessions, the one that was written to last first; with `search` those whose id or name has this in it."""
        before = None
        while True:
            records, before = run_blocking(self._core.page(search, before))
            yield from records
            if before is None:
                return

    def create(self, session_id: str, *, name: str | None = None) -> SessionRecord:
        """Make a session, or find the one that is there."""
        return run_blocking(self._core.create(session_id, name))

    def get(self, session_id: str) -> SessionRecord:
        """One session. Raises: SessionNotFound."""
        return run_blocking(self._core.get(session_id))

    def rename(self, session_id: str, name: str) -> SessionRecord:
        """Give it a name. Raises: SessionNotFound."""
        return run_blocking(self._core.rename(session_id, name))

    def delete(self, session_id: str) -> None:
        """Delete a session and all that was said in it, for good. Raises: SessionNotFound."""
        run_blocking(self._core.delete(session_id))

    def fork(
        self,
        session_id: str,
        *,
        at_message_id: str | None = None,
        new_session_id: str | None = None,
        name: str | None = None,
    ) -> str:
        """Branch off behind a message, or at the end; the new session's id. Raises: SessionNotFound, ServerError."""
        return run_blocking(self._core.fork(session_id, at_message_id, new_session_id, name))

    def export(self, session_id: str) -> dict[str, Any]:
        """All of it as JSON: messages, tool calls, approvals, statistics. Raises: SessionNotFound."""
        return run_blocking(self._core.export(session_id))

    def compare(self, session_id: str, other_id: str) -> dict[str, Any]:
        """Where two sessions of one origin part, and what each has from there on. Raises: SessionNotFound, ServerError."""
        return run_blocking(self._core.compare(session_id, other_id))

    def disconnect(self) -> None:
        """Close the connections."""
        run_blocking(self._core.channel.close())


class AsyncSessions:
    """`Sessions` for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        key: Value | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = SessionsCore(AsyncChannel(http), url, Access(key, headers, params), timeout, patience)

    def __repr__(self) -> str:
        return f"<AsyncSessions of {self._core!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def list(self, *, search: str | None = None) -> AsyncIterator[SessionRecord]:
        """`Sessions.list`, awaited."""
        before = None
        while True:
            records, before = await self._core.page(search, before)
            for record in records:
                yield record
            if before is None:
                return

    async def create(self, session_id: str, *, name: str | None = None) -> SessionRecord:
        """`Sessions.create`, awaited."""
        return await self._core.create(session_id, name)

    async def get(self, session_id: str) -> SessionRecord:
        """`Sessions.get`, awaited."""
        return await self._core.get(session_id)

    async def rename(self, session_id: str, name: str) -> SessionRecord:
        """`Sessions.rename`, awaited."""
        return await self._core.rename(session_id, name)

    async def delete(self, session_id: str) -> None:
        """`Sessions.delete`, awaited."""
        await self._core.delete(session_id)

    async def fork(
        self,
        session_id: str,
        *,
        at_message_id: str | None = None,
        new_session_id: str | None = None,
        name: str | None = None,
    ) -> str:
        """`Sessions.fork`, awaited."""
        return await self._core.fork(session_id, at_message_id, new_session_id, name)

    async def export(self, session_id: str) -> dict[str, Any]:
        """`Sessions.export`, awaited."""
        return await self._core.export(session_id)

    async def compare(self, session_id: str, other_id: str) -> dict[str, Any]:
        """`Sessions.compare`, awaited."""
        return await self._core.compare(session_id, other_id)

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._core.channel.close()


@dataclass(frozen=True, slots=True)
class Access:
    """What requests say of who asks."""

    key: Value | None
    headers: Values | None
    params: Values | None

    @property
    def is_told(self) -> bool:
        """Whether requests say anything of who asks."""
        return bool(self._all_headers or self.params)

    @property
    def name(self) -> str:
        """What tells one caller from another, as far as it does not change; a secret."""
        values = {**self._all_headers, **(self.params or {})}
        return repr(sorted((name, value) for name, value in values.items() if isinstance(value, str)))

    @property
    def _all_headers(self) -> dict[str, Value]:
        return {**(self.headers or {}), **({} if self.key is None else {wire.KEY: self.key})}

    def address(self, url: str) -> Address:
        return Address(url, self._all_headers, self.params)


class SessionsCore:
    """What both kinds ask, and chats too. All of it may be asked twice, so it is repeated until it is answered."""

    def __init__(
        self,
        channel: Channel,
        url: str,
        access: Access,
        timeout: httpx.Timeout | float | None,
        patience: Patience | None,
    ) -> None:
        self.channel = channel
        self.base: str = checked_url(url).rstrip("/")
        self._peer = Peer(channel, access.address(url), within=timeouts_of(timeout), patience=patience or Patience())

    def __repr__(self) -> str:
        return wire.without_query(self.base)

    async def page(self, search: str | None, before: str | None) -> tuple[tuple[SessionRecord, ...], str | None]:
        asked = session_calls.present({"search": search, "before": before, "limit": str(_PAGE_ROWS)})
        url = wire.read_url(session_calls.session_url(self.base), **asked)
        answer = await self._peer.at(url).ask("GET")
        return session_calls.parse_records(session_calls.parse_fields(answer.content))

    async def create(self, session_id: str, name: str | None) -> SessionRecord:
        fields = await self.ask("PUT", session_id, body=_body(name=name))
        return session_calls.parse_record(fields)

    async def get(self, session_id: str) -> SessionRecord:
        return session_calls.parse_record(await self.ask("GET", session_id))

    async def rename(self, session_id: str, name: str) -> SessionRecord:
        return session_calls.parse_record(await self.ask("PATCH", session_id, body=_body(name=name)))

    async def delete(self, session_id: str) -> None:
        await self.ask("DELETE", session_id)

    async def fork(
        self, session_id: str, at_message_id: str | None, new_session_id: str | None, name: str | None
    ) -> str:
        if new_session_id is not None:
            wire.check_session_id(new_session_id)
        body = _body(atMessageId=at_message_id, newSessionId=new_session_id, name=name)
        return session_calls.parse_record(await self.ask("POST", session_id, "fork", body=body)).id

    async def export(self, session_id: str) -> dict[str, Any]:
        return await self.ask("GET", session_id, "export", max_bytes=_MAX_EXPORT_BYTES)

    async def compare(self, session_id: str, other_id: str) -> dict[str, Any]:
        return await self.ask(
            "GET", session_id, "compare", wire.check_session_id(other_id), max_bytes=_MAX_EXPORT_BYTES
        )

    async def subject(self) -> str | None:
        """Of whom the caller's token speaks; None where it has none, or one that speaks of nobody."""
        answer = await self._peer.at(f"{self.base}/api/whoami").ask("GET")
        subject = session_calls.parse_fields(answer.content).get("subject")
        return subject if isinstance(subject, str) else None

    async def ask(
        self,
        method: str,
        session_id: str,
        *segments: str,
        body: bytes | None = None,
        max_bytes: int | None = None,
        patience: Patience | None = None,
    ) -> dict[str, Any]:
        """Ask one of a session's routes; what it answers, with the `offset` after what was written.

        Raises: ValueError, SessionNotFound, ServerError, ConnectionFailed, ProtocolError.
        """
        url = session_calls.session_url(self.base, wire.check_session_id(session_id), *segments)
        peer = self._peer.at(url)
        peer.patience = patience or peer.patience
        headers = {} if body is None else {"Content-Type": protocol.JSON}
        try:
            answer = await peer.ask(method, headers, body or b"", max_bytes=max_bytes)
        except ServerError as exc:
            raise session_calls.refusal(exc, session_id) from exc
        fields = session_calls.parse_fields(answer.content) if answer.content else {}
        return session_calls.present({"offset": answer.headers.get(wire.NEXT_OFFSET)}) | fields


def _body(**fields: object) -> bytes:
    return session_calls.encoded(session_calls.present(fields))
