"""When a chat says what of its presence: at once when it changes, then every now and then, so that others know it is alive.

All times are seconds on a clock that is never set.
"""

from __future__ import annotations

from typing import Literal

PresenceStatus = Literal["online", "offline", "away"]

HEARTBEAT_SECONDS = 45.0
TYPING_ENDS_SECONDS = 3.0
# Somebody who types on says so less often than for each key, and still sooner than others take it for over.
TYPING_REPEAT_SECONDS = 5.0
TYPING_STALE_SECONDS = 10.0

Said = tuple[PresenceStatus, bool]


class PresencePlan:
    """What is to be said, and when."""

    def __init__(self) -> None:
        self._status: PresenceStatus | None = None
        self._typing_until: float | None = None
        self._said: Said | None = None
        self._said_at = float("-inf")

    @property
    def status(self) -> PresenceStatus | None:
        """What was announced; None before, and after leaving."""
        return self._status

    def announce(self, status: PresenceStatus) -> None:
        self._status = status
        self._said = None

    def type(self, is_typing: bool, *, now: float) -> None:
        """A key was pressed, or nobody types any more. Who types is online."""
        self._status = self._status or "online"
        self._typing_until = now + TYPING_ENDS_SECONDS if is_typing else None

    def repeat(self) -> None:
        """Nobody may have heard what was said last."""
        self._said = None

    def leave(self) -> None:
        self._status = self._typing_until = self._said = None

    def due(self, *, now: float) -> Said | None:
        """Status and typing, when that is to be said now."""
        if self._status is None:
            return None
        wanted = (self._status, self._is_typing(now))
        return wanted if wanted != self._said or now >= self._repeat_at(wanted) else None

    def said(self, what: Said, *, now: float) -> None:
        """It was said, or could not be: it is said again in time."""
        self._said, self._said_at = what, now

    def next_at(self, *, now: float) -> float:
        """When to look again."""
        if self._status is None:
            return float("inf")
        ends_at = self._typing_until if self._typing_until is not None and self._typing_until > now else float("inf")
        return min(ends_at, self._repeat_at((self._status, self._is_typing(now))))

    def _is_typing(self, now: float) -> bool:
        return self._typing_until is not None and now < self._typing_until

    def _repeat_at(self, what: Said) -> float:
        return self._said_at + (TYPING_REPEAT_SECONDS if what[1] else HEARTBEAT_SECONDS)
