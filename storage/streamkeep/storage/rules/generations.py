"""The life of a generation: its states, what leads from one to the next, and how each end is told.

    creating ──> running ──> done | error | cancelled
        │                       ▲
        ├───────────────────────┘   (ended before upstream's verdict)
        └──> refused ──> creating   (upstream said no; a later repeat may claim it anew, with the next epoch)

`creating`: claimed in the database, upstream not yet answered. `running`: upstream accepted and bytes may come.
`done`, `error`, `cancelled` are terminal: exactly one event stands on the control stream and both streams are closed.
`refused`: upstream answered with an error of its own; there is nothing to read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from streamkeep.storage.rules.offsets import format_offset


class State(StrEnum):
    """Where a generation stands between its claim and its end."""

    CREATING = "creating"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    REFUSED = "refused"

    @property
    def is_live(self) -> bool:
        """Whether bytes or an end may still come."""
        return self in LIVE

    @property
    def is_terminal(self) -> bool:
        """Whether it was accepted and has ended."""
        return self in TERMINAL


LIVE = frozenset({State.CREATING, State.RUNNING})
TERMINAL = frozenset({State.DONE, State.ERROR, State.CANCELLED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATING: frozenset({State.RUNNING, State.REFUSED, *TERMINAL}),
    State.RUNNING: TERMINAL,
    State.REFUSED: frozenset({State.CREATING}),
    State.DONE: frozenset(),
    State.ERROR: frozenset(),
    State.CANCELLED: frozenset(),
}


class Code(StrEnum):
    """Why a generation ended (design, the way of a generation, step 7)."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    UPSTREAM_FAILED = "upstream_failed"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    TOO_LARGE = "too_large"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    OWNER_LOST = "owner_lost"
    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"

    @property
    def state(self) -> State:
        """The state that a generation with this end is in; its value is also the event's name."""
        if self is Code.COMPLETE:
            return State.DONE
        return State.CANCELLED if self is Code.CANCELLED else State.ERROR

    @property
    def is_retryable(self) -> bool:
        """Whether the fault was ours, so that a new request has a fair chance."""
        return self in _OURS


_OURS = frozenset({Code.STORAGE_UNAVAILABLE, Code.OWNER_LOST, Code.SHUTDOWN})

_MESSAGES = {
    Code.COMPLETE: "upstream finished",
    Code.TRUNCATED: "upstream closed the connection without its format's end mark; all bytes received are kept",
    Code.UPSTREAM_FAILED: "upstream broke off",
    Code.TIMED_OUT: "upstream took longer than it may",
    Code.STALLED: "upstream stayed silent for longer than it may",
    Code.TOO_LARGE: "the response is larger than it may be",
    Code.STORAGE_UNAVAILABLE: "the database stayed away for too long",
    Code.OWNER_LOST: "the process that recorded this generation died",
    Code.SHUTDOWN: "the proxy was stopped before upstream finished",
    Code.CANCELLED: "cancelled on request",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the vendor counted them; a zero is a zero and None is unknown."""

    input_tokens: int | None
    output_tokens: int | None
    source: str


@dataclass(frozen=True)
class Terminal:
    """A generation's one end. `offset` is the data stream's final offset; `sha256` is hex, None when unknown."""

    code: Code
    offset: str
    size_bytes: int
    sha256: str | None
    duration_ms: int
    usage: Usage | None = None
    detail: str | None = None

    def to_json(self) -> bytes:
        """The event as it stands on the control stream, one line of JSON."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        event: dict[str, object] = {
            "event": self.code.state.value,
            "code": self.code.value,
            "offset": self.offset,
            "bytes": self.size_bytes,
            "durationMs": self.duration_ms,
            "usage": _usage_json(self.usage),
            "retryable": self.code.is_retryable,
            "message": self.detail or _MESSAGES[self.code],
        }
        if self.sha256 is not None:
            event["sha256"] = self.sha256
        # A lone surrogate in somebody's error text becomes a JSON escape: it must not keep a generation from ending.
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def orphaned(size_bytes: int, age_seconds: float, is_cancel_requested: bool) -> Terminal:
    """The end that a dead owner's recoverer writes; a cancellation that the owner did not live to see is kept."""
    code = Code.CANCELLED if is_cancel_requested else Code.OWNER_LOST
    return Terminal(code, format_offset(size_bytes), size_bytes, None, int(age_seconds * 1000))


def _usage_json(usage: Usage | None) -> dict[str, object] | None:
    if usage is None:
        return None
    return {"inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens, "source": usage.source}
