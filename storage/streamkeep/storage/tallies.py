"""What a component counts of its own work: plain numbers, cheap enough for the hot path, gathered by whoever asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for delays of ours: from a millisecond to what nobody waits for."""

_BATCH_BYTES = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
_BATCH_ITEMS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


class Histogram:
    """How often a value fell at or below each bound, and the sum of all. `counts` has one place more, for the rest."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"Histogram(count={sum(self.counts)}, sum={self.sum})"

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class CommitTally:
    """A group commit's own figures: the delay from the oldest item of a batch being handed over until all of it was
    durable, how large batches are, and what they stored."""

    __slots__ = ("batch_bytes", "batch_items", "lag_seconds", "stored_bytes")

    def __init__(self) -> None:
        self.lag_seconds = Histogram(SECONDS)
        self.batch_bytes = Histogram(_BATCH_BYTES)
        self.batch_items = Histogram(_BATCH_ITEMS)
        self.stored_bytes = 0

    def note(self, *, lag_seconds: float, size_bytes: int, items: int) -> None:
        """A batch of so many bytes and so many items (streams, or appends) is durable."""
        self.lag_seconds.observe(lag_seconds)
        self.batch_bytes.observe(size_bytes)
        self.batch_items.observe(items)
        self.stored_bytes += size_bytes
