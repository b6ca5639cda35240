"""Figures beside the bars that they are to meet, and beside what other servers do: one small table for any row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.tables import NOTHING, table


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of ours. `bar` is the most that it may be, or with `is_floor` the least; `peers` have theirs by name."""

    what: str
    unit: str
    bar: float
    value: float | None
    peers: Mapping[str, float | None] = field(default_factory=dict)
    is_floor: bool = False

    @property
    def is_met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bar if self.is_floor else self.value <= self.bar

    def ratio(self, peer: str) -> float | None:
        """How many times better ours is than a peer's; below 1 it is worse."""
        theirs = self.peers.get(peer)
        if not theirs or not self.value:
            return None
        return self.value / theirs if self.is_floor else theirs / self.value


@dataclass(frozen=True, slots=True)
class RowComparison:
    """One row: what was done, in words, and the figures. `faults` are what did not come whole; `left_out` says which
    peers could not be started, and why."""

    row: str
    title: str
    figures: Sequence[Figure]
    faults: list[str] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "measured": self.row,
            "figures": [
                {
                    "what": figure.what,
                    "unit": figure.unit,
                    "bar": figure.bar,
                    "isFloor": figure.is_floor,
                    "value": figure.value,
                    "isMet": figure.is_met,
                    "peers": dict(figure.peers),
                }
                for figure in self.figures
            ],
            "leftOut": dict(self.left_out),
        }

    def to_markdown(self) -> str:
        """A table that can be read as it stands."""
        parts = [f"{self.title}:", bars_table({self.row: self.figures})]
        parts += [f"{name} was left out: {reason.splitlines()[0]}" for name, reason in self.left_out.items()]
        return "\n\n".join(parts)


def bars_table(rows: Mapping[str, Sequence[Figure]]) -> str:
    """The figures of several rows: bar, figure, whether it is met, and each peer's figure with how many times better ours is."""
    peers = list(dict.fromkeys(peer for figures in rows.values() for figure in figures for peer in figure.peers))
    return table(
        [
            {
                "row": row,
                "figure": figure.what,
                "bar": f"{'≥' if figure.is_floor else '≤'} {figure.bar:g} {figure.unit}",
                "streamkeep": _shown(figure.value),
                "met": "yes" if figure.is_met else "no",
                **{peer: _against(figure, peer) for peer in peers},
            }
            for row, figures in rows.items()
            for figure in figures
        ]
    )


def _against(figure: Figure, peer: str) -> str:
    ratio = figure.ratio(peer)
    return NOTHING if ratio is None else f"{_shown(figure.peers[peer])} ({ratio:.2f})"


def _shown(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
