"""Sees to it that the agents of durable sessions are called, and that what they answer is written.

Whoever writes something that agents must act on marks the session as due in the store. A runner claims a due session, for
as long as its process lives or until nothing is left to do there; a session that was held by a process which died is due as
before. All that has to be done follows from the session's stream: a turn that stands there and has no ended answer is to be
taken. So a runner needs no memory of its own, and two that hold one session by mistake do no harm.

A session is held for some seconds more than it has work: the mark comes before what it announces, and who settles in
between would overlook that. Nothing runs for a session that is not held.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress

from streamkeep.proxy.agent_turns import AgentTurn, TryLater, TurnParts
from streamkeep.proxy.errors import ApiError
from streamkeep.proxy.feeds import Reader
from streamkeep.proxy.rules.session_agents import AgentBook
from streamkeep.proxy.session_folds import KeptFold, SessionFolds
from streamkeep.proxy.session_streams import append_of, now
from streamkeep.proxy.tallies import SessionTally
from streamkeep.sessions import SessionFold
from streamkeep.sessions.events import writer_id
from streamkeep.sessions.turns import turns_due
from streamkeep.sessions.views import Turn
from streamkeep.storage import (
    DueSession,
    ItemRefused,
    KeyUnavailable,
    Owner,
    OwnerFenced,
    Producer,
    SessionKey,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
    StreamGone,
    StreamNotFound,
)

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
# How long what a mark announces may take to stand in the stream.
_LINGER_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# Each takes some tenths of a millisecond until it waits for something.
_BEGUN_AT_ONCE = 50
_RELEASE_SECONDS = 2.0
_CLAIM_LOOK_SECONDS = 0.01
_CLAIM_LOOKS = 200


class SessionRunner:
    """Holds due sessions, and takes their turns; one for each process. `max_sessions` are held at once."""

    def __init__(self, parts: TurnParts, folds: SessionFolds, *, max_sessions: int) -> None:
        self._parts = parts
        self._folds = folds
        self._max_sessions = max_sessions
        self._works: dict[SessionKey, _Work] = {}
        self._woken: set[SessionKey] = set()
        self._news = asyncio.Event()
        self._is_draining = False
        self._may_hold_others = False

    def __repr__(self) -> str:
        return f"SessionRunner(sessions={len(self._works)})"

    @property
    def tally(self) -> SessionTally:
        return self._parts.tally

    @property
    def running(self) -> int:
        """How many sessions this process holds."""
        return len(self._works)

    def wake(self, key: SessionKey) -> None:
        """Something was written in a session that was marked as due."""
        work = self._works.get(key)
        if work is not None:
            work.wake()
        elif not self._is_draining:
            self._woken.add(key)
            self._news.set()

    async def run(self) -> None:
        """Claim what is due, at once when this process was told of it, else within a second or so."""
        try:
            while True:
                if not self._is_draining:
                    await self._claim()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._news.wait()
                self._news.clear()
        finally:
            await self._let_all_go()

    async def drain(self) -> None:
        """Claim nothing more, and let go of all sessions: their agents' calls go on, and others write what they say."""
        self._is_draining = True
        await self._let_all_go()

    async def _claim(self) -> None:
        woken, self._woken = self._woken, set()
        try:
            owner = await self._parts.generations.current_owner()
            self._abandon_others(owner)
            if self._may_hold_others:
                await self._take_up(owner)
            while len(self._works) < self._max_sessions:
                held = await self._parts.store.sessions.claim_due(owner)
                if held is None:
                    break
                self._begin(owner, held)
            for key in woken - self._works.keys():
                # Somebody else holds it, and may let go of it without having seen what was written.
                with suppress(SessionNotFound):
                    await self._parts.store.sessions.mark_due(key)
                    self._news.set()
        except OwnerFenced:
            self._woken |= woken
        except StoreError as exc:
            self._woken |= woken
            self._may_hold_others = True
            logger.warning("no session could be claimed: %s", type(exc).__name__)

    async def _take_up(self, owner: Owner) -> None:
        """Sessions that the store says we hold, and we do not know of: the store was away when we claimed them, or let them
        go, and nobody else can have them."""
        for held in await self._parts.store.sessions.held(owner):
            if held.session.key not in self._works:
                self._begin(owner, held)
        self._may_hold_others = False

    def _abandon_others(self, owner: Owner) -> None:
        """This process was taken for dead; what it held is somebody else's."""
        for work in self._works.values():
            if work.owner != owner:
                work.cancel()

    def _begin(self, owner: Owner, held: DueSession) -> None:
        key = held.session.key
        earlier = self._works.get(key)
        if earlier is not None:
            # That session was deleted, and made anew.
            earlier.cancel()
        work = self._works[key] = _Work(self._parts, self._folds, owner, held)
        work.task.add_done_callback(lambda _: self._end(key, work))

    def _end(self, key: SessionKey, work: _Work) -> None:
        if self._works.get(key) is work:
            del self._works[key]
        if work.is_woken:
            self._woken.add(key)
        self._may_hold_others |= not work.is_released
        self._news.set()

    async def _let_all_go(self) -> None:
        works = list(self._works.values())
        for work in works:
            work.cancel()
        if works:
            await asyncio.wait([work.task for work in works], timeout=2 * _RELEASE_SECONDS)


class _Work:
    """One session, for as long as it is held."""

    def __init__(self, parts: TurnParts, folds: SessionFolds, owner: Owner, held: DueSession) -> None:
        self.owner = owner
        self._parts = parts
        self._folds = folds
        self._held = held
        self._key = held.session.key
        self._turns: dict[str, tuple[AgentTurn, asyncio.Task[None]]] = {}
        self._retry_at: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._reader: Reader | None = None
        self.is_woken = True
        self.is_released = False
        self._held_since = time.monotonic()
        self.task = asyncio.create_task(self._run(), name=f"session {self._key.id}")

    def wake(self) -> None:
        """Something was written, or has ended."""
        self.is_woken = True
        if self._reader is not None:
            self._reader.wake()

    def cancel(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        sessions = self._parts.store.sessions
        try:
            await self._work()
        except (StreamNotFound, StreamGone, SessionNotFound):
            self.is_woken = False
            await self._quietly(sessions.settle(self.owner, self._held))
        except KeyUnavailable:
            logger.warning("session %s: its agents are encrypted with a key that is not here", self._key.id)
            self.is_woken = False
            await self._quietly(sessions.settle(self.owner, self._held))
        except (StoreUnavailable, TryLater) as exc:
            logger.warning("session %s has to wait: %s", self._key.id, type(exc).__name__)
            await asyncio.sleep(_RETRY_SECONDS)
        except ApiError as exc:
            logger.warning("session %s has to wait: %s", self._key.id, exc.problem.code)
            await asyncio.sleep(_RETRY_SECONDS)
        except Exception:
            logger.exception("session %s: its runner failed", self._key.id)
            await asyncio.sleep(_RETRY_SECONDS)
        finally:
            await self._let_go()
            self.is_released = await self._quietly(sessions.release(self.owner, self._held))

    async def _let_go(self) -> None:
        """Interrupt the turns, but none that is claiming its call."""
        for _ in range(_CLAIM_LOOKS):
            if not any(turn.is_claiming for turn, _ in self._turns.values()):
                break
            await asyncio.sleep(_CLAIM_LOOK_SECONDS)
        tasks = [task for _, task in self._turns.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _quietly(work: Coroutine[None, None, object]) -> bool:
        """Whether it was done."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await work
            return True
        return False

    async def _work(self) -> None:
        """Take turns until nothing is left to do."""
        kept = await self._folds.kept(self._key)
        readers = self._parts.readers
        with readers.reader(kept.stream_id, kept.position, lambda: None, is_message_stream=True) as reader:
            self._reader = reader
            while not reader.is_gone:
                pieces = await readers.pieces(reader)
                for piece in pieces:
                    await kept.take(piece.start, piece.data)
                if pieces:
                    continue
                if reader.feed.is_gone:
                    raise StreamNotFound(f"no session {self._key.id}")
                if self._begin_turns(kept):
                    await asyncio.sleep(0)
                    continue
                if self.is_woken:
                    self.is_woken = False
                    await self._go_on(kept.fold)
                    continue
                if self._is_idle(kept.fold) and time.monotonic() >= self._held_since + _LINGER_SECONDS:
                    again = await self._parts.store.sessions.settle(self.owner, self._held)
                    if again is None:
                        return
                    self._hold(again)
                    continue
                await reader.wait(self._wake_at())

    def _hold(self, held: DueSession) -> None:
        """It was marked again while it was held."""
        self._held = held
        self._held_since = time.monotonic()
        self.is_woken = True

    def _is_idle(self, fold: SessionFold) -> bool:
        return not self._turns and all(turn.id in self._given_up for turn in fold.pending_turns)

    def _wake_at(self) -> float:
        """When to look again although nothing was written."""
        linger_until = float("inf") if self._turns else self._held_since + _LINGER_SECONDS
        return min([linger_until, *self._retry_at.values()])

    def _begin_turns(self, kept: KeptFold) -> bool:
        """Begin those that have not begun, some at a time; whether there may be more."""
        begun, now = 0, time.monotonic()
        for turn in kept.fold.pending_turns:
            is_begun = turn.id in self._turns or turn.id in self._given_up
            if not is_begun and self._retry_at.get(turn.id, 0.0) <= now:
                begun += 1
                self._retry_at.pop(turn.id, None)
                work = AgentTurn(self._parts, self._key, kept, turn)
                self._turns[turn.id] = work, asyncio.create_task(self._take(turn, work), name=f"turn {turn.id}")
                if begun == _BEGUN_AT_ONCE:
                    return True
        return False

    async def _take(self, turn: Turn, work: AgentTurn) -> None:
        try:
            await work.run()
        except (TryLater, StoreUnavailable):
            self._retry_at[turn.id] = time.monotonic() + _RETRY_SECONDS
        except StoreError as exc:
            self._give_up(turn, type(exc).__name__)
            if isinstance(exc, ItemRefused):
                # Nobody else could take it either, such as a turn whose id no engine keeps.
                with suppress(StoreError):
                    await work.fail()
        except ApiError as exc:
            logger.warning("session %s: turn %s has to wait: %s", self._key.id, turn.id, exc.problem.code)
            self._retry_at[turn.id] = time.monotonic() + _RETRY_SECONDS
        except Exception:
            logger.exception("session %s: turn %s failed", self._key.id, turn.id)
            self._given_up.add(turn.id)
            with suppress(StoreError):
                await work.fail()
        finally:
            self._turns.pop(turn.id, None)
            self.wake()

    def _give_up(self, turn: Turn, why: str) -> None:
        """Nothing more can be written for this turn, for as long as this process holds the session."""
        logger.warning("session %s: turn %s cannot be written: %s", self._key.id, turn.id, why)
        self._given_up.add(turn.id)

    async def _go_on(self, fold: SessionFold) -> None:
        """Write the turns that answers of people and their tools have caused, and whoever gave them could not write."""
        book = AgentBook.load(await self._parts.store.sessions.agents(self._key))
        decided = turns_due(fold, book.callable, max_depth=self._parts.max_turns, at=now())
        if decided.turns:
            writer = writer_id("turn", *(turn.id for turn in decided.turns))
            append = await append_of(self._key, decided.events(book.callable), Producer(writer, 0, 0))
            appended = await self._parts.appender.append(append)
            self._parts.subscriptions.stream_changed(
                append.key, appended.stream_id, appended.position, appended.tail.position
            )
