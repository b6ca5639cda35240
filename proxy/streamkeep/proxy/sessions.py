"""Durable sessions: what requests do to a session's stream and its record.

The stream is the only truth, and the record keeps what is secret. Every write is one append by a writer that is named after
what it writes, so of two that write the same one succeeds, in whatever process; the other one looks at what stands there and
answers as if it had been the first, or that something else stands there. What an agent must do is written in the same append
as what caused it, and the session is marked as due before: whoever dies in between leaves a session that a runner finds.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

from streamkeep.proxy import deletion
from streamkeep.proxy.errors import ApiError, problem
from streamkeep.proxy.forwarding import Forwarder
from streamkeep.proxy.generations import Generations
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.registry import Registry
from streamkeep.proxy.rules.access import Principal
from streamkeep.proxy.rules.session_agents import AgentBook, AgentSpec
from streamkeep.proxy.rules.session_requests import (
    Actor,
    NewApproval,
    NewFork,
    NewMessage,
    NewPresence,
    NewToolResult,
    Part,
    Regeneration,
)
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.session_folds import SessionFolds, make_views
from streamkeep.proxy.session_streams import CONFIG, append_of, now, stored, stream_of
from streamkeep.proxy.subscriptions import Subscriptions
from streamkeep.sessions import SessionFold, events
from streamkeep.sessions.edits import Cut, cut_at, ends_of_open, removals
from streamkeep.sessions.events import Author, Event, with_txid, writer_id
from streamkeep.sessions.turns import Decided, Listening, turn_again, turns_after_answers, turns_after_message
from streamkeep.sessions.views import (
    Agent,
    Approval,
    ForkedFrom,
    Message,
    Place,
    Presence,
    Role,
    SessionInfo,
    ToolCall,
    Turn,
)
from streamkeep.storage import (
    Appended,
    Erasure,
    ForkPoint,
    GenerationKey,
    ItemRefused,
    Producer,
    SessionKey,
    SessionNotFound,
    SessionRecord,
    Store,
    StreamExists,
    StreamGone,
    StreamKey,
    StreamNotFound,
)
from streamkeep.storage.appender import Appender
from streamkeep.storage.rules.offsets import format_offset, parse_offset

logger = logging.getLogger(__name__)

_DELETE_SECONDS = 5.0
_STOP_SECONDS = 2.0
_STOPPED_AT_ONCE = 50
_STOP_POLL_SECONDS = 0.05
_MAX_REMOVALS = 5


@dataclass(frozen=True, slots=True)
class Written:
    """What a write came to: the message, the turns that it caused, and the offset after it."""

    message_id: str
    turns: tuple[Turn, ...]
    offset: str


@dataclass(frozen=True, slots=True)
class Found:
    """A session: its record, and what its stream says."""

    record: SessionRecord
    fold: SessionFold


class Sessions:
    """What can be done with sessions; one for each service. `wake` tells this process's runner that a session is due."""

    def __init__(
        self,
        store: Store,
        appender: Appender,
        readers: Readers,
        registry: Registry,
        subscriptions: Subscriptions,
        generations: Generations,
        forwarder: Forwarder,
        *,
        max_turns: int,
        wake: Callable[[SessionKey], None],
    ) -> None:
        self.folds = SessionFolds(store)
        self.max_turns = max_turns
        self._store = store
        self._appender = appender
        self._readers = readers
        self._registry = registry
        self._subscriptions = subscriptions
        self._generations = generations
        self._forwarder = forwarder
        self._wake = wake

    # The session itself

    async def create(self, key: SessionKey, name: str | None) -> tuple[SessionRecord, bool]:
        """Make a session, or find it; whether this call made it. A stream of JSON that is there becomes its stream.

        Raises:
            StreamExists: there is a stream of another configuration, or a deleted one that forks still need.
            ApiError: 409, the stream that is there cannot be a session's.
        """
        told = events.session_event(SessionInfo(key.id, name, now(), None))
        try:
            stream = await self._store.stream(stream_of(key), is_touched=False)
        except (StreamNotFound, StreamGone):
            created = await self._store.create_stream(stream_of(key), CONFIG, await stored([told]))
            stream = created.stream
            if created.is_new:
                self._tell_of_new(stream.key, stream.id, stream.tail.position)
        if not stream.is_message_stream or stream.tail.is_closed:
            raise problem(409, "not_a_session", "the stream that is there is closed, or not one of JSON")
        record, is_new = await self._store.sessions.create(key, name=name)
        if (await self.folds.current(key)).session is None:
            await self._append(key, [told], Producer(writer_id("session", key.id), 0, 0))
        return record, is_new

    async def find(self, key: SessionKey) -> Found:
        """Raises: SessionNotFound, StreamNotFound, StreamGone."""
        record = await self._store.sessions.session(key)
        return Found(record, await self.folds.current(key))

    async def view(self, key: SessionKey) -> Found:
        """As `find`, for somebody who is to look at all messages and tool calls."""
        record = await self._store.sessions.session(key)
        return Found(record, await self.folds.viewed(key))

    async def rename(self, key: SessionKey, name: str | None, txid: str | None) -> SessionRecord:
        """Raises: SessionNotFound, StreamNotFound."""
        record = await self._store.sessions.rename(key, name)
        known = (await self.folds.current(key)).session
        info = SessionInfo(key.id, name, format_timestamp(record.created_at), None)
        if known is not None and known.id == key.id:
            info = replace(known, name=name)
        await self._append(key, with_txid([events.session_event(info)], txid))
        return record

    async def delete(self, key: SessionKey) -> int:
        """Delete a session with its stream and its generations; how many rows of these are still to go.

        The record goes last, with the generations, so that whoever is interrupted can do it again. Raises: SessionNotFound.
        """
        await self.delete_stream(key)
        erased = await deletion.delete(self._store, Erasure(key.tenant, key.id), within_seconds=_DELETE_SECONDS)
        self._registry.streams_changed()
        with suppress(SessionNotFound):
            await self._store.sessions.delete(key)
        try:
            await self._store.sessions.session(key)
        except SessionNotFound:
            # Somebody who made the session at the same time found the record, and made a stream for it.
            await self._remove_stream(key)
        return erased.rows_remaining

    async def delete_stream(self, key: SessionKey) -> None:
        """Delete what was said in a session. Raises: SessionNotFound: there is none."""
        await self._store.sessions.session(key)
        await self._remove_stream(key)

    async def _remove_stream(self, key: SessionKey) -> None:
        with suppress(StreamNotFound, StreamGone):
            stream = await self._store.stream(stream_of(key), is_touched=False)
            await self._store.delete_stream(stream_of(key))
            self._readers.drop([stream.id])

    async def fork(self, key: SessionKey, wanted: NewFork) -> tuple[SessionRecord, str]:
        """A new session that shares this one's history up to the end of a message; its record, and its stream's tail.

        Raises:
            SessionNotFound, StreamNotFound, StreamGone: there is nothing to fork.
            StreamExists: the new session's path is a deleted stream's that forks still need.
            ApiError: 404, there is no such message; 409, there is such a session, or a stream at its path.
        """
        new = SessionKey(key.tenant, wanted.session_id or str(uuid.uuid4()))
        record = await self._store.sessions.session(key)
        book = await self._store.sessions.agents(key)
        name = record.name if wanted.name is None else wanted.name
        origin = ForkedFrom(key.id, wanted.at_message_id)
        if not await self._is_fork(new, origin):
            place = await self._fork_place(key, wanted.at_message_id)
            try:
                await self._create_fork(key, place, SessionInfo(new.id, name, now(), origin))
            except StreamExists:
                # The same request at the same time may have found a later end of the message.
                if not await self._is_fork(new, origin):
                    raise
        made, _ = await self._store.sessions.create(new, name=name, agents=book)
        return made, (await self.folds.current(new)).offset

    async def _is_fork(self, key: SessionKey, origin: ForkedFrom) -> bool:
        """Whether a session's stream is there, as such a fork. Raises: ApiError: it is there as another one."""
        try:
            found = (await self.folds.current(key)).session
        except (StreamNotFound, StreamGone):
            return False
        if found is None or found.forked_from != origin:
            raise problem(409, "session_exists", "there is a session of this id, and it is another one")
        return True

    async def _create_fork(self, key: SessionKey, place: Place, info: SessionInfo) -> None:
        """Make the stream of a fork. Raises: StreamExists."""
        past = await self.folds.until(key, place)
        await make_views(past)
        first = [events.session_event(info), *ends_of_open(past, at=info.created_at)]
        point = ForkPoint(stream_of(key), parse_offset(place.offset), place.sub_offset or None)
        stream = stream_of(SessionKey(key.tenant, info.id))
        created = await self._store.create_stream(stream, replace(CONFIG, fork=point), await stored(first))
        if created.is_new:
            self._tell_of_new(stream, created.stream.id, created.stream.tail.position)

    async def _fork_place(self, key: SessionKey, message_id: str | None) -> Place:
        fold = await self.folds.current(key)
        if message_id is None:
            return Place(fold.position, fold.offset)
        message = fold.message(message_id)
        if message is None:
            raise _no_message()
        return message.end

    # What people write

    async def send(self, key: SessionKey, wanted: NewMessage, actor: Actor, principal: Principal) -> Written:
        """Write a message, and call the agents that answer it; the same message again is written once.

        Raises:
            SessionNotFound, StreamNotFound, StreamGone, StreamClosed: there is no session that can be written to.
            ApiError: 409 `message_exists`, there is another message of this id; 403, the agent that comes with it may not
                be called.
            BadRequest: there is no room for the agent.
        """
        book, came = await self._book_with(key, wanted.agent, principal)
        agents = [*book.listening, *came] if wanted.role == "user" else []
        message_id = wanted.message_id or str(uuid.uuid4())
        message = _whole(message_id, wanted.parts, wanted.role, actor)
        fold = await self.folds.current(key)
        known = _as_written(fold, message, actor)
        if known is not None:
            return known
        decided = turns_after_message(message_id, agents, max_depth=self.max_turns, at=now())
        written = with_txid([message, *decided.events(agents)], wanted.txid)
        appended = await self._write(key, written, decided, Producer(writer_id("message", message_id), 0, 0))
        if appended.is_duplicate:
            known = _as_written(await self.folds.current(key), message, actor)
            if known is None:
                raise _message_exists()
            return known
        return Written(message_id, decided.turns, format_offset(appended.tail.position))

    async def regenerate(self, key: SessionKey, wanted: Regeneration, actor: Actor, principal: Principal) -> Written:
        """Have answers from a message on written anew; the message itself too, where there is other content for it.

        What runs of those answers is stopped first. With the same `txid` a second time nothing more happens.

        Raises:
            SessionNotFound, StreamNotFound, StreamGone, StreamClosed: as `send`.
            ApiError: 404, there is no such message; 400 `no_agents`, nobody would answer; 400 `not_rewritable`, it is an
                answer; 409 `message_exists`.
        """
        book, came = await self._book_with(key, wanted.agent, principal)
        fold = await self.folds.viewed(key)
        nonce = wanted.txid or str(uuid.uuid4())
        cut = _cut(fold, wanted)
        message_id, message = cut.cause.id, None
        if cut.cause.id in cut.message_ids:
            message_id = wanted.message_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key.id}/{nonce}"))
            message = _whole(message_id, wanted.parts or (), cut.cause.role, actor)
        decided = self._decide_again(fold, cut, book, came, message_id, nonce)
        if not decided.turns:
            raise problem(400, "no_agents", "no agent is registered that could answer")
        repeated = fold.turn(decided.turns[0].id)
        if repeated is not None:
            return Written(repeated.cause_id, decided.turns, fold.offset)
        if message is not None and _is_taken(fold, message_id):
            raise _message_exists()
        await self._stop(key, [turn for turn in cut.turns if turn.is_pending])
        fold = await self.folds.viewed(key)
        cut = _cut(fold, wanted)
        gone = removals(fold, cut.message_ids, cut.turns)
        added = [*([] if message is None else [message]), *decided.events(book.callable)]
        # A message is rewritten once: of two who do it at once, the second finds it gone.
        writer = writer_id("turn", decided.turns[0].id) if message is None else writer_id("rewrite", cut.cause.id)
        written = chain(gone, with_txid(added, wanted.txid))
        appended = await self._write(key, written, decided, Producer(writer, 0, 0))
        if appended.is_duplicate and (await self.folds.current(key)).turn(decided.turns[0].id) is None:
            raise _message_exists()
        await self._remove_the_rest(key, cut.message_ids)
        await self._supersede(key, decided.turns)
        return Written(message_id, decided.turns, format_offset(appended.tail.position))

    async def answer_tool_call(self, key: SessionKey, wanted: NewToolResult, actor: Actor) -> str:
        """Write what a client's tool gave, and call its agent again when that was the last open call; the offset after it.

        Raises:
            SessionNotFound, StreamNotFound, StreamGone, StreamClosed: as `send`.
            ApiError: 404, there is no such call; 409 `already_answered`, it has another result.
        """
        book = await self.agents(key)
        fold = await self.folds.current(key)
        call = _call(fold, wanted)
        if call.result is not None:
            return _same_answer(fold, wanted.is_told_by(call.result))
        row = events.tool_result(
            call.message_id,
            fold.next_seq(call.message_id),
            call.id,
            wanted.output,
            wanted.error,
            author=actor.author,
            at=now(),
        )
        producer = Producer(writer_id("tool-result", call.message_id, call.id), 0, 0)
        decided = self._after_answer(fold, book, call.message_id, answering=call.id)
        appended = await self._answer(key, book, call.message_id, row, decided, producer, wanted.txid)
        if appended.is_duplicate:
            fold = await self.folds.current(key)
            result = _call(fold, wanted).result
            return _same_answer(fold, result is not None and wanted.is_told_by(result))
        return format_offset(appended.tail.position)

    async def answer_approval(self, key: SessionKey, approval_id: str, wanted: NewApproval, actor: Actor) -> str:
        """Write somebody's answer to an approval, and call its agent again when that was the last open call.

        Raises:
            SessionNotFound, StreamNotFound, StreamGone, StreamClosed: as `send`.
            ApiError: 404, nobody asked for it; 409 `already_answered`, it was answered otherwise.
        """
        book = await self.agents(key)
        fold = await self.folds.current(key)
        asked = _approval(fold, approval_id)
        status = "approved" if wanted.approved else "denied"
        if asked.status != "pending":
            return _same_answer(fold, asked.status == status)
        message_id = asked.message_id
        row = events.approval_response(
            message_id, fold.next_seq(message_id), approval_id, wanted.approved, author=actor.author, at=now()
        )
        waits = wanted.approved and fold.is_clients_to_run(message_id, asked.tool_call_id)
        decided = Decided() if waits else self._after_answer(fold, book, message_id, answering=asked.tool_call_id)
        producer = Producer(writer_id("approval", approval_id), 0, 0)
        appended = await self._answer(key, book, message_id, row, decided, producer, wanted.txid)
        if appended.is_duplicate:
            fold = await self.folds.current(key)
            return _same_answer(fold, _approval(fold, approval_id).status == status)
        return format_offset(appended.tail.position)

    async def be_present(self, key: SessionKey, actor_id: str, wanted: NewPresence) -> str:
        """Write that an actor is there, and how. Raises: SessionNotFound, StreamNotFound, StreamClosed."""
        await self._store.sessions.session(key)
        presence = Presence(actor_id, wanted.actor_type, wanted.name, wanted.status, now(), wanted.typing)
        appended = await self._append(key, with_txid([events.presence_event(presence)], wanted.txid))
        return format_offset(appended.tail.position)

    async def leave(self, key: SessionKey, actor_id: str) -> None:
        """Write that an actor has left; nothing where it was not there. Raises: SessionNotFound, StreamNotFound."""
        found = await self.find(key)
        if any(one.actor_id == actor_id for one in found.fold.presence):
            await self._append(key, [events.removal("presence", actor_id)])

    # Agents

    async def agents(self, key: SessionKey) -> AgentBook:
        """Raises: SessionNotFound."""
        return AgentBook.load(await self._store.sessions.agents(key))

    async def register(
        self, key: SessionKey, specs: Sequence[AgentSpec], txid: str | None, principal: Principal
    ) -> None:
        """Have agents take part, in the place of those of the same ids.

        Raises:
            SessionNotFound, StreamNotFound, StreamClosed: there is no session that can be written to.
            ApiError: 403, one of them may not be called.
            BadRequest: they are too many, or too large.
        """
        owned = [self._owned(spec, principal) for spec in specs]
        await self.find(key)
        await self._store.sessions.change_agents(
            key, lambda document: AgentBook.load(document).with_registered(owned).dump()
        )
        await self._append(key, with_txid([events.agent_event(spec.public()) for spec in owned], txid))

    async def unregister(self, key: SessionKey, agent_id: str) -> None:
        """Have an agent take part no more; what it is doing it finishes.

        Raises:
            SessionNotFound, StreamNotFound: there is no session.
            ApiError: 404, there is no such agent.
        """
        book = await self.agents(key)
        agents: Collection[Agent] = (await self.folds.current(key)).agents
        if book.find(agent_id, None) is None and all(agent.id != agent_id for agent in agents):
            raise problem(404, "agent_not_found", "the session has no such agent")
        await self._store.sessions.change_agents(
            key, lambda document: AgentBook.load(document).without(agent_id).dump()
        )
        await self._append(key, [events.removal("agent", agent_id)])

    async def stop(self, key: SessionKey, message_id: str | None) -> None:
        """Stop the answers that are under way, or one of them. Raises: SessionNotFound, StreamNotFound."""
        found = await self.find(key)
        pending = found.fold.pending_turns
        await self._stop(key, [turn for turn in pending if message_id in (None, turn.message_id)])

    # The parts of these

    async def _book_with(
        self, key: SessionKey, spec: AgentSpec | None, principal: Principal
    ) -> tuple[AgentBook, list[Listening]]:
        """The agents, and the one among them that comes with a message. Raises: ApiError (400, 403), BadRequest."""
        if spec is None:
            return await self.agents(key), []
        owned, spec_id = self._owned(spec, principal), f"spec-{uuid.uuid4()}"
        document = await self._store.sessions.change_agents(
            key, lambda document: AgentBook.load(document).with_inline(owned, spec_id).dump()
        )
        book = AgentBook.load(document)
        return book, [owned.listening(book.spec_id(owned))]

    def _owned(self, spec: AgentSpec, principal: Principal) -> AgentSpec:
        """An agent that somebody may call, and calls in his own name. Raises: ApiError (400, 403)."""
        self._forwarder.allowed(principal, spec.endpoint)
        return spec.of(principal)

    def _decide_again(
        self,
        fold: SessionFold,
        cut: Cut,
        book: AgentBook,
        came: Sequence[Listening],
        message_id: str,
        nonce: str,
    ) -> Decided:
        """Who answers anew: the agents of the answers that go, or else whoever listens to the message, and those that came
        with it, then or now."""
        at, fresh = now(), {agent.id: agent.spec_id for agent in came}
        if not cut.again:
            before = {turn.spec_id for turn in fold.turns if turn.spec_id and turn.cause_id == cut.cause.id}
            agents = [*book.listening, *(one for one in book.callable if one.spec_id in before), *came]
            return turns_after_message(message_id, agents, max_depth=self.max_turns, at=at, nonce=nonce)
        again = [replace(turn, spec_id=fresh.get(turn.agent_id, turn.spec_id)) for turn in cut.again]
        found = [turn_again(turn, book.callable, max_depth=self.max_turns, at=at, nonce=nonce) for turn in again]
        return Decided(
            tuple(turn for one in found for turn in one.turns), tuple(turn for one in found for turn in one.refused)
        )

    async def _stop(self, key: SessionKey, turns: Sequence[Turn]) -> None:
        """Stop the calls of turns; where there is none yet, its answer ends here. Waits a little for their ends to be
        written."""
        if not turns:
            return
        await self._store.sessions.mark_due(key)
        calls = [GenerationKey(key.tenant, key.id, turn.id) for turn in turns]
        for start in range(0, len(calls), _STOPPED_AT_ONCE):
            await asyncio.gather(*(self._prevent(call) for call in calls[start : start + _STOPPED_AT_ONCE]))
        self._wake(key)
        deadline = time.monotonic() + _STOP_SECONDS
        stopped = {turn.id for turn in turns}
        while time.monotonic() < deadline:
            fold = await self.folds.current(key)
            if not any(turn.id in stopped for turn in fold.pending_turns):
                return
            await asyncio.sleep(_STOP_POLL_SECONDS)

    async def _prevent(self, call: GenerationKey) -> None:
        # What the engine cannot keep, such as an id that somebody wrote into the stream himself, was never called.
        with suppress(ApiError, ItemRefused):
            await self._generations.prevent(call)

    async def _remove_the_rest(self, key: SessionKey, message_ids: Iterable[str]) -> None:
        """Rows that were written while their messages were taken away go too."""
        for _ in range(_MAX_REMOVALS):
            fold = await self.folds.current(key)
            # What others wrote without numbers has no rows that could be named.
            left = [message_id for message_id in message_ids if fold.numbers(message_id)]
            if not left:
                return
            await self._append(key, removals(fold, left, ()))

    async def _supersede(self, key: SessionKey, turns: Sequence[Turn]) -> None:
        """Of answers that were wanted anew at once, those that were wanted first go: each of two may have missed the other."""
        fold = await self.folds.current(key)
        written = [turn for turn in fold.turns if turn.id in {one.id for one in turns}]
        mine = {(turn.cause_id, turn.agent_id): turn.start.position for turn in written}
        others = [
            turn
            for turn in fold.turns
            if turn.kind == "regenerate" and turn.start.position < mine.get((turn.cause_id, turn.agent_id), 0)
        ]
        if others:
            await self._stop(key, [turn for turn in others if turn.is_pending])
            going = [turn.message_id for turn in others]
            await self._append(key, removals(await self.folds.current(key), going, others))
            await self._remove_the_rest(key, going)

    async def _answer(
        self,
        key: SessionKey,
        book: AgentBook,
        message_id: str,
        row: Event,
        decided: Decided,
        producer: Producer,
        txid: str | None,
    ) -> Appended:
        """Write an answer to a tool call or an approval, with the turn that it causes."""
        await self._store.sessions.mark_due(key)
        agents = book.callable
        appended = await self._append(key, with_txid([row, *decided.events(agents)], txid), producer)
        if not decided.turns:
            # Of two answers at once each may have found the other one missing.
            late = self._after_answer(await self.folds.current(key), book, message_id)
            if late.turns:
                await self._append(key, late.events(agents), Producer(writer_id("turn", late.turns[0].id), 0, 0))
        _log_refused(key, decided)
        self._wake(key)
        return appended

    def _after_answer(
        self, fold: SessionFold, book: AgentBook, message_id: str, *, answering: str | None = None
    ) -> Decided:
        return turns_after_answers(
            fold, message_id, book.callable, max_depth=self.max_turns, at=now(), answering=answering
        )

    async def _write(self, key: SessionKey, written: Iterable[Event], decided: Decided, producer: Producer) -> Appended:
        """Write events, among them turns that a runner has to take."""
        if decided.turns:
            await self._store.sessions.mark_due(key)
        appended = await self._append(key, written, producer)
        if decided.turns:
            _log_refused(key, decided)
            self._wake(key)
        return appended

    async def _append(self, key: SessionKey, written: Iterable[Event], producer: Producer | None = None) -> Appended:
        append = await append_of(key, written, producer)
        appended = await self._appender.append(append)
        if not appended.is_duplicate:
            self._subscriptions.stream_changed(
                append.key, appended.stream_id, appended.position, appended.tail.position
            )
        return appended

    def _tell_of_new(self, stream: StreamKey, stream_id: int, tail: int) -> None:
        self._subscriptions.stream_changed(stream, stream_id, 0, tail, is_new=True)
        self._registry.streams_changed()


def _whole(message_id: str, parts: Sequence[Part], role: Role, actor: Actor) -> Event:
    return events.whole_message(message_id, parts, author=actor.author, role=role, at=now())


def _as_written(fold: SessionFold, event: Event, actor: Actor) -> Written | None:
    """What came of a message that was written before; None: it was not. Raises: ApiError: it is another one."""
    message_id = event["value"]["messageId"]
    known = fold.message(message_id)
    if known is None:
        if _is_taken(fold, message_id):
            raise _message_exists()
        return None
    is_same = _is_same(known, event) and (not actor.is_named or known.actor_id == actor.author.actor_id)
    if not is_same:
        raise _message_exists()
    turns = tuple(turn for turn in fold.turns if turn.cause_id == message_id and turn.kind == "message")
    return Written(message_id, turns, fold.offset)


def _is_taken(fold: SessionFold, message_id: str) -> bool:
    """Whether there is, was, or will be a message of this id."""
    return fold.message(message_id) is not None or fold.is_gone(message_id) or fold.turn_of(message_id) is not None


def _is_same(known: Message, event: Event) -> bool:
    other = SessionFold()
    other.apply([event], "0")
    [message] = other.messages
    return (known.role, known.parts) == (message.role, message.parts)


def _cut(fold: SessionFold, wanted: Regeneration) -> Cut:
    """Where answers are to be written anew. Raises: ApiError."""
    message = fold.message(wanted.from_message_id)
    if message is None:
        raise _no_message()
    is_rewritten = False
    if wanted.parts is not None:
        event = events.whole_message(message.id, wanted.parts, author=Author(""), role=message.role, at="")
        is_rewritten = not _is_same(message, event)
    if is_rewritten and message.role == "assistant":
        raise problem(400, "not_rewritable", "an answer is written by its agent; leave the content out")
    cut = cut_at(fold, message.id, is_rewritten=is_rewritten)
    if cut is None:
        raise _no_message()
    return cut


def _call(fold: SessionFold, wanted: NewToolResult) -> ToolCall:
    """The call that a result is for: that of the message it names, or else the newest. Raises: ApiError."""
    named = fold.calls_of(wanted.message_id) if wanted.message_id is not None else ()
    found = next((call for call in named if call.id == wanted.tool_call_id), None) or fold.tool_call(
        wanted.tool_call_id
    )
    if found is None:
        raise problem(404, "tool_call_not_found", "the session has no such tool call")
    return found


def _approval(fold: SessionFold, approval_id: str) -> Approval:
    """Raises: ApiError."""
    found = fold.approval(approval_id)
    if found is None:
        raise problem(404, "approval_not_found", "nobody in the session asked for this approval")
    return found


def _same_answer(fold: SessionFold, is_same: bool) -> str:
    """The offset after an answer that was given before. Raises: ApiError: it was another one."""
    if not is_same:
        raise problem(409, "already_answered", "somebody has answered already, and otherwise")
    return fold.offset


def _no_message() -> ApiError:
    return problem(404, "message_not_found", "the session has no such message")


def _message_exists() -> ApiError:
    return problem(409, "message_exists", "there is, was, or will be another message of this id in the session")


def _log_refused(key: SessionKey, decided: Decided) -> None:
    for turn in decided.refused:
        logger.warning(
            "session %s: %s was not called, %d turns follow one message", key.id, turn.agent_id, turn.depth - 1
        )
