"""What a chat does, over channels and a background of either kind: follow the stream, write, run tools, tell, be present.

One piece of work reads the stream for as long as the chat is connected, and comes back whenever it is cut off. What it
brings, and what is written meanwhile, goes through one `ChatState`, under the background's guard. Callbacks are made by
another piece of work, in order, so that they may do with the chat what they like, and hold up nobody.
"""

from __future__ import annotations

import json
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import httpx

from streamkeep.client._background import Background, WorkStopped
from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import Channel
from streamkeep.client._errors import (
    BodyConsumed,
    ConnectionFailed,
    InvalidOffset,
    LocalStoreFailed,
    ProtocolError,
    ServerError,
    StreamGone,
    StreamkeepError,
)
from streamkeep.client._peer import Peer
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, session_calls, wire
from streamkeep.client._rules.chats import ALL, STATUS, ChatChanges, ChatState, PendingWrite, Step
from streamkeep.client._rules.decoding import Batches, JsonBatch
from streamkeep.client._rules.presence import PresencePlan, PresenceStatus, Said
from streamkeep.client._rules.session_calls import AgentSpec, Sent, StartedTurn
from streamkeep.client._session_cache import SessionCache
from streamkeep.client._sessions import Access, SessionsCore
from streamkeep.client._streams import StreamCore
from streamkeep.sessions import events
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import Message, Role, ToolCall

logger = logging.getLogger("streamkeep.client")

ActorType = Literal["user", "agent"]
Tool = Callable[..., object]
ToolsFor = Literal["me", "everybody"]
Timeout = httpx.Timeout | float | None

_FIRST_PAUSE_SECONDS = 0.2
# Whether somebody is there is worth no long wait, and a farewell least of all.
_PRESENCE_PATIENCE = Patience(send_seconds=2.0)
_TEMPORARY = frozenset((408, 429))
# A fold is kept again when a quarter of it is new: what that costs stays in proportion to what was read.
_KEEP_EVENTS = 256
_ALREADY_ANSWERED = "already_answered"


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom a chat tells."""

    on_change: Callable[[ChatChanges], object] | None
    on_message: Callable[[Message], object] | None
    on_finish: Callable[[Message], object] | None
    on_error: Callable[[Exception], object] | None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who takes part by a chat. Nobody has said who, where the id was made up."""

    id: str
    name: str | None
    type: ActorType
    is_made_up: bool = False

    def fields(self) -> dict[str, Any]:
        return session_calls.present({"actorId": self.id, "actorName": self.name, "actorType": self.type})


@dataclass(slots=True, eq=False, weakref_slot=True)
class Mailbox:
    """Changes for somebody who iterates over them. What is not taken yet is put together; at first all is new."""

    changes: ChatChanges | None = ALL


class ChatCore:
    """One chat. All methods may be called by several threads, or tasks, at once."""

    def __init__(
        self,
        url: str,
        session_id: str,
        actor: Actor,
        *,
        background: Background,
        channels: tuple[Channel, Channel],
        access: Access,
        timeout: Timeout,
        patience: Patience,
        agent: AgentSpec | None,
        tools: Mapping[str, Tool],
        tools_for: ToolsFor,
        cache: SessionCache | None,
        creates: bool,
        callbacks: Callbacks,
    ) -> None:
        writing, self._reading = channels
        self.session_id = wire.check_session_id(session_id)
        self.actor = actor
        self.agent = agent
        self.background = background
        self.sessions = SessionsCore(writing, url, access, timeout, patience)
        self.state = ChatState(tools, caller_id=actor.id if tools_for == "me" else None)
        self.plan = PresencePlan()
        self.is_open = False
        self.is_paused = False
        self._url = session_calls.stream_url(url, session_id)
        self._address = access.address(self._url)
        self._within = replace(timeouts_of(timeout), read=None)
        self._patience = patience
        self._tools = tools
        self._cache = cache
        self._access = access
        self._creates = creates
        self._callbacks = callbacks
        self._calls: deque[Callable[[], object]] = deque()
        self._changes: ChatChanges | None = None
        self._mailboxes: WeakSet[Mailbox] = WeakSet()
        self._is_current = False
        self._is_ended = False
        self._connects_until = 0.0
        self._failure: Exception | None = None
        self._kept_position = 0
        self._made_at = ""

    def __repr__(self) -> str:
        return f"{self.session_id!r} of {self.sessions!r} {self.state.status}"

    # Being connected

    async def connect(self, within_seconds: float | None) -> None:
        if self._failure is not None:
            await self.disconnect()
        with self.background.guard:
            if self.is_open:
                return
            self.is_open, self.is_paused, self._is_current, self._is_ended = True, False, False, False
            self._connects_until = time.monotonic() + self._patience.silence_seconds
            self.state.status, self.state.error, self._failure = "connecting", None, None
            self._tell(STATUS)
        try:
            await self._open_session()
            self.background.start("reader", self._follow)
            self.background.start("presence", self._keep_presence)
            self.background.start("callbacks", self._call_back)
            await self.background.wait(self._is_caught_up, within_seconds)
        except BaseException as exc:
            await self._stop()
            with self.background.guard:
                if isinstance(exc, Exception):
                    self._fail(exc)
                else:
                    self.state.status = "disconnected"
            await self._call_the_rest()
            raise

    async def disconnect(self) -> None:
        with self.background.guard:
            if not self.is_open:
                return
        await self._stop()
        with self.background.guard:
            self.state.status, self._failure = "disconnected", None
            self._tell(STATUS)
        if self.plan.status is not None:
            with suppress(StreamkeepError, httpx.TransportError):
                await self._say_farewell()
        await self._keep()
        await self._call_the_rest()

    async def close(self) -> None:
        await self.disconnect()
        await self.sessions.channel.close()

    async def pause(self) -> None:
        with self.background.guard:
            if not self.is_open or self.is_paused:
                return
            self.is_paused = True
            self.state.status = "disconnected"
            self._tell(STATUS)
        await self._reading.close()

    def resume(self) -> None:
        with self.background.guard:
            if self.is_paused:
                self.is_paused = False
                self.state.status = "connecting"
                self._tell(STATUS)

    async def _open_session(self) -> None:
        if self.actor.is_made_up and self._access.is_told:
            # Who comes with a token of somebody's may not call himself otherwise.
            self.actor = replace(self.actor, id=await self.sessions.subject() or self.actor.id, is_made_up=False)
            if self.state.caller_id is not None:
                self.state.caller_id = self.actor.id
        record = await self.sessions.create(self.session_id, None) if self._creates else None
        if self._cache is not None:
            record = record or await self.sessions.get(self.session_id)
            await self._open_kept(self._cache, record.created_at or "")

    async def _open_kept(self, cache: SessionCache, made_at: str) -> None:
        """Begin with what was kept, unless that was another session, which had this id before."""
        self._made_at = made_at
        if self.state.fold.position > 0:
            return
        fold = await self._reading.run(lambda: cache.get(self._url, self._access.name, made_at))
        if fold is not None:
            with self.background.guard:
                self._kept_position = fold.position
                self._tell(self.state.restart(fold))

    async def _stop(self) -> None:
        with self.background.guard:
            self.is_open = False
        await self.background.stop(self._reading.close)

    def _is_caught_up(self) -> bool | None:
        self._check_failure()
        return self._is_current or None

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        """The stream cannot be read, or not any more. Under the guard."""
        if self._failure is None:
            self.state.status, self._failure = "error", error
            self._report(error)

    # Reading

    async def _follow(self) -> None:
        attempts = 0
        while True:
            await self.background.wait(lambda: None if self.is_paused else True)
            try:
                if await self._read():
                    attempts = 0
                    continue
            except (StreamkeepError, httpx.TransportError) as exc:
                self.background.check()
                if not self._may_come_back(exc):
                    return
                attempts = 1 if self.state.status == "connected" else attempts + 1
            else:
                return
            if not self.is_paused:
                self._is_cut_off()
                await self._reading.sleep(self._pause_seconds(attempts))

    async def _read(self) -> bool:
        """Read until the chat is paused; false when the stream is closed, and nothing more will come."""
        # It is told of an interruption at once, and itself decides how often to come back.
        patience = replace(self._patience, silence_seconds=0.0)
        peer = Peer(self._reading, self._address, within=self._within, patience=patience)
        core = StreamCore(peer, self.state.fold.offset, True, owns_channel=False)
        batches = core.items(Batches(), with_data=False)
        try:
            while True:
                batch = await batches.next()
                self.background.check()
                if self.is_paused:
                    return True
                self._take(batch)
                await self._keep_now_and_then()
        except StopAsyncIteration:
            with self.background.guard:
                self.state.status, self._is_current, self._is_ended = "disconnected", True, True
                self._tell(STATUS)
            return False
        except ServerError as exc:
            raise session_calls.refusal(exc, self.session_id) from exc
        finally:
            await core.close()

    def _take(self, batch: JsonBatch[Any]) -> None:
        with self.background.guard:
            step = self.state.take(batch.items, batch.offset, is_up_to_date=batch.is_up_to_date)
            if batch.is_up_to_date:
                self._is_current = True
            if self._is_current and self.state.status != "connected":
                self.state.status = "connected"
                self.plan.repeat()
            self._tell(step)
            for call in step.calls:
                self.background.start("tool", partial(self._run_tool, call))

    def _may_come_back(self, error: Exception) -> bool:
        """Whether to go on reading after an error; else it is told."""
        with self.background.guard:
            if self.is_paused:
                return True
            if isinstance(error, InvalidOffset | StreamGone) and self.state.fold.offset != protocol.START:
                # What was read before is no beginning of what is there: another stream has this name now.
                self._kept_position = 0
                self._tell(self.state.restart(SessionFold()))
                return True
            if isinstance(error, BodyConsumed):
                return True
            # Who connects may be told that it fails. Who has been connected comes back, whenever that may be.
            is_patient = self._is_current or time.monotonic() < self._connects_until
            if is_patient and _is_temporary(error):
                return True
            self._fail(error)
            return False

    def _is_cut_off(self) -> None:
        with self.background.guard:
            if self.state.status != "connecting":
                self.state.status = "connecting"
                self._tell(STATUS)

    def _pause_seconds(self, attempts: int) -> float:
        longest = self._patience.pause_seconds
        first = self._patience.first_pause_seconds or min(_FIRST_PAUSE_SECONDS, longest)
        return random.uniform(0, min(longest, first * self._patience.growth ** min(attempts, 32)))

    # Keeping

    async def _keep_now_and_then(self) -> None:
        new = self.state.fold.position - self._kept_position
        if self.state.is_loaded and new >= max(_KEEP_EVENTS, self._kept_position // 4):
            await self._keep()

    async def _keep(self) -> None:
        if self._cache is None or self.state.fold.position == self._kept_position or not self.state.is_loaded:
            return
        cache = self._cache
        with self.background.guard:
            kept, self._kept_position = self.state.fold.to_json(), self.state.fold.position
        try:
            await self._reading.run(lambda: cache.put(self._url, self._access.name, self._made_at, kept))
        except LocalStoreFailed as exc:
            with self.background.guard:
                self._report(exc)

    # Telling

    def _tell(self, step: Step) -> None:
        """Pass a step on to whoever wants to know. Under the guard."""
        callbacks = self._callbacks
        for mailbox in self._mailboxes:
            mailbox.changes = step.changes if mailbox.changes is None else mailbox.changes | step.changes
        if callbacks.on_change is not None:
            if self._changes is None:
                self._calls.append(self._tell_changes)
            self._changes = step.changes if self._changes is None else self._changes | step.changes
        if callbacks.on_message is not None:
            self._calls.extend(partial(callbacks.on_message, message) for message in step.came)
        if callbacks.on_finish is not None:
            self._calls.extend(partial(callbacks.on_finish, message) for message in step.finished)
        self.background.announce()

    def _tell_changes(self) -> object:
        with self.background.guard:
            changes, self._changes = self._changes, None
        assert self._callbacks.on_change is not None
        assert changes is not None
        return self._callbacks.on_change(changes)

    def _report(self, error: Exception) -> None:
        """Something went wrong. Under the guard."""
        self.state.error = error
        if self._callbacks.on_error is not None:
            self._calls.append(partial(self._callbacks.on_error, error))
        self._tell(STATUS)

    async def _call_back(self) -> None:
        while True:
            await self._call(await self.background.wait(lambda: self._calls.popleft() if self._calls else None))

    async def _call_the_rest(self) -> None:
        """What is left to tell when the work that tells has ended."""
        while True:
            with self.background.guard:
                if not self._calls:
                    return
                callback = self._calls.popleft()
            await self._call(callback)

    async def _call(self, callback: Callable[[], object]) -> None:
        try:
            await self.background.call(callback)
        except WorkStopped:
            raise
        except Exception as exc:
            if isinstance(callback, partial) and callback.func is self._callbacks.on_error:
                logger.exception("the callback for errors failed")
                return
            with self.background.guard:
                self._report(exc)

    def open_mailbox(self) -> Mailbox:
        mailbox = Mailbox()
        with self.background.guard:
            self._mailboxes.add(mailbox)
        return mailbox

    def close_mailbox(self, mailbox: Mailbox) -> None:
        with self.background.guard:
            self._mailboxes.discard(mailbox)

    async def next_changes(self, mailbox: Mailbox) -> ChatChanges | None:
        """What has changed since this was asked last, or None when the chat is not connected any more.

        Raises: what ended the reading.
        """

        def look() -> tuple[ChatChanges | None] | None:
            if mailbox.changes is not None:
                changes, mailbox.changes = mailbox.changes, None
                return (changes,)
            self._check_failure()
            return None if self.is_open and not self._is_ended else (None,)

        return (await self.background.wait(look))[0]

    # Writing

    async def send(self, content: str, role: Role, message_id: str | None, agent: AgentSpec | None) -> Sent:
        message_id, txid = message_id or str(uuid.uuid4()), str(uuid.uuid4())
        agent = agent or self.agent
        fields = {
            "content": content,
            "messageId": message_id,
            "role": role,
            "agent": None if agent is None or role != "user" else agent.as_json(),
        }
        part = {"type": "text", "content": content}
        event = events.whole_message(message_id, [part], author=self._author, role=role, at=_now())
        write = PendingWrite("message", message_id, txid, event, self._body(fields, txid))
        return Sent(message_id, session_calls.parse_turns(await self._write(write)))

    async def add_tool_result(self, tool_call_id: str, output: object, error: str | None) -> None:
        call = self.state.fold.tool_call(tool_call_id)
        await self._add_result(tool_call_id, None if call is None else call.message_id, output, error)

    async def _add_result(self, tool_call_id: str, message_id: str | None, output: object, error: str | None) -> None:
        txid, at = str(uuid.uuid4()), _now()
        event = events.tool_result(
            message_id or tool_call_id, 0, tool_call_id, output, error, author=self._author, at=at
        )
        fields = {"toolCallId": tool_call_id, "error": error, "messageId": message_id}
        body = self._body(fields, txid, output=output)
        await self._write(PendingWrite("tool-result", tool_call_id, txid, event, body))

    async def answer_approval(self, approval_id: str, approved: bool) -> None:
        txid = str(uuid.uuid4())
        approval = self.state.fold.approval(approval_id)
        message_id = approval_id if approval is None else approval.message_id
        event = events.approval_response(message_id, 0, approval_id, approved, author=self._author, at=_now())
        body = self._body({"approved": approved}, txid)
        await self._write(PendingWrite("approval", approval_id, txid, event, body))

    async def regenerate(
        self, from_message_id: str | None, content: str | None, message_id: str | None
    ) -> tuple[StartedTurn, ...]:
        if from_message_id is None:
            from_message_id = self._last_question()
        if content is not None:
            message_id = message_id or str(uuid.uuid4())
        fields = {"fromMessageId": from_message_id, "content": content, "messageId": message_id}
        agent = None if self.agent is None else self.agent.as_json()
        answer = await self._ask("POST", "regenerate", fields=fields | {"agent": agent})
        with self.background.guard:
            self.state.expect(session_calls.parse_offset(answer))
        return session_calls.parse_turns(answer)

    async def stop(self, message_id: str | None) -> None:
        await self._ask("POST", "stop", fields={"messageId": message_id})

    async def register(self, agents: Sequence[AgentSpec]) -> None:
        await self._ask("POST", "agents", fields={"agents": [agent.as_json() for agent in agents]})

    async def unregister(self, agent_id: str) -> None:
        await self._ask("DELETE", "agents", agent_id)

    async def delete(self) -> None:
        await self.sessions.delete(self.session_id)
        cache = self._cache
        if cache is not None:
            await self._reading.run(lambda: cache.remove(self._url))

    def pending(self, write_id: str) -> PendingWrite:
        """Raises: KeyError."""
        found = next((write for write in self.state.writes if write.id == write_id), None)
        if found is None:
            raise KeyError(f"nothing is pending under the id {write_id}")
        return found

    async def retry(self, write_id: str) -> None:
        with self.background.guard:
            write = self.pending(write_id)
        await self._write(write)

    def discard(self, write_id: str) -> None:
        with self.background.guard:
            self._tell(self.state.take_back(self.pending(write_id).key))

    async def wait_until_confirmed(self, write_id: str, within_seconds: float | None) -> None:
        def look() -> bool | None:
            if all(write.id != write_id for write in self.state.writes):
                return True
            self._check_open()
            return None

        await self.background.wait(look, within_seconds)

    async def wait_until_idle(self, within_seconds: float | None) -> None:
        def look() -> bool | None:
            if self.state.is_idle:
                return True
            self._check_open()
            return None

        await self.background.wait(look, within_seconds)

    def _check_open(self) -> None:
        self._check_failure()
        if not self.is_open:
            raise ConnectionFailed("the chat is not connected")

    async def _write(self, write: PendingWrite) -> dict[str, Any]:
        """Show a write, and send it until it is answered. What is refused is shown no more.

        Raises:
            ServerError: refused; with a status of 500 or more, and for what `_TEMPORARY` holds, it stays unconfirmed.
            ConnectionFailed, ProtocolError: not answered; it stays unconfirmed.
        """
        with self.background.guard:
            self._check_open()
            self._tell(self.state.begin(write))
        try:
            answer = await self.sessions.ask("POST", self.session_id, *_path_of(write), body=write.body)
            offset = session_calls.parse_offset(answer)
        except BaseException as exc:
            is_refused = isinstance(exc, ServerError) and not _is_temporary(exc)
            with self.background.guard:
                self._tell(self.state.take_back(write.key) if is_refused else self.state.doubt(write.key))
                if isinstance(exc, Exception):
                    self._report(exc)
            raise
        with self.background.guard:
            self._tell(self.state.accept(write.key, offset))
        return answer

    async def _ask(self, method: str, *segments: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = None if fields is None else self._body(fields, str(uuid.uuid4()))
        try:
            return await self.sessions.ask(method, self.session_id, *segments, body=body)
        except Exception as exc:
            with self.background.guard:
                self._report(exc)
            raise

    def _body(self, fields: Mapping[str, Any], txid: str, **kept: object) -> bytes:
        """A write's body; of `kept` None stays, too. Raises: TypeError, ValueError: something in it is no JSON."""
        return session_calls.encoded(
            {**session_calls.present(fields), **kept, **self.actor.fields(), "txid": txid},
        )

    @property
    def _author(self) -> events.Author:
        return events.Author(self.actor.id, self.actor.name)

    def _last_question(self) -> str:
        questions = [message.id for message in self.state.fold.messages if message.role == "user"]
        if not questions:
            raise ValueError("there is no message of a user to answer again")
        return questions[-1]

    # Tools

    async def _run_tool(self, call: ToolCall) -> None:
        output, error = None, None
        try:
            output = await self._called(self._tools[call.name], call.input)
            json.dumps(output, allow_nan=False)
        except WorkStopped:
            raise
        except Exception as exc:  # noqa: BLE001  # whoever called the tool is told
            output, error = None, f"{type(exc).__name__}: {exc}"
        while True:
            self.background.check()
            try:
                await self._add_result(call.id, call.message_id, output, error)
            except ServerError as exc:
                # Somebody else's answer counts, and the stream brings it.
                if not _is_temporary(exc) or exc.code == _ALREADY_ANSWERED:
                    return
            except StreamkeepError:
                pass
            else:
                return
            await self.background.wait(lambda: self.state.status == "connected" or None)

    async def _called(self, tool: Tool, arguments: object) -> object:
        if not isinstance(arguments, dict):
            raise TypeError("the arguments are not a JSON object")
        function: Callable[[], object | Awaitable[object]] = partial(tool, **arguments)
        return await self.background.call(function, may_block=True)

    # Presence

    def announce(self, status: PresenceStatus) -> None:
        with self.background.guard:
            self.plan.announce(status)
            self.background.announce()

    def type(self, is_typing: bool) -> None:
        with self.background.guard:
            self.plan.type(is_typing, now=time.monotonic())
            self.background.announce()

    async def leave(self) -> None:
        await self._say_farewell()
        with self.background.guard:
            self.plan.leave()

    async def _keep_presence(self) -> None:
        while True:
            with self.background.guard:
                said = self.plan.due(now=time.monotonic())
            if said is not None:
                with suppress(StreamkeepError, httpx.TransportError):
                    await self._say(said)
                with self.background.guard:
                    self.plan.said(said, now=time.monotonic())
            with self.background.guard:
                now = time.monotonic()
                next_at = self.plan.next_at(now=now)
            with suppress(TimeoutError):
                await self.background.wait(
                    lambda: self.plan.due(now=time.monotonic()), None if next_at == float("inf") else next_at - now
                )

    async def _say(self, said: Said) -> None:
        status, is_typing = said
        fields = session_calls.present({"name": self.actor.name, "actorType": self.actor.type, "typing": is_typing})
        body = session_calls.encoded({"status": status, **fields})
        await self.sessions.ask(
            "PUT", self.session_id, "presence", self.actor.id, body=body, patience=_PRESENCE_PATIENCE
        )

    async def _say_farewell(self) -> None:
        await self.sessions.ask("DELETE", self.session_id, "presence", self.actor.id, patience=_PRESENCE_PATIENCE)


def _is_temporary(error: Exception) -> bool:
    """Whether it may pass, so that nobody knows yet."""
    if isinstance(error, ServerError):
        return error.status >= 500 or error.status in _TEMPORARY
    return isinstance(error, ConnectionFailed | ProtocolError | httpx.TransportError)


def _path_of(write: PendingWrite) -> tuple[str, ...]:
    match write.kind:
        case "message":
            return ("messages",)
        case "tool-result":
            return ("tool-results",)
        case "approval":
            return ("approvals", write.id)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
