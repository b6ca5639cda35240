"""Generations that are relayed: so many at once, on each system; and so many created a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from bench.bars import Figure
from bench.load import Load, Outcome
from bench.processes import StartFailed
from bench.report import UPSTREAM, RelayComparison
from bench.systems import OURS, POSTGRES, PROXY, SYSTEMS, Place, Site, System, site_at
from bench.workload import Workload

WARM_UP = Workload(generations=10, rate=30, chunk_bytes=200, seconds=0.5, ramp_seconds=0.1)

MOST_OF_IDEAL = 1.05
"""A system keeps up while the run takes no longer than this many times what it would take if nothing were late."""

_CREATED_PER_SECOND = 200
_CREATING_SYSTEMS = ("pass-through", "pass-through-fast", "sketch", OURS)
_SEARCH_PARTS = 5
_SEARCHED_P99_MS = 60.0

# Beyond these numbers of generations nothing is learnt from a system.
_ENOUGH = {
    "direct": (200, "there is nothing that could be busy"),
    "pass-through": (200, "it falls behind soon"),
    "pass-through-fast": (500, "it is far from its limit"),
    "sketch": (500, "it is near its limit"),
}


def by_default(generations: int, *, rate: float = 30, chunk_bytes: int = 200) -> Workload:
    """So many streams, started slowly enough that creating them is not what is measured, and 5 s in which all stream."""
    ramp_seconds = max(1.0, generations / 60)
    return Workload(generations, rate, chunk_bytes, ramp_seconds + 5, ramp_seconds)


def creating(seconds: float) -> Workload:
    """Streams of three chunks, so many a second that creating them is what costs."""
    number = round(_CREATED_PER_SECOND * seconds)
    return Workload(generations=number, rate=30, chunk_bytes=200, seconds=0.1, ramp_seconds=seconds)


async def compare_relays(
    workload: Workload, names: Sequence[str], place: Place, say: Callable[[str], None]
) -> RelayComparison:
    """The systems one after the other, each started afresh."""
    left_out = {name: why for name, (most, why) in _ENOUGH.items() if name in names and workload.generations > most}
    outcomes, failed = await _measure_each([name for name in names if name not in left_out], workload, place, say)
    return RelayComparison("relay", workload, outcomes, _figures(workload, outcomes), left_out | failed)


async def compare_creates(
    seconds: float, names: Sequence[str], place: Place, say: Callable[[str], None]
) -> RelayComparison:
    """Short generations, each created, read and ended, at a steady rate."""
    workload = creating(seconds)
    outcomes, failed = await _measure_each([name for name in names if name in _CREATING_SYSTEMS], workload, place, say)
    return RelayComparison("create", workload, outcomes, _create_figures(workload, outcomes), failed)


async def search_largest(
    fails: int, measured: Mapping[Workload, Outcome], place: Place, say: Callable[[str], None]
) -> dict[Workload, Outcome]:
    """What was measured and what more it took to find the largest number of generations that keeps up, where `fails` do not:
    to within a fifth of that."""
    found = dict(measured)
    largest = largest_that_keeps_up(found)
    works = 0 if largest is None else largest.generations
    while fails - works > fails / _SEARCH_PARTS:
        workload = by_default((works + fails) // 2)
        outcomes, _ = await _measure_each([OURS], workload, place, say)
        found[workload] = outcomes[OURS]
        if keeps_up(workload, outcomes[OURS]):
            works = workload.generations
        else:
            fails = workload.generations
    return found


def largest_that_keeps_up(measured: Mapping[Workload, Outcome]) -> Workload | None:
    """The one with the most generations."""
    works = [workload for workload, outcome in measured.items() if keeps_up(workload, outcome)]
    return max(works, key=lambda workload: workload.generations, default=None)


def largest_figure(largest: Workload | None, most: int) -> Figure:
    number = 0 if largest is None else largest.generations
    return Figure(f"largest number that keeps up, where {most} do not", "generations", most, number, is_floor=True)


def keeps_up(workload: Workload, outcome: Outcome) -> bool:
    p99_ms = outcome.streaming_latency.percentile_ms(99)
    is_in_time = outcome.took_seconds <= MOST_OF_IDEAL * workload.expected_seconds
    return is_in_time and p99_ms is not None and p99_ms <= _SEARCHED_P99_MS and not outcome.faults


async def relay(start: AbstractAsyncContextManager[System], workload: Workload, site: Site) -> Outcome:
    """Start a system, warm it up, and have it relay."""
    async with start as system:
        return await relay_on(system, workload, site)


async def relay_on(system: System, workload: Workload, site: Site, label: str = "run") -> Outcome:
    """`label` makes the ids of this run differ from those of all others on this system."""
    parties = {**system.parties, UPSTREAM: site.upstream.pid}

    async def run(workload: Workload, label: str) -> Outcome:
        return await Load(system.route, workload, upstream_url=site.upstream.url, parties=parties).run(label)

    # What a process does once only, it does now.
    await run(replace(WARM_UP, chunk_bytes=workload.chunk_bytes), f"{label}-warm-up")
    return await run(workload, label)


def micros_per_chunk(outcome: Outcome) -> float | None:
    """Processor time of all that a system consists of, while all streamed."""
    costs = [outcome.costs[party].streaming_micros for party in (PROXY, POSTGRES) if party in outcome.costs]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


async def _measure_each(
    names: Sequence[str], workload: Workload, place: Place, say: Callable[[str], None]
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """What was found by name, and which systems did not start and why. Raises: StartFailed: ours did not."""
    outcomes: dict[str, Outcome] = {}
    left_out: dict[str, str] = {}
    async with site_at(place) as site:
        for name in names:
            say(f"{name}: {workload.generations} generations, {workload.expected_seconds:.0f} s …")
            try:
                outcomes[name] = await relay(SYSTEMS[name](site), workload, site)
            except StartFailed as exc:
                if name == OURS:
                    raise
                left_out[name] = str(exc)
    return outcomes, left_out


def _figures(workload: Workload, outcomes: Mapping[str, Outcome]) -> list[Figure]:
    number = workload.generations
    is_many = number > 500
    return (
        [
            _figure(
                outcomes,
                f"{number} generations: processor time a chunk",
                "µs",
                50 if number == 500 else None,
                micros_per_chunk,
            ),
            _figure(
                outcomes,
                f"{number} generations: p50",
                "ms",
                None if is_many else 2,
                lambda found: found.streaming_latency.percentile_ms(50),
            ),
            _figure(
                outcomes,
                f"{number} generations: p99",
                "ms",
                _SEARCHED_P99_MS if is_many else 15,
                lambda found: found.streaming_latency.percentile_ms(99),
            ),
            *_wall_figures(workload, outcomes, f"{number} generations: "),
        ]
        if OURS in outcomes
        else []
    )


def _create_figures(workload: Workload, outcomes: Mapping[str, Outcome]) -> list[Figure]:
    if OURS not in outcomes:
        return []
    return [
        _figure(outcomes, "200 a second: p50", "ms", 3, lambda found: found.create.percentile_ms(50)),
        _figure(outcomes, "200 a second: p99", "ms", 15, lambda found: found.create.percentile_ms(99)),
        *_wall_figures(workload, outcomes, "200 a second: "),
    ]


def _wall_figures(workload: Workload, outcomes: Mapping[str, Outcome], prefix: str) -> list[Figure]:
    return [
        _figure(
            outcomes,
            f"{prefix}wall time",
            "of the ideal",
            MOST_OF_IDEAL,
            lambda found: found.took_seconds / workload.expected_seconds,
        ),
        _figure(outcomes, f"{prefix}chunks lost", "", 0, lambda found: float(found.lost_chunks)),
    ]


def _figure(
    outcomes: Mapping[str, Outcome],
    what: str,
    unit: str,
    bar: float | None,
    value: Callable[[Outcome], float | None],
) -> Figure:
    peers = {name: value(found) for name, found in outcomes.items() if name != OURS}
    return Figure(what, unit, bar, value(outcomes[OURS]), peers)
