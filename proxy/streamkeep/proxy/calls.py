"""Calls: the generations that this process records, each from its claim to its end.

A call's task goes from the claim to the terminal event and belongs to nobody's connection: callers and joiners wait for
`outcome`, the row as it stands once upstream's verdict is known.

Whoever wants a call to end (a cancel, a clock, a drain, a database outage) names the reason with `stop`, which cancels the
task; the task then closes the upstream socket first and queues the terminal event after it. Once `is_settled` is true the
reason is fixed and a later stop does nothing. A call whose owner was fenced is abandoned: it closes upstream and writes
nothing, since its end stands in the database already.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from streamkeep.proxy.relay import End, Relay
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.storage import Code, Generation, State
from streamkeep.storage.writer import Recorder

if TYPE_CHECKING:
    from streamkeep.proxy.tracing import GenerationSpan


class Call:
    """One generation recorded here, from its claim to its end."""

    def __init__(
        self,
        generation: Generation,
        recorder: Recorder,
        clocks: Clocks,
        upstream: str,
        span: GenerationSpan | None = None,
    ) -> None:
        self.generation = generation
        self.span = span
        self.recorder = recorder
        self.clocks = clocks
        self.upstream = upstream
        self.relay: Relay | None = None
        self.started_at = time.monotonic()
        self.sent_at = self.started_at
        self.head_deadline: float | None = None
        self.outcome: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self.stop_reason: End | None = None
        self.has_begun = False
        self.is_settled = False
        self.is_abandoned = False
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Call({self.generation.key}, {self.recorder!r}, stop={self.stop_reason})"

    def stop(self, code: Code, detail: str | None = None) -> bool:
        """End the generation for this reason, unless its end is settled already; whether this call did it."""
        if self.is_settled or self.stop_reason is not None:
            return False
        self.stop_reason = End(code, detail)
        self._interrupt()
        return True

    def abandon(self) -> None:
        """Close upstream and write nothing more: the generation has ended elsewhere."""
        if not self.is_abandoned:
            self.is_abandoned = True
            if not self.is_settled and self.stop_reason is None:
                self._interrupt()

    def _interrupt(self) -> None:
        # A task that is cancelled before its first step never runs at all, not even what it would clean up.
        if self.has_begun and self.task is not None:
            self.task.cancel()

    @property
    def is_streaming(self) -> bool:
        """Whether upstream's acceptance is stored, and nothing is known that would end the generation."""
        if self.is_settled or self.is_abandoned or self.stop_reason is not None:
            return False
        return self.generation.state is State.RUNNING

    def overdue(self, now: float) -> Code | None:
        """Which clock has run out, if any. Only waiting for upstream counts against it."""
        relay, clocks = self.relay, self.clocks
        paused_seconds = 0.0 if relay is None else relay.paused_seconds
        if now - self.started_at - paused_seconds > clocks.total_seconds:
            return Code.TIMED_OUT
        if self.head_deadline is not None and now > self.head_deadline:
            return Code.TIMED_OUT
        if relay is not None and relay.waiting_since is not None and now - relay.waiting_since > clocks.idle_seconds:
            return Code.STALLED
        return None

    def stopped(self, reason: End) -> End:
        """How the call ended, now that it was stopped."""
        return reason if self.relay is None else self.relay.stopped(reason)

    @property
    def duration_ms(self) -> int:
        return int((time.monotonic() - self.started_at) * 1000)
