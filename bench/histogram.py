"""Durations, counted in buckets: any number of them in a fixed amount of memory."""

from __future__ import annotations

from collections.abc import Iterable

_BITS = 6
_BUCKETS = 1 << _BITS
_LONGEST_MICROS = (1 << 36) - 1


class Histogram:
    """Counts durations in buckets whose width is 1 µs up to 128 µs, and at most 1.6 % of the value above."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._counts = [0] * ((36 - _BITS) * _BUCKETS + _BUCKETS)

    def record(self, duration_ns: int) -> None:
        micros = min(max(duration_ns // 1000, 0), _LONGEST_MICROS)
        # Drop low bits until seven are left: the leading one says which group, the other six which bucket in it.
        shift = max(micros.bit_length() - _BITS - 1, 0)
        self._counts[(shift << _BITS) + (micros >> shift)] += 1
        self.count += 1
        self.max_ns = max(self.max_ns, duration_ns)

    @classmethod
    def sum(cls, histograms: Iterable[Histogram]) -> Histogram:
        """One that has counted what each of these has."""
        total = cls()
        for histogram in histograms:
            total.count += histogram.count
            total.max_ns = max(total.max_ns, histogram.max_ns)
            total._counts = [mine + theirs for mine, theirs in zip(total._counts, histogram._counts, strict=True)]
        return total

    def percentile_ms(self, percent: float) -> float | None:
        """The duration that `percent` of all do not exceed, at most the longest one; None when there are none."""
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_bound_ns(index), self.max_ns) / 1e6
        return None

    def to_json(self) -> dict[str, float | int | None]:
        return {
            "count": self.count,
            "p50Ms": _rounded(self.percentile_ms(50)),
            "p90Ms": _rounded(self.percentile_ms(90)),
            "p99Ms": _rounded(self.percentile_ms(99)),
            "p999Ms": _rounded(self.percentile_ms(99.9)),
            "maxMs": _rounded(self.max_ns / 1e6) if self.count else None,
        }


def _upper_bound_ns(index: int) -> int:
    shift = max((index >> _BITS) - 1, 0)
    return ((index - (shift << _BITS) + 1) << shift) * 1000


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
