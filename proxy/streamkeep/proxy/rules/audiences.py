"""When a generation has been without readers for long enough to be stopped.

Processes tell the store for how long their readers count, again and again. So a reader seems gone when its process could
not reach the store, and after any gap in our own contact nobody is judged until every process had the time to tell again.
"""

from __future__ import annotations

from collections.abc import Mapping


class AudienceWatch:
    """Judges what one process sees of the audiences of its generations, look by look.

    A gap is `max_gap_seconds` or more between two looks; after one, `settle_seconds` pass before the next judgement.
    """

    def __init__(self, *, max_gap_seconds: float, settle_seconds: float) -> None:
        self._max_gap_seconds = max_gap_seconds
        self._settle_seconds = settle_seconds
        self._looked_at: float | None = None
        self._trusted_from = float("-inf")

    def rest(self) -> None:
        """There is nothing to look at: the time until the next look is no gap."""
        self._looked_at = None

    def overdue(
        self, readerless_seconds: Mapping[int, float], cancel_after_seconds: Mapping[int, float], *, now: float
    ) -> list[int]:
        """The generations to be stopped, given for how long each that ever had a reader has had none."""
        if self._looked_at is not None and now - self._looked_at >= self._max_gap_seconds:
            self._trusted_from = now + self._settle_seconds
        self._looked_at = now
        if now < self._trusted_from:
            return []
        return [id for id, seconds in readerless_seconds.items() if seconds >= cancel_after_seconds[id]]
