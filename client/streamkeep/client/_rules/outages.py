"""How long requests may come to nothing before the client gives up.

An attempt that took long had reached somebody, who then went away. With it a new outage begins, so that a call that
waited a minute for upstream when its proxy was restarted is repeated all the same.
"""

from __future__ import annotations

# An attempt, or a connection, that lasted so long was a good one: what ended it is no reason to slow down.
LONG_ATTEMPT_SECONDS = 5.0


class Outage:
    """One request's attempts. `now` is monotonic seconds."""

    def __init__(self, within_seconds: float) -> None:
        self._within_seconds = within_seconds
        self._attempt_began_at = 0.0
        self._began_at: float | None = None

    def attempt_begins(self, *, now: float) -> None:
        self._attempt_began_at = now

    def is_too_long(self, *, now: float, pause_seconds: float) -> bool:
        """Whether, after an attempt that failed now and this pause, the next one would begin too late."""
        if self._began_at is None or now - self._attempt_began_at >= LONG_ATTEMPT_SECONDS:
            self._began_at = now
        return now - self._began_at + pause_seconds >= self._within_seconds
