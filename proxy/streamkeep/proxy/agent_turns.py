"""One turn of a session's agent: the call, its answer's rows, and whom the answer wakes.

The call is a generation under the turn's id, so it is made once, whoever makes it, and goes on without us. Its bytes are
read from its data stream, here or in another process, and become rows. A row is a function of the bytes and of how they
ended, and bears its number, so two who write one answer write each row once, and a successor goes on with the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from streamkeep.proxy.attempts import NOT_UPSTREAMS
from streamkeep.proxy.errors import ApiError, problem_of
from streamkeep.proxy.forwarding import Forwarder
from streamkeep.proxy.generations import Generations
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.rules.access import Limits, Principal
from streamkeep.proxy.rules.session_agents import AgentBook, AgentSpec
from streamkeep.proxy.session_folds import KeptFold, make_views
from streamkeep.proxy.session_streams import append_of, now, stream_of
from streamkeep.proxy.subscriptions import Subscriptions
from streamkeep.proxy.tallies import SessionTally
from streamkeep.sessions import events
from streamkeep.sessions.agents import AgentAnswer, AnswerEnd, History
from streamkeep.sessions.events import Author, writer_id
from streamkeep.sessions.turns import turns_after_agent
from streamkeep.sessions.views import Turn
from streamkeep.storage import (
    FingerprintMismatch,
    Generation,
    GenerationKey,
    Producer,
    Refusal,
    SessionKey,
    State,
    Store,
    StoreError,
    StoreUnavailable,
    StreamNotFound,
)
from streamkeep.storage.appender import Appender
from streamkeep.storage.rules.generations import Code

logger = logging.getLogger(__name__)

# What is taken at once of a body's bytes, so that others get their turn, and no commit is too long.
_PART_BYTES = 32 * 1024
# JSON of this size takes a few milliseconds, whatever it holds.
_READ_AT_ONCE_BYTES = 64 * 1024
_LOOK_SECONDS = 1.0
_STORE_PAUSE_SECONDS = 0.5
_HEADERS = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream, application/json")]
_REASONS: Mapping[str, str] = {
    Code.TRUNCATED: "the agent closed the connection in the middle of its answer",
    Code.UPSTREAM_FAILED: "the agent's connection broke off",
    Code.TIMED_OUT: "the agent took longer than it may",
    Code.STALLED: "the agent stayed silent for longer than it may",
    Code.TOO_LARGE: "the agent's answer is larger than it may be",
    Code.STORAGE_UNAVAILABLE: "the database stayed away for too long",
    Code.OWNER_LOST: "the process that called the agent died",
    Code.SHUTDOWN: "the proxy was stopped before the agent had finished",
}
_REFUSALS = {
    "upstream_not_allowed": "the agent's endpoint is not among those that this service may call",
    "upstream_unreachable": "no connection could be made to the agent",
    "redirect_refused": "the agent's endpoint leads elsewhere; redirects are not followed",
    "too_many_generations": "as many calls are under way as there may be",
    "rate_limited": "there were too many calls within a minute",
}


class TryLater(Exception):
    """The turn cannot be taken now, and may be in a while, here or elsewhere."""


@dataclass(frozen=True, slots=True)
class TurnParts:
    """What turns need of the running service."""

    store: Store
    appender: Appender
    readers: Readers
    generations: Generations
    forwarder: Forwarder
    subscriptions: Subscriptions
    tally: SessionTally
    max_turns: int


class AgentTurn:
    """One turn of a session that this process holds. `kept` is the session's fold, which somebody else keeps current."""

    def __init__(self, parts: TurnParts, key: SessionKey, kept: KeptFold, turn: Turn) -> None:
        self._parts = parts
        self._session = key
        self._kept = kept
        self._turn = turn
        self._call = GenerationKey(key.tenant, key.id, turn.id)
        self._first = self._next = kept.fold.next_seq(turn.message_id)
        self._author = Author(turn.agent_id)

    async def run(self) -> None:
        """Take the turn to its end. What ends it badly is written as its end.

        Raises:
            TryLater: it is not at its end, and no attempt now leads there.
            StoreError: the session cannot be written to.
        """
        spec = await self._spec()
        self._author = Author(self._turn.agent_id, None if spec is None else spec.name)
        answer = AgentAnswer(None if spec is None else spec.format)
        self._next = 0
        await self._write([_json(events.message_start(self._turn, self._author))])
        called = await self._called(spec)
        if isinstance(called, Generation):
            if called.state is not State.REFUSED:
                await self._follow(called, answer)
            called = _end_of(await self._ended(called))
        if self._is_pending:
            await self._end(answer, called)

    @property
    def is_claiming(self) -> bool:
        """Whether it must not be interrupted now."""
        return self._parts.generations.is_claiming(self._call)

    async def fail(self) -> None:
        """End the answer where it stands, since it cannot be taken further. Raises: StoreError."""
        answer = AgentAnswer()
        await self._write(answer.end(AnswerEnd("error", "internal_error", "the answer could not be taken further")))
        self._parts.tally.turns["error"] += 1

    # The call

    async def _spec(self) -> AgentSpec | None:
        return (await self._book()).find(self._turn.agent_id, self._turn.spec_id)

    async def _book(self) -> AgentBook:
        return AgentBook.load(await self._parts.store.sessions.agents(self._session))

    async def _called(self, spec: AgentSpec | None) -> Generation | AnswerEnd:
        """The call once its verdict is known; it is made here, if nobody has made it. Or else why it was not."""
        row = await self._parts.store.generation(self._call)
        while row is None:
            if spec is None:
                return AnswerEnd("error", "agent_gone", "the agent does not take part any more")
            made = await self._make(spec)
            if made is not None:
                return made
            # Somebody else has, of another history.
            row = await self._parts.store.generation(self._call)
        while row.state is State.CREATING:
            row = await self._parts.generations.verdict(row, within_seconds=_LOOK_SECONDS)
        return row

    async def _make(self, spec: AgentSpec) -> Generation | AnswerEnd | None:
        """The call, or why none was made; None: somebody else makes it.

        Raises:
            TryLater: this process cannot make it now.
        """
        await make_views(self._kept.fold)
        history = History.of(self._kept.fold, self._turn.cause_id)
        if history is None:
            return AnswerEnd("error", "message_gone", "the message that was to be answered is gone")
        try:
            destination = self._parts.forwarder.allowed(Principal(self._session.tenant), spec.endpoint)
            return await self._parts.forwarder.post(
                self._call,
                destination,
                _headers(spec),
                await asyncio.to_thread(_body, spec, self._turn.agent_id, history),
                holder=spec.holder,
                limits=Limits(spec.max_running, spec.max_per_minute),
            )
        except FingerprintMismatch:
            return None
        except (ApiError, StoreError) as exc:
            problem = problem_of(exc)
            if problem is None or problem.status >= 500:
                raise TryLater from exc
            return AnswerEnd("error", problem.code, _REFUSALS.get(problem.code, "the agent could not be called"))

    async def _ended(self, row: Generation) -> Generation:
        """The row once it has its end, which stands there when its data stream is closed. Raises: TryLater."""
        found = await self._parts.store.generation(self._call)
        if found is None or found.state.is_live:
            raise TryLater
        return found

    # The answer

    async def _follow(self, row: Generation, answer: AgentAnswer) -> None:
        """Write what the agent says as it comes, until its bytes are over. Raises: TryLater: this process stops."""
        readers = self._parts.readers
        with readers.reader(row.data_stream, 0, lambda: None) as reader:
            while self._is_pending:
                try:
                    pieces = await readers.pieces(reader)
                except StreamNotFound:
                    return
                for piece in pieces:
                    for start in range(0, len(piece.data), _PART_BYTES):
                        feed = partial(answer.feed, piece.data[start : start + _PART_BYTES])
                        await self._write(await _read(answer, feed))
                if answer.is_too_large:
                    await self._parts.generations.cancel(self._call)
                    return
                if reader.is_at_end or reader.feed.is_gone:
                    return
                if reader.is_gone:
                    raise TryLater
                if not pieces:
                    await reader.wait(time.monotonic() + _LOOK_SECONDS)
        # Somebody else has ended the answer, or taken it away.
        await self._parts.generations.cancel(self._call)

    async def _end(self, answer: AgentAnswer, end: AnswerEnd) -> None:
        """Write the last rows, and with the very last one whom the answer wakes: nobody is to think that all is said."""
        chunks = await _read(answer, partial(answer.end, end))
        further: list[events.Event] = []
        if answer.is_last_word:
            agents, at = (await self._book()).listening, now()
            decided = turns_after_agent(self._kept.fold, self._turn, agents, max_depth=self._parts.max_turns, at=at)
            further = decided.events(agents)
            for turn in decided.refused:
                logger.warning(
                    "session %s: agent %s is not called: %d turns follow one message already",
                    self._session.id,
                    turn.agent_id,
                    turn.depth - 1,
                )
        await self._write(chunks, further)
        ended_by = answer.ended_by or end.reason
        self._parts.tally.turns[ended_by] += 1
        why = f" ({end.code})" if end.code else ""
        logger.info("session %s: agent %s: %s%s", self._session.id, self._turn.agent_id, ended_by, why)

    @property
    def _is_pending(self) -> bool:
        """Whether an answer is still wanted: nobody has deleted it, or ended it."""
        turn = self._kept.fold.turn(self._turn.id)
        return turn is not None and turn.is_pending

    async def _write(self, chunks: Sequence[str], further: Sequence[events.Event] = ()) -> None:
        """Append chunks as the answer's next rows, those that stand there already aside; `further` events go with the last.

        Raises:
            StoreError: the session cannot be written to.
        """
        at, rows = now(), []
        for chunk in chunks:
            seq, self._next = self._next, self._next + 1
            if seq >= self._first:
                rows.append((seq, [events.answer_row(self._turn, seq, chunk, author=self._author, at=at)]))
        if not rows:
            return
        rows[-1][1].extend(further)
        writer = writer_id("message", self._turn.message_id)
        appends = [await append_of(self._session, written, Producer(writer, 0, seq)) for seq, written in rows]
        while True:
            results = await self._parts.appender.append_all(appends)
            failures = [result for result in results if isinstance(result, StoreError)]
            if not failures:
                break
            if not any(isinstance(failure, StoreUnavailable) for failure in failures):
                raise failures[0]
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
        written = [result for result in results if not isinstance(result, StoreError) and not result.is_duplicate]
        if written:
            first, last = written[0], written[-1]
            stream = stream_of(self._session)
            self._parts.subscriptions.stream_changed(stream, first.stream_id, first.position, last.tail.position)
        self._parts.tally.rows += len(written)


async def _read(answer: AgentAnswer, read: Callable[[], list[str]]) -> list[str]:
    """What an answer's next bytes, or its end, give; while the loop goes on, where that may take long."""
    return read() if answer.held_bytes <= _READ_AT_ONCE_BYTES else await asyncio.to_thread(read)


def _headers(spec: AgentSpec) -> list[tuple[bytes, bytes]]:
    """The agent's own, and ours where it has none of that name."""
    own = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in spec.headers]
    names = {name for name, _ in own}
    return [*(pair for pair in _HEADERS if pair[0] not in names), *own]


def _body(spec: AgentSpec, agent_id: str, history: History) -> bytes:
    """The request's body: what the agent's owner wants in it, and the history. What the system says is added to his."""
    told = history.request_fields(agent_id=agent_id, format=spec.format)
    body = {**spec.body_template, **told, "stream": True}
    system, said = spec.body_template.get("system"), told.get("system")
    if said and isinstance(system, str):
        body["system"] = f"{system}\n\n{said}"
    elif said and isinstance(system, list):
        body["system"] = [*system, {"type": "text", "text": said}]
    return _json(body).encode(errors="replace")


def _end_of(row: Generation) -> AnswerEnd:
    """How a call ended, in words that hold nothing of what the agent or its owner said."""
    match row.state:
        case State.DONE:
            return AnswerEnd("done")
        case State.CANCELLED:
            return AnswerEnd("stop")
        case State.REFUSED if row.refusal is not None:
            return _refused(row.refusal)
    code = row.code or "error"
    return AnswerEnd("error", code, _REASONS.get(code, "the call failed"))


def _refused(refusal: Refusal) -> AnswerEnd:
    status = refusal.head.status
    if status != NOT_UPSTREAMS:
        return AnswerEnd("error", "agent_refused", f"the agent answered with status {status}")
    code = json.loads(refusal.body).get("error", "error")
    return AnswerEnd("error", code, _REFUSALS.get(code, "the agent could not be called"))


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
