"""What a run found: as JSON for programs, as tables for people, and as an entry of RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.appends import LEAST_APPENDS_PER_SECOND, Written
from bench.bars import Figure, RowComparison, bars_table, figures_to_json
from bench.histogram import Histogram
from bench.load import LOAD, OTHERS, Cost, Outcome
from bench.systems import OURS, POSTGRES, PROXY
from bench.tables import NOTHING, table
from bench.workload import Workload

BASELINE = "pass-through"
"""The system that the others' processor time is compared with."""

UPSTREAM = "upstream"
"""The fake upstream, among the parties whose cost is measured."""

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RelayComparison:
    """One workload of generations on several systems, by their names, in the order in which they ran. `left_out` says
    which were not measured, and why."""

    row: str
    workload: Workload
    outcomes: Mapping[str, Outcome]
    figures: Sequence[Figure]
    left_out: Mapping[str, str]

    @property
    def faults(self) -> list[str]:
        """Every stream that did not come whole."""
        return [f"{name}: {fault}" for name, outcome in self.outcomes.items() for fault in outcome.faults]

    def to_json(self) -> dict[str, Any]:
        workload = self.workload
        return {
            "measured": self.row,
            "figures": figures_to_json(self.figures),
            "generations": workload.generations,
            "chunksPerSecond": workload.rate,
            "chunkBytes": workload.chunk_bytes,
            "seconds": workload.seconds,
            "rampSeconds": workload.ramp_seconds,
            "expectedSeconds": round(workload.expected_seconds, 2),
            "systems": {name: self._system_to_json(outcome) for name, outcome in self.outcomes.items()},
            "leftOut": dict(self.left_out),
        }

    def to_markdown(self) -> str:
        """Tables that can be read as they stand."""
        workload = self.workload
        return (
            f"{self.row}: {workload.generations} generations of {workload.rate:g} chunks/s, {workload.chunk_bytes} bytes each, for "
            f"{workload.seconds:g} s; started over {workload.ramp_seconds:g} s:\n\n"
            + table([self._figures(name, outcome) for name, outcome in self.outcomes.items()])
            + "\n\nThe load side's own part:\n\n"
            + table([_own_part(name, outcome) for name, outcome in self.outcomes.items()])
        )

    def _against_baseline(self, outcome: Outcome) -> float | None:
        """The proxy's processor time for a chunk, as a multiple of the pass-through's."""
        own = _streaming(outcome, PROXY)
        baseline = _streaming(self.outcomes[BASELINE], PROXY) if BASELINE in self.outcomes else None
        return own / baseline if own is not None and baseline else None

    def _system_to_json(self, outcome: Outcome) -> dict[str, Any]:
        generations = self.workload.generations
        return {
            "latency": outcome.latency.to_json(),
            "latencyWhileAllStream": outcome.streaming_latency.to_json(),
            "firstChunk": outcome.first_chunk.to_json(),
            "createBeyondUpstream": outcome.create.to_json(),
            "cpu": {name: _cost_to_json(cost) for name, cost in outcome.costs.items()},
            "proxyCpuAgainstPassThrough": _rounded(self._against_baseline(outcome), 2),
            "memory": {
                name: {
                    "idleBytes": memory.idle_bytes,
                    "peakBytes": memory.peak_bytes,
                    "bytesPerGeneration": (memory.peak_bytes - memory.idle_bytes) // generations,
                }
                for name, memory in outcome.memory.items()
                if name != UPSTREAM
            },
            "chunks": outcome.latency.count,
            "lostChunks": outcome.lost_chunks,
            "repeatedReads": outcome.repeated_reads,
            "faultyStreams": len(outcome.faults),
            "tookSeconds": round(outcome.took_seconds, 2),
            "upstreamLateness": outcome.upstream_lateness,
        }

    def _figures(self, name: str, outcome: Outcome) -> dict[str, str]:
        memory = outcome.memory.get(PROXY)
        whole_run = [cost.whole_run_micros or 0 for party, cost in outcome.costs.items() if party in (PROXY, POSTGRES)]
        grown_kib = (memory.peak_bytes - memory.idle_bytes) / 1024 / self.workload.generations if memory else None
        return {
            "system": name,
            "latency ms p50 / p99 / max": _percentiles(outcome.latency, 50, 99, 100),
            "while all stream": _percentiles(outcome.streaming_latency, 50, 99, 100),
            "first chunk ms p50 / p99": _percentiles(outcome.first_chunk, 50, 99),
            "create ms p50 / p99": _percentiles(outcome.create, 50, 99),
            "proxy µs/chunk": _shown(_streaming(outcome, PROXY), 1),
            "against pass-through": _shown(self._against_baseline(outcome), 2),
            "Postgres µs/chunk": _shown(_streaming(outcome, POSTGRES), 1),
            "both, whole run": _shown(sum(whole_run) if whole_run else None, 1),
            "core busy": _percent(_busy(outcome, PROXY, POSTGRES)),
            "idle MiB": _shown(memory.idle_bytes / _MIB if memory else None, 1),
            "KiB/generation": _shown(grown_kib, 1),
            "read again": str(outcome.repeated_reads),
            "lost": str(outcome.lost_chunks),
            "took s": f"{outcome.took_seconds:.1f} of {self.workload.expected_seconds:.1f}",
        }


@dataclass(frozen=True, slots=True)
class AppendFigures:
    """What one server did: one writer alone, the same with a producer's headers, and a crowd of writers."""

    durability: str
    plain: Written
    producer: Written
    crowd: Written

    @property
    def phases(self) -> dict[str, Written]:
        return {"plain": self.plain, "producer": self.producer, "crowd": self.crowd}


@dataclass(frozen=True, slots=True)
class AppendComparison:
    """Appends to several servers of the open protocol, by their names, in the order in which they ran. `left_out` says
    which could not be started, and why."""

    append_bytes: int
    seconds: float
    writers: int
    servers: Mapping[str, AppendFigures]
    left_out: Mapping[str, str]
    row: str = "append"

    @property
    def figures(self) -> list[Figure]:
        if OURS not in self.servers:
            return []

        def figure(what: str, unit: str, bar: float | None, value: Callable[[AppendFigures], float | None]) -> Figure:
            peers = {name: value(found) for name, found in self.servers.items() if name != OURS}
            return Figure(what, unit, bar, value(self.servers[OURS]), peers, is_floor=unit == "a second")

        return [
            figure(
                f"{self.writers} connections",
                "a second",
                LEAST_APPENDS_PER_SECOND,
                lambda found: found.crowd.appends_per_second,
            ),
            figure(f"{self.writers} connections: p50", "ms", None, lambda found: found.crowd.latency.percentile_ms(50)),
            figure("one connection: p50", "ms", None, lambda found: found.plain.latency.percentile_ms(50)),
            figure("one producer: p50", "ms", None, lambda found: found.producer.latency.percentile_ms(50)),
        ]

    @property
    def faults(self) -> list[str]:
        """Every stream that does not hold what was acknowledged."""
        return [
            f"{name}, {phase}: {fault}"
            for name, figures in self.servers.items()
            for phase, written in figures.phases.items()
            for fault in written.faults
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "measured": self.row,
            "figures": figures_to_json(self.figures),
            "appendBytes": self.append_bytes,
            "seconds": self.seconds,
            "writers": self.writers,
            "systems": {
                name: {
                    "durability": figures.durability,
                    **{phase: _written_to_json(written) for phase, written in figures.phases.items()},
                }
                for name, figures in self.servers.items()
            },
            "leftOut": dict(self.left_out),
        }

    def to_markdown(self) -> str:
        """A table that can be read as it stands."""
        title = (
            f"append: {self.append_bytes} bytes by `POST /v1/stream/…`, for {self.seconds:g} s each: one writer, one "
            f"writer with a producer's headers, and {self.writers} writers with a connection and a stream each:"
        )
        return f"{title}\n\n{table([_append_figures(name, figures) for name, figures in self.servers.items()])}"


Comparison: TypeAlias = RelayComparison | AppendComparison | RowComparison


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found, row by row. `subject` names who was measured; `failures` says which rows were not,
    and why, and `notes` what else there is to know of the table."""

    subject: str
    comparisons: Sequence[Comparison]
    failures: Mapping[str, str]
    notes: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        return [fault for comparison in self.comparisons for fault in comparison.faults]

    def to_markdown(self) -> str:
        """What was done, with tables of its own where there is more to tell; then one table of all figures and bars."""
        return "\n\n".join(part for part in (*(c.to_markdown() for c in self.comparisons), self.bars()) if part)

    def bars(self) -> str:
        """The one table, and below it what is not in it."""
        left_out: dict[tuple[str, str], list[str]] = {}
        for comparison in self.comparisons:
            for name, reason in comparison.left_out.items():
                rows = left_out.setdefault((name, reason.strip().partition("\n")[0]), [])
                rows.append(comparison.row)
        parts = [bars_table([(comparison.row, comparison.figures) for comparison in self.comparisons], self.subject)]
        parts += [
            f"{name} is not in {', '.join(dict.fromkeys(rows))}: {why}." for (name, why), rows in left_out.items()
        ]
        parts += self.notes
        parts += [f"**{row} was not measured: {reason}**" for row, reason in self.failures.items()]
        return "\n\n".join(part for part in parts if part)


def result_entry(
    machine: Mapping[str, Any], report: Report, *, date: str, command: str, note: str | None = None
) -> str:
    """A section for RESULTS.md: when, on what, by which command, and the tables."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    hardware = f"{machine['cores']} cores, {machine['cpu']}, {machine['kernel']}, Python {machine['python']}"
    state = (
        f"load average {machine['loadAverage']} at the start, {machine['syncMicros']:g} µs to sync a write to disk, "
        f"{machine['calculationMillis']:g} ms for the fixed calculation"
    )
    faults = len(report.faults)
    return "\n\n".join(
        [
            f"## {date}, revision {machine['revision'] or 'unknown'}",
            f"{hardware}; {state}. {versions}.",
            *([f"**{note}**"] if note else []),
            f"`{command}`",
            report.to_markdown(),
            f"**{faults} streams did not come whole.**" if faults else "Every stream came whole.",
        ]
    )


def _append_figures(name: str, figures: AppendFigures) -> dict[str, str]:
    crowd = figures.crowd
    return {
        "system": name,
        "an answered append is": figures.durability,
        "plain ms p50 / p99": _percentiles(figures.plain.latency, 50, 99, digits=2),
        "producer ms p50 / p99": _percentiles(figures.producer.latency, 50, 99, digits=2),
        "crowd appends/s": _shown(crowd.appends_per_second, 0),
        "crowd ms p50 / p99": _percentiles(crowd.latency, 50, 99),
        "server µs/append": _shown(crowd.micros_per_append(PROXY), 1),
        "Postgres µs/append": _shown(crowd.micros_per_append(POSTGRES), 1),
    }


def _written_to_json(written: Written) -> dict[str, Any]:
    return {
        "latency": written.latency.to_json(),
        "appendsPerSecond": round(written.appends_per_second, 1),
        "cpuMicrosPerAppend": {name: _rounded(written.micros_per_append(name), 2) for name in written.cpu_seconds},
    }


def _own_part(name: str, outcome: Outcome) -> dict[str, str]:
    late = outcome.upstream_lateness
    return {
        "system": name,
        "reader µs/chunk": _shown(_streaming(outcome, LOAD), 1),
        "upstream µs/chunk": _shown(_streaming(outcome, UPSTREAM), 1),
        "core busy": _percent(_busy(outcome, LOAD, UPSTREAM)),
        "other programs": _percent(_busy(outcome, OTHERS)),
        "upstream late ms p50 / p99": f"{_shown(late['p50Ms'], 1)} / {_shown(late['p99Ms'], 1)}",
    }


def _cost_to_json(cost: Cost) -> dict[str, float | None]:
    return {
        "microsPerChunk": _rounded(cost.streaming_micros, 2),
        "coreShare": _rounded(cost.streaming_share, 4),
        "microsPerChunkWholeRun": _rounded(cost.whole_run_micros, 2),
    }


def _streaming(outcome: Outcome, party: str) -> float | None:
    cost = outcome.costs.get(party)
    return None if cost is None else cost.streaming_micros


def _busy(outcome: Outcome, *parties: str) -> float | None:
    shares = [outcome.costs[party].streaming_share for party in parties if party in outcome.costs]
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


def _percentiles(histogram: Histogram, *percents: float, digits: int = 1) -> str:
    if not histogram.count:
        return NOTHING
    return " / ".join(_shown(histogram.percentile_ms(percent), digits) for percent in percents)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"


def _shown(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
