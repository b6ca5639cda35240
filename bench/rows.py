"""The rows: what is measured, one after the other, each by itself, so that one that fails takes no other with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from bench.appends import Writing, write
from bench.bars import RowComparison, bars_table
from bench.catch_up import compare_catch_up
from bench.clients import compare_clients
from bench.fan_out import compare_fan_out
from bench.growth import compare_growth, compare_numbers
from bench.load import Outcome
from bench.memory import compare_memory
from bench.relay import compare_creates, compare_relays, largest_figure, largest_that_keeps_up, search_largest
from bench.report import AppendComparison, AppendFigures, Comparison
from bench.sessions import compare_sessions
from bench.slow_disk import compare_slow_disk
from bench.storage import compare_storage
from bench.systems import OURS, SYSTEMS, Place, StreamServer, measure_each
from bench.worker_count import compare_workers
from bench.workload import Workload

Say = Callable[[str], None]

FOREIGN_ROWS = ("append", "fan-out", "catch-up")
"""What any server of the open protocol can be measured with."""

_READ_PEERS = ("reference-memory", "rakaia")
_APPEND_SERVERS = (OURS, "reference", "reference-memory", "rakaia")
# Few streams: with more than a hundred in all, the reference server answers 404 for some of those that it made.
_WARM_UP_WRITERS = 8
_WARM_UP_SECONDS = 1.0
_MANY_GENERATIONS = 1000
_LONGEST_ROW_SECONDS = 400.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of each row. `systems` are those to measure, by name; ours is one of them."""

    systems: Sequence[str]
    workloads: Sequence[Workload]
    create_seconds: float
    writers: int
    append_bytes: int
    append_seconds: float
    readers: Sequence[int]
    fan_out_seconds: float
    stored_rows: int
    minutes: float
    session_events: int

    @property
    def peers(self) -> list[str]:
        """The servers that readers are measured with, beside ours."""
        return [name for name in _READ_PEERS if name in self.systems]


async def _relay(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    names = [name for name in SYSTEMS if name in plan.systems]
    ours: dict[Workload, Outcome] = {}
    for workload in plan.workloads:
        found = await compare_relays(workload, names, place, say)
        yield found
        if OURS in found.outcomes:
            ours[workload] = found.outcomes[OURS]
    most = max(ours, key=lambda workload: workload.generations, default=None)
    if most is None or most.generations < _MANY_GENERATIONS:
        return
    largest = largest_that_keeps_up(ours)
    if largest is not most:
        ours = await search_largest(most.generations, ours, place, say)
        largest = largest_that_keeps_up(ours)
        title = "fewer generations, for the largest number that keeps up"
        yield RowComparison("relay", title, [largest_figure(largest, most.generations)])
    many = largest or most
    yield await compare_numbers(many.generations, ours[many], place, say)


async def _create(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_creates(plan.create_seconds, plan.systems, place, say)


async def _append(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    say(f"append: {3 * plan.append_seconds:.0f} s on each server …")
    names = [name for name in _APPEND_SERVERS if name in plan.systems]
    servers, left_out = await measure_each(names, place, partial(_measure_appends, plan))
    yield AppendComparison(plan.append_bytes, plan.append_seconds, plan.writers, servers, left_out)


async def _measure_appends(plan: Plan, server: StreamServer) -> AppendFigures:
    alone = Writing(1, plan.append_bytes, plan.append_seconds)
    crowd = replace(alone, writers=plan.writers)
    await write(server, replace(alone, writers=_WARM_UP_WRITERS, seconds=_WARM_UP_SECONDS), "warm-up")
    return AppendFigures(
        server.durability,
        plain=await write(server, alone, "plain"),
        producer=await write(server, replace(alone, has_producer=True), "producer"),
        crowd=await write(server, crowd, "crowd"),
    )


async def _fan_out(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_fan_out(place, plan.peers, plan.readers, plan.fan_out_seconds, say)


async def _catch_up(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_catch_up(place, plan.peers, say)


async def _memory(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_memory(place, say)


async def _storage(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_storage(place, say)


async def _growth(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    async with aclosing(compare_growth(place, plan.stored_rows, plan.minutes, say)) as comparisons:
        async for comparison in comparisons:
            yield comparison


async def _workers(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_workers(place, say)


async def _slow_disk(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_slow_disk(place, say)


async def _client(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_clients(place, say)


async def _session(plan: Plan, place: Place, say: Say) -> AsyncGenerator[Comparison]:
    yield await compare_sessions(place, plan.session_events, say)


ROWS: dict[str, Callable[[Plan, Place, Say], AsyncGenerator[Comparison]]] = {
    "relay": _relay,
    "create": _create,
    "append": _append,
    "fan-out": _fan_out,
    "catch-up": _catch_up,
    "memory": _memory,
    "storage": _storage,
    "workers": _workers,
    "growth": _growth,
    "slow-disk": _slow_disk,
    "client": _client,
    "session": _session,
}
"""By the name that the command line knows; the order is that of a run."""


async def measure_rows(
    names: Sequence[str],
    plan: Plan,
    place: Place,
    say: Say,
    comparisons: list[Comparison],
    failures: dict[str, str],
) -> None:
    """Measure these rows. What is found is added to `comparisons` as it is found, and a row that broke off to
    `failures` with the reason: so all of it is there, too, when this is cancelled."""
    longest_seconds = _LONGEST_ROW_SECONDS + 90 * plan.minutes
    for name in names:
        try:
            async with asyncio.timeout(longest_seconds), aclosing(ROWS[name](plan, place, say)) as row:
                async for comparison in row:
                    comparisons.append(comparison)
                    say(bars_table([(name, comparison.figures)], place.subject))
        except TimeoutError:
            failures[name] = f"it took more than {longest_seconds:.0f} s"
        except Exception as exc:  # noqa: BLE001 - whatever breaks a row off, the others are worth having
            failures[name] = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        if name in failures:
            say(f"{name} was not measured: {failures[name]}")
        if place.cores is not None:
            os.sched_setaffinity(0, place.cores.load)
