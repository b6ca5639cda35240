"""When a lease is dead (design, traps in the core, 2).

A database that was away for twenty seconds must not make its first visitor declare every owner dead. So a lease counts
as dead only for a watcher that was in unbroken contact and saw the same beat for the whole lease: after a gap in its
own contact a watcher starts counting again.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamkeep.storage._types import Lease


class LeaseWatch:
    """Tell dead owners from late ones, from what repeated scans of the lease rows saw.

    `lease_seconds` is how long a beat may stand unchanged; `max_gap_seconds` is the longest pause between two scans
    that still counts as unbroken contact. Times are monotonic seconds, given by the caller.
    """

    def __init__(self, *, lease_seconds: float, max_gap_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._max_gap_seconds = max_gap_seconds
        self._seen: dict[tuple[int, int], tuple[int, float]] = {}
        self._scanned_at: float | None = None

    def lost_contact(self) -> None:
        """Forget everything: a scan failed, so nothing seen before it proves silence."""
        self._seen.clear()
        self._scanned_at = None

    def scan(self, leases: Iterable[Lease], *, now: float) -> list[Lease]:
        """Take what a scan saw; return the leases whose beat stood still for a whole lease under our eyes."""
        if self._scanned_at is not None and now - self._scanned_at > self._max_gap_seconds:
            self.lost_contact()
        self._scanned_at = now
        seen: dict[tuple[int, int], tuple[int, float]] = {}
        dead: list[Lease] = []
        for lease in leases:
            key = (lease.owner.id, lease.owner.epoch)
            before = self._seen.get(key)
            since = before[1] if before is not None and before[0] == lease.beat else now
            seen[key] = (lease.beat, since)
            if now - since >= self._lease_seconds:
                dead.append(lease)
        self._seen = seen
        return dead
