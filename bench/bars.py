"""Figures beside the bars that they are to meet, and beside what other servers do: one small table for any row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.tables import NOTHING, table


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of ours. `bar` is the most that it may be, or with `is_floor` the least, and None where it is told
    for comparison alone; `peers` have theirs by name."""

    what: str
    unit: str
    bar: float | None
    value: float | None
    peers: Mapping[str, float | None] = field(default_factory=dict)
    is_floor: bool = False

    @property
    def is_met(self) -> bool | None:
        """None where there is no bar, or nothing was found."""
        if self.bar is None or self.value is None:
            return None
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
            "figures": figures_to_json(self.figures),
            "leftOut": dict(self.left_out),
        }

    def to_markdown(self) -> str:
        """What was done; the figures stand in the table of all rows."""
        return f"{self.row}: {self.title}."


def figures_to_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    return [
        {
            "what": figure.what,
            "unit": figure.unit,
            "bar": figure.bar,
            "isFloor": figure.is_floor,
            "value": figure.value,
            "isMet": figure.is_met,
            "peers": dict(figure.peers),
        }
        for figure in figures
    ]


def bars_table(rows: Iterable[tuple[str, Sequence[Figure]]], subject: str) -> str:
    """The figures of several rows: bar, figure, whether it is met, and each peer's figure with how many times better ours
    is. `subject` names who is measured."""
    named = [(row, figure) for row, figures in rows for figure in figures]
    peers = list(dict.fromkeys(peer for _, figure in named for peer in figure.peers))
    return table(
        [
            {
                "row": row,
                "figure": figure.what,
                "bar": _bar(figure),
                subject: _shown(figure.value),
                "met": {True: "yes", False: "no", None: NOTHING}[figure.is_met],
                **{peer: _against(figure, peer) for peer in peers},
            }
            for row, figure in named
        ]
    )


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return f"({figure.unit})" if figure.unit else NOTHING
    return f"{'≥' if figure.is_floor else '≤'} {figure.bar:g} {figure.unit}".rstrip()


def _against(figure: Figure, peer: str) -> str:
    ratio = figure.ratio(peer)
    return NOTHING if ratio is None else f"{_shown(figure.peers[peer])} ({ratio:.2f})"


def _shown(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
