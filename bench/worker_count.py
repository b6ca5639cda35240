"""Two workers beside one.

No load of this machine's own could keep both cores busy with nothing but the servers. So what is measured is what a chunk costs:
one worker at some load, and two at twice that, so that each has as much to do, and gathers as much for a commit. From that
follows what they carry at full processors: one worker and its Postgres on one core, as in all other rows, and two workers and
their Postgres on two. How late chunks are meanwhile, and whether the run takes longer than it should, tells whether anything
but processors is short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.bars import Figure, RowComparison
from bench.load import Outcome
from bench.processes import pinned
from bench.relay import MOST_OF_IDEAL, by_default, relay
from bench.systems import OURS, POSTGRES, PROXY, Place, site_at, streamkeep

_ROW = "workers"
_GENERATIONS_PER_WORKER = 500


async def compare_workers(place: Place, say: Callable[[str], None]) -> RowComparison:
    outcomes: dict[int, Outcome] = {}
    shared = replace(place, cores=None if place.cores is None else place.cores.shared())
    with pinned(shared.load_cores):
        async with site_at(shared) as site:
            for workers in (1, 2):
                workload = by_default(workers * _GENERATIONS_PER_WORKER)
                say(f"{_ROW}: {workers}, {workload.expected_seconds:.0f} s …")
                outcomes[workers] = await relay(streamkeep(site, workers=workers), workload, site)
    one, two = _carried(outcomes[1], 1, cores=1), _carried(outcomes[2], 2, cores=2)
    one_on_two = _carried(outcomes[1], 1, cores=2)
    ideal_seconds = by_default(2 * _GENERATIONS_PER_WORKER).expected_seconds
    figures = [
        Figure("two on two cores, of one on one", "times", 1.7, _ratio(two, one), is_floor=True),
        Figure("two on two cores, of one with Postgres on a core of its own", "times", None, _ratio(two, one_on_two)),
        Figure("carried by one on one core", "chunks/s", None, one),
        Figure("carried by two on two cores", "chunks/s", None, two),
        Figure("two: p50", "ms", None, outcomes[2].streaming_latency.percentile_ms(50)),
        Figure("two: p99", "ms", None, outcomes[2].streaming_latency.percentile_ms(99)),
        Figure("two: wall time", "of the ideal", MOST_OF_IDEAL, outcomes[2].took_seconds / ideal_seconds),
    ]
    title = (
        f"`--workers 2` with {2 * _GENERATIONS_PER_WORKER} generations and one worker with {_GENERATIONS_PER_WORKER}, all on the same "
        "two cores; what they carry follows from the processor time of a chunk"
    )
    faults = [f"{OURS}: {fault}" for outcome in outcomes.values() for fault in outcome.faults]
    return RowComparison(_ROW, title, figures, faults)


def _carried(outcome: Outcome, workers: int, *, cores: int) -> float | None:
    """Chunks a second at full processors. A worker uses one core at most, and Postgres what is left of all."""
    proxy, postgres = (outcome.costs[party].streaming_micros for party in (PROXY, POSTGRES))
    if proxy is None or postgres is None:
        return None
    return 1e6 * min(workers / proxy, cores / (proxy + postgres))


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None
