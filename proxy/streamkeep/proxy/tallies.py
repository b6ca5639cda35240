"""What the proxy counts of its own work, as plain numbers; `metrics.py` shows them. Labels come from small, fixed sets."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from streamkeep.storage import Code
from streamkeep.storage.tallies import SECONDS, Histogram

_UPSTREAM_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Upstream = str
"""A vendor's name: of those that the configuration spells, or `other`."""


class GenerationTally:
    """Of generations that this process recorded or was asked for."""

    def __init__(self) -> None:
        self.claim_seconds = Histogram(SECONDS)
        self.upstream_seconds = Histogram(_UPSTREAM_SECONDS)
        self.acceptance_seconds = Histogram(SECONDS)
        self.first_chunk_seconds: dict[Upstream, Histogram] = {}
        self.ended: Counter[tuple[Upstream, Code]] = Counter()
        self.refused: Counter[tuple[Upstream, int]] = Counter()
        self.resumes: Counter[str] = Counter({"join": 0, "replay": 0, "active": 0})
        self.cancels: Counter[str] = Counter({"request": 0, "other_process": 0, "no_reader": 0})
        self.retries = 0
        self.recovered = 0
        self.fenced = 0
        self.merged = 0
        self.swept = 0

    def note_first_chunk(self, upstream: Upstream, seconds: float) -> None:
        """Upstream's first bytes came so long after the request was sent."""
        histogram = self.first_chunk_seconds.get(upstream)
        if histogram is None:
            histogram = self.first_chunk_seconds[upstream] = Histogram(_UPSTREAM_SECONDS)
        histogram.observe(seconds)


class ReadMode(StrEnum):
    """The ways to read. `direct`: the body of an answer that looks like upstream's own."""

    CATCH_UP = "catch-up"
    LONG_POLL = "long-poll"
    SSE = "sse"
    DIRECT = "direct"

    @property
    def is_live(self) -> bool:
        return self is not ReadMode.CATCH_UP


class ReadTally:
    """Of reads in this process. `lag_seconds` is from a commit to the moment when its bytes go to a live reader's socket."""

    def __init__(self) -> None:
        self.lag_seconds = Histogram(SECONDS)
        self.delivered_bytes = 0
        self.begun: Counter[tuple[ReadMode, str]] = Counter()
        self.following: Counter[ReadMode] = Counter({mode: 0 for mode in ReadMode if mode.is_live})
        self.cut_off = 0


class RequestTally:
    """Of requests to this process: how they were answered, and which errors of ours were among the answers."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.errors: Counter[str] = Counter()

    def note_answer(self, method: str, status: int) -> None:
        self.answers[method if method in _METHODS else "other", status] += 1


class SessionTally:
    """Of agents' turns in durable sessions: how those ended that ended here, and how many rows they came to."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter({"done": 0, "stop": 0, "error": 0})
        self.rows = 0
