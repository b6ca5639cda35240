"""`DurableChat` and `AsyncDurableChat`: a session as one participant sees it and takes part in it, two shells over one core."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from streamkeep.client._background import Tasks, Threads
from streamkeep.client._channel import AsyncChannel, BlockingChannel, run_blocking
from streamkeep.client._chat_core import Actor, ActorType, Callbacks, ChatCore, Mailbox, Timeout, Tool, ToolsFor
from streamkeep.client._peer import Value, Values
from streamkeep.client._retry import Patience
from streamkeep.client._rules.chats import ChatChanges, ConnectionStatus, PendingWrite
from streamkeep.client._rules.presence import PresenceStatus
from streamkeep.client._rules.session_calls import AgentSpec, Sent, SessionRecord, StartedTurn
from streamkeep.client._session_cache import SessionCache
from streamkeep.client._sessions import Access
from streamkeep.client._streams import DEFAULT_STREAM_TIMEOUT
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import (
    ActiveGeneration,
    Agent,
    Approval,
    Message,
    Participant,
    Presence,
    Role,
    SessionInfo,
    SessionStatistics,
    ToolCall,
    Turn,
)

T = TypeVar("T")


class ChatView:
    """What both kinds of chats show. Nothing that was given out changes later."""

    _core: ChatCore

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._core!r}>"

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._core.session_id

    @property
    def actor_id(self) -> str:
        """Who takes part by this chat."""
        return self._core.actor.id

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, in the order of the stream; those that it has not brought yet come last."""
        return self._look(lambda fold: fold.messages)

    def message(self, message_id: str) -> Message | None:
        """One message, or None."""
        return self._look(lambda fold: fold.message(message_id))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """All tool calls."""
        return self._look(lambda fold: fold.tool_calls)

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """All approvals that were asked for; those that nobody has answered are `pending`."""
        return self._look(lambda fold: fold.approvals)

    @property
    def active_generations(self) -> tuple[ActiveGeneration, ...]:
        """The answers that are being written, or will be."""
        return self._look(lambda fold: fold.active_generations)

    @property
    def is_loading(self) -> bool:
        """Whether somebody is writing an answer."""
        return bool(self.active_generations)

    @property
    def pending_writes(self) -> tuple[PendingWrite, ...]:
        """What this chat wrote and the stream has not brought yet."""
        with self._core.background.guard:
            return self._core.state.writes

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All calls of agents: for which message, and which message is the answer."""
        return self._look(lambda fold: fold.turns)

    @property
    def agents(self) -> tuple[Agent, ...]:
        """The registered agents."""
        return self._look(lambda fold: fold.agents)

    @property
    def presence(self) -> tuple[Presence, ...]:
        """What actors say of their presence; `Presence.is_stale` tells whether that is old."""
        return self._look(lambda fold: fold.presence)

    @property
    def participants(self) -> tuple[Participant, ...]:
        """Everybody who ever wrote or was present."""
        return self._look(lambda fold: fold.participants)

    @property
    def statistics(self) -> SessionStatistics:
        """Counts over the whole session."""
        return self._look(lambda fold: fold.statistics)

    @property
    def session(self) -> SessionInfo | None:
        """The session's name, and where it came from, as far as its stream tells."""
        return self._look(lambda fold: fold.session)

    @property
    def offset(self) -> str:
        """How far the session's stream was read."""
        return self._core.state.fold.offset

    @property
    def connection_status(self) -> ConnectionStatus:
        """ "connecting" also while a connection that was cut off is tried again; "error" when it cannot be."""
        return self._core.state.status

    @property
    def error(self) -> Exception | None:
        """What went wrong last; forgotten when something new is written."""
        return self._core.state.error

    @property
    def is_paused(self) -> bool:
        """Whether nothing is read until `resume`."""
        return self._core.is_paused

    def _look(self, what: Callable[[SessionFold], T]) -> T:
        """Nothing changes while one looks."""
        with self._core.background.guard:
            return what(self._core.state.shown)


class DurableChat(ChatView):
    """One participant's view of a session, and its hand in it.

    Connect by entering the context, or by `connect`. What is written shows at once, is confirmed when the stream brings it,
    and goes again when the server refuses it; with no answer it stays, `unconfirmed`, until the stream tells or `retry` does.
    What is read stays readable when the chat is disconnected, and `connect` goes on from there.

    `actor_id=` says who writes (by default whom a token speaks of, else somebody new), `name` how he is called. `agent`
    answers each message that is sent, beside the registered ones. `tools` are functions by name: each call that waits for a
    client is made once, with its arguments by name, and its result, or its error, is written. That holds for what this
    actor asked, or with `tools_for="everybody"` for all calls. `cache` keeps the session as it was read, so that a
    long one opens by what is new. `create=False` only joins a session that is there. `key` is the server's key; it, and each
    value in `headers` and `params`, is a text or a callable that gives one, asked before every request.

    Callbacks run one at a time in a thread of their own, and may use the chat: `on_change` for everything, `on_message` for each
    message that was not there before, `on_finish` for each answer that has ended, `on_error` for what failed. What was there on
    connecting is not told but by `on_change`. Several threads may share a chat.

    Raises:
        ValueError: no session can have this id.
    """

    def __init__(
        self,
        url: str,
        session_id: str,
        *,
        actor_id: str | None = None,
        name: str | None = None,
        actor_type: ActorType = "user",
        agent: AgentSpec | None = None,
        tools: Mapping[str, Tool] | None = None,
        tools_for: ToolsFor = "me",
        cache: SessionCache | None = None,
        create: bool = True,
        key: Value | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: Timeout = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
        on_change: Callable[[ChatChanges], object] | None = None,
        on_message: Callable[[Message], object] | None = None,
        on_finish: Callable[[Message], object] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        self._core = ChatCore(
            url,
            session_id,
            Actor(actor_id or str(uuid.uuid4()), name, actor_type, is_made_up=actor_id is None),
            background=Threads(),
            channels=(BlockingChannel(http), BlockingChannel(http)),
            access=Access(key, headers, params),
            timeout=timeout,
            patience=patience or Patience(),
            agent=agent,
            tools=tools or {},
            tools_for=tools_for,
            cache=cache,
            creates=create,
            callbacks=Callbacks(on_change, on_message, on_finish, on_error),
        )

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, *, timeout: float | None = None) -> None:
        """Make the session where it is not there, read it up to its tail, and follow it from there.

        Raises:
            SessionNotFound: it is not there, and is not to be made.
            ServerError, ConnectionFailed, ProtocolError: it cannot be read. TimeoutError: not within so many seconds.
            LocalStoreFailed: the cache cannot be read.
        """
        run_blocking(self._core.connect(timeout))

    def disconnect(self) -> None:
        """Stop following, and leave if presence was announced. What was read stays."""
        run_blocking(self._core.disconnect())

    def close(self) -> None:
        """Disconnect, and close all connections."""
        run_blocking(self._core.close())

    def pause(self) -> None:
        """Read nothing until `resume`; what comes meanwhile is read then. Writing goes on."""
        run_blocking(self._core.pause())

    def resume(self) -> None:
        """Read on."""
        self._core.resume()

    def send_message(self, content: str, *, message_id: str | None = None, agent: AgentSpec | None = None) -> Sent:
        """Write a message, which wakes the agents; it is stored when this returns. A repeat of the same id stores nothing.

        Raises:
            ServerError: refused, and shown no more; with a status of 500 or more it stays unconfirmed.
            ConnectionFailed, ProtocolError: not answered; it stays unconfirmed. Or the chat is not connected.
        """
        return run_blocking(self._core.send(content, "user", message_id, agent))

    def append(
        self, content: str, *, role: Role = "user", message_id: str | None = None, agent: AgentSpec | None = None
    ) -> Sent:
        """`send_message` in any role. Only what a user says wakes agents."""
        return run_blocking(self._core.send(content, role, message_id, agent))

    def regenerate(
        self, from_message_id: str | None = None, *, content: str | None = None, message_id: str | None = None
    ) -> tuple[StartedTurn, ...]:
        """Have a message answered again, or with `content` another one in its place; what came after it goes.

        By default it is the last message of a user. Raises: ValueError: there is none. ServerError, ConnectionFailed.
        """
        return run_blocking(self._core.regenerate(from_message_id, content, message_id))

    def reload(self) -> tuple[StartedTurn, ...]:
        """Have the last message of a user answered again. Raises what `regenerate` does."""
        return run_blocking(self._core.regenerate(None, None, None))

    def stop(self, message_id: str | None = None) -> None:
        """Stop an answer, or all that are being written. Raises: ServerError, ConnectionFailed."""
        run_blocking(self._core.stop(message_id))

    def add_tool_result(self, tool_call_id: str, output: object = None, *, error: str | None = None) -> None:
        """Say what came of a tool call: any JSON value, or an error. Raises what `send_message` does."""
        run_blocking(self._core.add_tool_result(tool_call_id, output, error))

    def add_tool_approval_response(self, approval_id: str, approved: bool) -> None:
        """Answer an approval; the first answer counts. Raises what `send_message` does."""
        run_blocking(self._core.answer_approval(approval_id, approved))

    def retry(self, write_id: str) -> None:
        """Send what is pending again, under the same ids, so that it is stored once. Raises: KeyError, as `send_message`."""
        run_blocking(self._core.retry(write_id))

    def discard(self, write_id: str) -> None:
        """Show what is pending no more; it shows again if the stream brings it. Raises: KeyError."""
        self._core.discard(write_id)

    def wait_until_confirmed(self, write_id: str, *, timeout: float | None = None) -> None:
        """Wait until the stream has brought a write, or it was refused. Raises: TimeoutError, and what ended the reading."""
        run_blocking(self._core.wait_until_confirmed(write_id, timeout))

    def wait_until_idle(self, *, timeout: float | None = None) -> None:
        """Wait until nothing is pending and nobody is writing. Raises: TimeoutError, and what ended the reading."""
        run_blocking(self._core.wait_until_idle(timeout))

    def fork(
        self, at_message_id: str | None = None, *, new_session_id: str | None = None, name: str | None = None
    ) -> str:
        """Branch off behind a message, or at the end; the new session's id. Raises: ServerError, ConnectionFailed."""
        return run_blocking(self._core.sessions.fork(self.session_id, at_message_id, new_session_id, name))

    def register_agents(self, agents: Sequence[AgentSpec]) -> None:
        """Have agents take part, or change those that do. Raises: ServerError, ConnectionFailed."""
        run_blocking(self._core.register(agents))

    def unregister_agent(self, agent_id: str) -> None:
        """Have an agent take part no more. Raises: ServerError, ConnectionFailed."""
        run_blocking(self._core.unregister(agent_id))

    def announce(self, status: PresenceStatus = "online") -> None:
        """Be present, as the others see it, from now on until `leave`, `disconnect` or `close`."""
        self._core.announce(status)

    def typing(self, is_typing: bool = True) -> None:
        """Somebody types here. Call it with each key; three seconds after the last one it is over."""
        self._core.type(is_typing)

    def leave(self) -> None:
        """Be present no more. Raises: ServerError, ConnectionFailed."""
        run_blocking(self._core.leave())

    def rename(self, name: str) -> SessionRecord:
        """Give the session a name. Raises: ServerError, ConnectionFailed."""
        return run_blocking(self._core.sessions.rename(self.session_id, name))

    def export(self) -> dict[str, Any]:
        """All of it as JSON, as the server has it. Raises: ServerError, ConnectionFailed."""
        return run_blocking(self._core.sessions.export(self.session_id))

    def delete(self) -> None:
        """Delete the session and all that was said in it, for everybody and for good. Raises: ServerError, ConnectionFailed."""
        run_blocking(self._core.delete())

    def changes(self) -> Iterator[ChatChanges]:
        """All at first, then what has changed since, until the chat is disconnected. What is not taken is put together.

        Raises: SessionNotFound, ServerError: the session cannot be read any more.
        """
        return self._changes(self._core.open_mailbox())

    def _changes(self, mailbox: Mailbox) -> Iterator[ChatChanges]:
        try:
            while (changes := run_blocking(self._core.next_changes(mailbox))) is not None:
                yield changes
        finally:
            self._core.close_mailbox(mailbox)


class AsyncDurableChat(ChatView):
    """`DurableChat` for asyncio. Callbacks may be coroutine functions, and so may tools; others of those run in threads."""

    def __init__(
        self,
        url: str,
        session_id: str,
        *,
        actor_id: str | None = None,
        name: str | None = None,
        actor_type: ActorType = "user",
        agent: AgentSpec | None = None,
        tools: Mapping[str, Tool] | None = None,
        tools_for: ToolsFor = "me",
        cache: SessionCache | None = None,
        create: bool = True,
        key: Value | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: Timeout = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
        on_change: Callable[[ChatChanges], object] | None = None,
        on_message: Callable[[Message], object] | None = None,
        on_finish: Callable[[Message], object] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        self._core = ChatCore(
            url,
            session_id,
            Actor(actor_id or str(uuid.uuid4()), name, actor_type, is_made_up=actor_id is None),
            background=Tasks(),
            channels=(AsyncChannel(http), AsyncChannel(http)),
            access=Access(key, headers, params),
            timeout=timeout,
            patience=patience or Patience(),
            agent=agent,
            tools=tools or {},
            tools_for=tools_for,
            cache=cache,
            creates=create,
            callbacks=Callbacks(on_change, on_message, on_finish, on_error),
        )

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as its sync twin
        """`DurableChat.connect`, awaited."""
        await self._core.connect(timeout)

    async def disconnect(self) -> None:
        """`DurableChat.disconnect`, awaited."""
        await self._core.disconnect()

    async def close(self) -> None:
        """`DurableChat.close`, awaited."""
        await self._core.close()

    async def pause(self) -> None:
        """`DurableChat.pause`, awaited."""
        await self._core.pause()

    def resume(self) -> None:
        """`DurableChat.resume`."""
        self._core.resume()

    async def send_message(
        self, content: str, *, message_id: str | None = None, agent: AgentSpec | None = None
    ) -> Sent:
        """`DurableChat.send_message`, awaited."""
        return await self._core.send(content, "user", message_id, agent)

    async def append(
        self, content: str, *, role: Role = "user", message_id: str | None = None, agent: AgentSpec | None = None
    ) -> Sent:
        """`DurableChat.append`, awaited."""
        return await self._core.send(content, role, message_id, agent)

    async def regenerate(
        self, from_message_id: str | None = None, *, content: str | None = None, message_id: str | None = None
    ) -> tuple[StartedTurn, ...]:
        """`DurableChat.regenerate`, awaited."""
        return await self._core.regenerate(from_message_id, content, message_id)

    async def reload(self) -> tuple[StartedTurn, ...]:
        """`DurableChat.reload`, awaited."""
        return await self._core.regenerate(None, None, None)

    async def stop(self, message_id: str | None = None) -> None:
        """`DurableChat.stop`, awaited."""
        await self._core.stop(message_id)

    async def add_tool_result(self, tool_call_id: str, output: object = None, *, error: str | None = None) -> None:
        """`DurableChat.add_tool_result`, awaited."""
        await self._core.add_tool_result(tool_call_id, output, error)

    async def add_tool_approval_response(self, approval_id: str, approved: bool) -> None:
        """`DurableChat.add_tool_approval_response`, awaited."""
        await self._core.answer_approval(approval_id, approved)

    async def retry(self, write_id: str) -> None:
        """`DurableChat.retry`, awaited."""
        await self._core.retry(write_id)

    def discard(self, write_id: str) -> None:
        """`DurableChat.discard`."""
        self._core.discard(write_id)

    async def wait_until_confirmed(self, write_id: str, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as its sync twin
        """`DurableChat.wait_until_confirmed`, awaited."""
        await self._core.wait_until_confirmed(write_id, timeout)

    async def wait_until_idle(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as its sync twin
        """`DurableChat.wait_until_idle`, awaited."""
        await self._core.wait_until_idle(timeout)

    async def fork(
        self, at_message_id: str | None = None, *, new_session_id: str | None = None, name: str | None = None
    ) -> str:
        """`DurableChat.fork`, awaited."""
        return await self._core.sessions.fork(self.session_id, at_message_id, new_session_id, name)

    async def register_agents(self, agents: Sequence[AgentSpec]) -> None:
        """`DurableChat.register_agents`, awaited."""
        await self._core.register(agents)

    async def unregister_agent(self, agent_id: str) -> None:
        """`DurableChat.unregister_agent`, awaited."""
        await self._core.unregister(agent_id)

    def announce(self, status: PresenceStatus = "online") -> None:
        """`DurableChat.announce`."""
        self._core.announce(status)

    def typing(self, is_typing: bool = True) -> None:
        """`DurableChat.typing`."""
        self._core.type(is_typing)

    async def leave(self) -> None:
        """`DurableChat.leave`, awaited."""
        await self._core.leave()

    async def rename(self, name: str) -> SessionRecord:
        """`DurableChat.rename`, awaited."""
        return await self._core.sessions.rename(self.session_id, name)

    async def export(self) -> dict[str, Any]:
        """`DurableChat.export`, awaited."""
        return await self._core.sessions.export(self.session_id)

    async def delete(self) -> None:
        """`DurableChat.delete`, awaited."""
        await self._core.delete()

    def changes(self) -> AsyncIterator[ChatChanges]:
        """`DurableChat.changes`, awaited."""
        return self._changes(self._core.open_mailbox())

    async def _changes(self, mailbox: Mailbox) -> AsyncIterator[ChatChanges]:
        try:
            while (changes := await self._core.next_changes(mailbox)) is not None:
                yield changes
        finally:
            self._core.close_mailbox(mailbox)
