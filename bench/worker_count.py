"""Two workers beside one.

A chunk costs less the more of them share a commit, so both are measured where processors are full: the same generations, which are
about as many as a core can carry, for one worker with its Postgres on one core, as in all other rows, and for two workers with theirs on both
cores. The second time the load takes its part of the same cores. So what is compared is what a chunk costs each, and what
they would carry with nothing else on the machine follows from that. They stream for long, since a core that is full starts the
last of them late; where not all of them ever streamed together, what a chunk cost in the whole run counts for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.bars import Figure, RowComparison
from bench.load import Cost, Outcome
from bench.processes import pinned
from bench.relay import MOST_OF_IDEAL, relay
from bench.systems import OURS, POSTGRES, PROXY, Place, site_at, streamkeep
from bench.workload import Workload

_ROW = "workers"
_RAMP_SECONDS = 14.0
_WORKLOAD = Workload(generations=1000, rate=30, chunk_bytes=200, seconds=_RAMP_SECONDS + 10, ramp_seconds=_RAMP_SECONDS)


@dataclass(frozen=True, slots=True)
class _Micros:
    """Processor time of a chunk, in microseconds."""

    proxy: float
    postgres: float


async def compare_workers(place: Place, say: Callable[[str], None]) -> RowComparison:
    say(f"{_ROW}: 1 and then 2, {2 * _WORKLOAD.expected_seconds:.0f} s …")
    async with site_at(place) as site:
        alone = await relay(streamkeep(site), _WORKLOAD, site)
    shared = replace(place, cores=None if place.cores is None else place.cores.shared())
    with pinned(shared.load_cores):
        async with site_at(shared) as site:
            together = await relay(streamkeep(site, workers=2), _WORKLOAD, site)
    cost_alone, cost_together = _costs(alone, together)
    one, two = _carried(cost_alone, 1, cores=1), _carried(cost_together, 2, cores=2)
    one_on_two = _carried(cost_alone, 1, cores=2)
    figures = [
        Figure("two on two cores, of one on one", "times", 1.7, _ratio(two, one), is_floor=True),
        Figure("two on two cores, of one with Postgres on a core of its own", "times", None, _ratio(two, one_on_two)),
        Figure("carried by one on one core", "chunks/s", None, one),
        Figure("carried by two on two cores", "chunks/s", None, two),
        Figure("two: p50", "ms", None, together.streaming_latency.percentile_ms(50)),
        Figure("two: p99", "ms", None, together.streaming_latency.percentile_ms(99)),
        Figure("two: wall time", "of the ideal", MOST_OF_IDEAL, together.took_seconds / _WORKLOAD.expected_seconds),
    ]
    title = (
        f"`--workers 2` on two cores beside one worker on one, with {_WORKLOAD.generations} generations each; what they carry "
        "follows from the processor time of a chunk"
    )
    faults = [f"{OURS}: {fault}" for fault in (*alone.faults, *together.faults)]
    return RowComparison(_ROW, title, figures, faults)


def _costs(*outcomes: Outcome) -> list[_Micros | None]:
    """What a chunk cost in each of the runs, all taken alike."""
    streaming = [_micros(outcome, lambda cost: cost.streaming_micros) for outcome in outcomes]
    if None not in streaming:
        return streaming
    return [_micros(outcome, lambda cost: cost.whole_run_micros) for outcome in outcomes]


def _micros(outcome: Outcome, value: Callable[[Cost], float | None]) -> _Micros | None:
    proxy, postgres = (value(outcome.costs[party]) for party in (PROXY, POSTGRES))
    return None if proxy is None or postgres is None else _Micros(proxy, postgres)


def _carried(cost: _Micros | None, workers: int, *, cores: int) -> float | None:
    """Chunks a second at full processors. A worker uses one core at most, and Postgres what is left of all."""
    return None if cost is None else 1e6 * min(workers / cost.proxy, cores / (cost.proxy + cost.postgres))


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None
