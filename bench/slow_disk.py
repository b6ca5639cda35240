"""A disk that is slow to sync, as a cloud's volumes are: the same load on Postgres as it is, and with every sync delayed.

Both run all the time, on the same core, since a shared machine is twice as fast in one minute as in the next. What the delay
adds to a relay or to creating is found with both at once, and so few generations that nobody waits for the core. Writers who
send as fast as they are answered always fill it, so appends are sent to one at a time, in turns.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from bench.appends import LEAST_APPENDS_PER_SECOND, Writing, Written, write
from bench.bars import Figure, RowComparison
from bench.histogram import Histogram
from bench.load import Outcome
from bench.relay import MOST_OF_IDEAL, by_default, creating, micros_per_chunk, relay_on
from bench.systems import OURS, Place, Site, StreamServer, System, site_at, streamkeep
from bench.workload import Workload

_ROW = "slow disk"
_DELAY_MICROS = 1000
_SOURCE = Path(__file__).with_name("slow_sync.c")
_RELAYED = by_default(500)
_CREATED = creating(5)
_RELAYED_ON_EACH = by_default(100)
_CREATED_ON_EACH = replace(_CREATED, generations=_CREATED.generations // 4)
_WRITING = Writing(64, 200, 0.5)
_WRITING_PAIRS = 14
_MERGED_SECONDS = 15
_MOST_ADDED_MS = 5.0
_LEAST_KEPT = 0.9
_PLAIN = "without the delay"

T = TypeVar("T", Outcome, Written)


class NoCompiler(Exception):
    """There is no `cc`, or it cannot build a library here."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """One of the two, with an upstream of its own. Its name stands in the ids of what it is asked for."""

    name: str
    system: System
    site: Site

    async def relay(self, workload: Workload, label: str) -> Outcome:
        return await relay_on(self.system, workload, self.site, f"{label}-{self.name}")

    async def write(self, writing: Writing, label: str) -> Written:
        server = StreamServer(self.system.route.base_url, self.system.parties, "")
        return await write(server, writing, f"{label}-{self.name}")


@dataclass(frozen=True, slots=True)
class _Pair(Generic[T]):
    """What was found without the delay and with it, at once or one right after the other."""

    plain: T
    slow: T

    @property
    def faults(self) -> list[str]:
        return [*self.plain.faults, *self.slow.faults]


@dataclass(frozen=True, slots=True)
class _Found:
    """`created` and `relayed` are those of the slow one by itself."""

    written: list[_Pair[Written]]
    created: Outcome
    both_created: _Pair[Outcome]
    both_relayed: _Pair[Outcome]
    relayed: Outcome

    @property
    def faults(self) -> list[str]:
        written = [fault for pair in self.written for fault in pair.faults]
        alone, both = (self.created, self.relayed), (self.both_created, self.both_relayed)
        generated = [fault for runs in (alone, both) for run in runs for fault in run.faults]
        return [f"{OURS}: {fault}" for fault in (*written, *generated)]


async def compare_slow_disk(place: Place, say: Callable[[str], None]) -> RowComparison:
    title = (
        f"append, create and relay again, with {_DELAY_MICROS / 1000:g} ms added to every sync of Postgres, beside a Postgres without that: "
        f"what it adds to create and relay by running both at once, and to appends as the median of {_WRITING_PAIRS} pairs of runs"
    )
    try:
        library = compile_library(place.folder)
    except NoCompiler as exc:
        return RowComparison(_ROW, title, [], left_out={"every figure": str(exc)})
    async with _started(place, "plain", None) as plain, _started(place, "slow", library) as slow:
        found = await _measure(plain, slow, say)
    return RowComparison(_ROW, title, _figures(found), found.faults)


def compile_library(folder: Path) -> Path:
    """The library that Postgres is to preload. Raises: NoCompiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("there is no C compiler (cc)")
    library = folder / "slow_sync.so"
    options = ("-shared", "-fPIC", "-O2", f"-DDELAY_MICROS={_DELAY_MICROS}")
    built = subprocess.run(
        [compiler, *options, "-o", str(library), str(_SOURCE), "-ldl"], capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise NoCompiler(f"{compiler} cannot build it: {built.stderr.strip()}")
    return library


@asynccontextmanager
async def _started(place: Place, name: str, library: Path | None) -> AsyncIterator[_Subject]:
    async with site_at(place) as site, streamkeep(site, preload=library) as system:
        yield _Subject(name, system, site)


async def _measure(plain: _Subject, slow: _Subject, say: Callable[[str], None]) -> _Found:
    async def at_once(workload: Workload, label: str) -> _Pair[Outcome]:
        return _Pair(*await asyncio.gather(plain.relay(workload, label), slow.relay(workload, label)))

    say(f"{_ROW}: append in turns, create with the delay, 30 s …")
    written = await _write_in_turns(plain, slow)
    created = await slow.relay(_CREATED, "create")
    say(f"{_ROW}: create and relay on both, relay with the delay, 45 s …")
    both_created = await at_once(_CREATED_ON_EACH, "create-on-both")
    both_relayed = await at_once(_RELAYED_ON_EACH, "relay-on-both")
    # What has ended is merged some ten seconds later. That is to be over when all stream.
    await asyncio.sleep(_MERGED_SECONDS - _RELAYED.ramp_seconds)
    relayed = await slow.relay(_RELAYED, "relay")
    return _Found(written, created, both_created, both_relayed, relayed)


async def _write_in_turns(plain: _Subject, slow: _Subject) -> list[_Pair[Written]]:
    """Who goes first changes from one pair to the next."""
    for subject in (plain, slow):
        await subject.write(Writing(8, 200, 1), "warm-up")
    pairs = []
    for number in range(_WRITING_PAIRS):
        turns = (plain, slow) if number % 2 == 0 else (slow, plain)
        written = {subject.name: await subject.write(_WRITING, f"crowd-{number}") for subject in turns}
        pairs.append(_Pair(written[plain.name], written[slow.name]))
    return pairs


def _figures(found: _Found) -> list[Figure]:
    relayed, created = f"relay, {_RELAYED.generations} generations", "create, 200 a second"
    relayed_on_each = f"relay, {_RELAYED_ON_EACH.generations} generations on each"
    created_on_each = "create, 50 a second on each"
    crowd = f"append, {_WRITING.writers} connections"
    plain_rate = _median(pair.plain.appends_per_second for pair in found.written)
    slow_rate = _median(pair.slow.appends_per_second for pair in found.written)
    return [
        Figure(f"{relayed}: processor time a chunk", "µs", 50, micros_per_chunk(found.relayed)),
        Figure(f"{relayed}: p50", "ms", None, found.relayed.streaming_latency.percentile_ms(50)),
        Figure(f"{relayed}: p99", "ms", None, found.relayed.streaming_latency.percentile_ms(99)),
        _wall(relayed, _RELAYED, found.relayed),
        _added(relayed_on_each, [found.both_relayed], lambda run: run.streaming_latency),
        Figure(f"{created}: p50", "ms", None, found.created.create.percentile_ms(50)),
        Figure(f"{created}: p99", "ms", None, found.created.create.percentile_ms(99)),
        _wall(created, _CREATED, found.created),
        _added(created_on_each, [found.both_created], lambda run: run.create),
        Figure(crowd, "a second", LEAST_APPENDS_PER_SECOND, slow_rate, {_PLAIN: plain_rate}, is_floor=True),
        Figure(f"{crowd}: kept", "of those without the delay", _LEAST_KEPT, _kept(found.written), is_floor=True),
        _added(crowd, found.written, lambda run: run.latency),
    ]


def _wall(what: str, workload: Workload, outcome: Outcome) -> Figure:
    times = outcome.took_seconds / workload.expected_seconds
    return Figure(f"{what}: wall time", "of the ideal", MOST_OF_IDEAL, times)


def _added(what: str, pairs: Iterable[_Pair[T]], latency: Callable[[T], Histogram]) -> Figure:
    p50s = [(latency(pair.plain).percentile_ms(50), latency(pair.slow).percentile_ms(50)) for pair in pairs]
    added = _median(slow - plain for plain, slow in p50s if plain is not None and slow is not None)
    return Figure(f"{what}: added to p50", "ms", _MOST_ADDED_MS, added)


def _kept(pairs: Iterable[_Pair[Written]]) -> float | None:
    rates = [(pair.plain.appends_per_second, pair.slow.appends_per_second) for pair in pairs]
    return _median(slow / plain for plain, slow in rates if plain)


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None
