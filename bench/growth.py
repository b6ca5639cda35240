"""Growth: whether a chunk costs the same with more generations, with more rows in the tables, and after a longer time."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncGenerator, Callable, Sequence

import asyncpg

from bench.bars import Figure, RowComparison
from bench.load import Outcome
from bench.relay import by_default, micros_per_chunk, relay, relay_on
from bench.systems import OURS, PROXY, Place, site_at, streamkeep
from bench.workload import Workload

_ROW = "growth"
_MOST_TIMES = 1.2
_MOST_MEMORY_TIMES = 1.1
_FEW = by_default(100)
_SOME = Workload(generations=200, rate=30, chunk_bytes=200, seconds=6, ramp_seconds=2)
_SOME_RUNS = 2
_ROUND = Workload(generations=200, rate=30, chunk_bytes=200, seconds=8, ramp_seconds=2)
_WARM_UP_ROUNDS = 2
_CHUNKS_PER_GENERATION = 100

# Ended and merged just now, so that no upkeep comes for them. Small values: it is the indexes that are to be deep.
_FILL = """
with filled as (
    insert into streamkeep.streams (tenant, path, final_position, closed_at, merged_at)
    select 'filled', n || kind, size, now(), now()
    from generate_series(1, $1::bigint) as n, (values ('/data', $2::bigint * 8), ('/control', 8)) as kinds (kind, size)
    returning id, path, final_position
), chunks as (
    insert into streamkeep.chunks (stream_id, position, size, data)
    select id, position, 8, '\\x0123456789abcdef'
    from (select id, final_position from filled order by id offset 0) as ordered,
        generate_series(0, final_position - 8, 8) as position
)
insert into streamkeep.generations
    (tenant, session_id, request_id, state, owner_id, owner_epoch, data_stream, control_stream, ended_at, code)
select 'filled', split_part(data.path, '/', 1), '1', 'done', 0, 0, data.id, control.id, now(), 'complete'
from filled as data join filled as control on control.path = split_part(data.path, '/', 1) || '/control'
where data.path like '%/data'
"""
# Entries of an index on two numbers: some 300 fit on a page.
_LEVELS = """
select ceil(log(300, greatest(relpages, 2)))::integer + 1 from pg_class where oid = 'streamkeep.chunks_pkey'::regclass
"""
_AUTOVACUUMS = "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'"
_LOOK_SECONDS = 0.2
_TABLES = ("streamkeep.chunks", "streamkeep.streams", "streamkeep.generations")


async def compare_growth(
    place: Place, stored_rows: int, minutes: float, say: Callable[[str], None]
) -> AsyncGenerator[RowComparison]:
    """Two comparisons: of an empty store with one of so many chunks, and of the first minutes of a run with its last."""
    yield await _compare_stored(place, stored_rows, say)
    yield await _compare_times(place, minutes, say)


async def compare_numbers(many: int, outcome: Outcome, place: Place, say: Callable[[str], None]) -> RowComparison:
    """What so many generations cost each, which was measured already, beside what a few cost."""
    say(f"{_ROW}: {_FEW.generations} generations, 7 s …")
    async with site_at(place) as site:
        few = await relay(streamkeep(site), _FEW, site)
    title = (
        f"what a chunk costs with {_FEW.generations} and with {many:,} generations; less with more is welcome, since "
        "chunks share commits"
    )
    what = f"{many:,} generations, of {_FEW.generations}: cost"
    figure = Figure(what, "times", _MOST_TIMES, _ratio(micros_per_chunk(few), micros_per_chunk(outcome)))
    return RowComparison(_ROW, title, [figure], _faults([few]))


async def _compare_stored(place: Place, rows: int, say: Callable[[str], None]) -> RowComparison:
    async with site_at(place) as site, streamkeep(site) as system:

        async def runs(label: str) -> list[Outcome]:
            say(f"{_ROW}: {label}, {_SOME_RUNS * _SOME.expected_seconds:.0f} s …")
            return [await relay_on(system, _SOME, site, f"{label}-{number}") for number in range(_SOME_RUNS)]

        empty = await runs("empty")
        say(f"{_ROW}: filling it with {rows:,} chunks …")
        assert system.database_url is not None
        depth = await fill(system.database_url, rows)
        full = await runs("full")
    title = (
        f"what a chunk of {_SOME.generations} generations costs in an empty store, and beside {rows:,} stored chunks "
        f"(levels of the index: {depth}); the better of {_SOME_RUNS} runs each"
    )
    ratio = _ratio(_least(empty), _least(full))
    figure = Figure(f"{rows:,} stored chunks, of none: cost", "times", _MOST_TIMES, ratio)
    return RowComparison(_ROW, title, [figure], _faults([*empty, *full]))


async def fill(database_url: str, rows: int) -> int:
    """Store about so many chunks, as those of generations that ended; how many levels their index has then."""
    database = await asyncpg.connect(database_url)
    try:
        await database.execute(_FILL, max(1, rows // (_CHUNKS_PER_GENERATION + 1)), _CHUNKS_PER_GENERATION)
        for table in _TABLES:
            await database.execute(f"vacuum (analyze) {table}")
        # What was filled in is not to be written out, or looked through once more, while it is measured.
        await database.execute("checkpoint")
        while await database.fetchval(_AUTOVACUUMS):
            await asyncio.sleep(_LOOK_SECONDS)
        levels: int = await database.fetchval(_LEVELS)
        return levels
    finally:
        await database.close()


async def _compare_times(place: Place, minutes: float, say: Callable[[str], None]) -> RowComparison:
    rounds = max(_WARM_UP_ROUNDS + 2, round(60 * minutes / _ROUND.expected_seconds))
    say(f"{_ROW}: {rounds} rounds of {_ROUND.expected_seconds:.0f} s …")
    async with site_at(place) as site, streamkeep(site) as system:
        outcomes = [await relay_on(system, _ROUND, site, f"round-{number}") for number in range(rounds)]
    warm = outcomes[_WARM_UP_ROUNDS:]
    first, last = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    took_minutes = rounds * _ROUND.expected_seconds / 60
    what = f"{took_minutes:.1f} minutes: last half, of the first after warm-up"
    figures = [
        Figure(
            f"{what}: cost", "times", _MOST_TIMES, _ratio(_mean(first, micros_per_chunk), _mean(last, micros_per_chunk))
        ),
        Figure(f"{what}: memory", "times", _MOST_MEMORY_TIMES, _ratio(_mean(first, _peak), _mean(last, _peak))),
    ]
    title = f"{rounds} rounds of {_ROUND.generations} generations, one after the other; `--minutes 20` for a long run"
    return RowComparison(_ROW, title, figures, _faults(outcomes))


def _ratio(before: float | None, after: float | None) -> float | None:
    return after / before if before and after else None


def _least(outcomes: Sequence[Outcome]) -> float | None:
    return min((cost for outcome in outcomes if (cost := micros_per_chunk(outcome)) is not None), default=None)


def _mean(outcomes: Sequence[Outcome], value: Callable[[Outcome], float | None]) -> float | None:
    known = [found for outcome in outcomes if (found := value(outcome)) is not None]
    return statistics.mean(known) if known else None


def _peak(outcome: Outcome) -> float:
    return float(outcome.memory[PROXY].peak_bytes)


def _faults(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{OURS}: {fault}" for outcome in outcomes for fault in outcome.faults]
