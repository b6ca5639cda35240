"""A disk that is slow to sync, as a cloud's volumes are: the same load on Postgres as it is, and with every sync delayed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.appends import Writing, Written, write
from bench.bars import Figure, RowComparison
from bench.load import Outcome
from bench.relay import MOST_OF_IDEAL, by_default, creating, micros_per_chunk, relay_on
from bench.systems import OURS, Place, Site, StreamServer, site_at, streamkeep

_ROW = "slow disk"
_DELAY_MICROS = 1000
_SOURCE = Path(__file__).with_name("slow_sync.c")
_RELAYED = by_default(500)
_CREATED = creating(5)
_WRITING = Writing(64, 200, 4)
_WRITING_RUNS = 2
_MOST_ADDED_MS = 5.0
_LEAST_KEPT = 0.9
_PLAIN = "without the delay"


class NoCompiler(Exception):
    """There is no `cc`, or it cannot build a library here."""


@dataclass(frozen=True, slots=True)
class _Found:
    relayed: Outcome
    created: Outcome
    written: Written
    write_faults: list[str]


async def compare_slow_disk(place: Place, say: Callable[[str], None]) -> RowComparison:
    title = f"relay, create and append again, with {_DELAY_MICROS / 1000:g} ms added to every sync of Postgres; appends are the better of two runs"
    try:
        library = compile_library(place.folder)
    except NoCompiler as exc:
        return RowComparison(_ROW, title, [], left_out={"every figure": str(exc)})
    async with site_at(place) as site:
        say(f"{_ROW}: first without the delay, 40 s …")
        plain = await _measure(site, None)
        say(f"{_ROW}: with it, 40 s …")
        slow = await _measure(site, library)
    faults = [*plain.relayed.faults, *plain.created.faults, *plain.write_faults]
    faults += [*slow.relayed.faults, *slow.created.faults, *slow.write_faults]
    return RowComparison(_ROW, title, _figures(plain, slow), [f"{OURS}: {fault}" for fault in faults])


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


async def _measure(site: Site, library: Path | None) -> _Found:
    async with streamkeep(site, preload=library) as system:
        server = StreamServer(system.route.base_url, system.parties, "")
        relayed = await relay_on(system, _RELAYED, site, "relay")
        created = await relay_on(system, _CREATED, site, "create")
        await write(server, Writing(8, 200, 1), "warm-up")
        # One run differs from the next by as much as may be lost.
        crowds = [await write(server, _WRITING, f"crowd-{number}") for number in range(_WRITING_RUNS)]
        faults = [fault for crowd in crowds for fault in crowd.faults]
        return _Found(relayed, created, max(crowds, key=lambda crowd: crowd.appends_per_second), faults)


def _figures(plain: _Found, slow: _Found) -> list[Figure]:
    def figure(what: str, unit: str, bar: float | None, value: Callable[[_Found], float | None]) -> Figure:
        return Figure(what, unit, bar, value(slow), {_PLAIN: value(plain)}, is_floor=unit == "a second")

    def added(what: str, value: Callable[[_Found], float | None]) -> Figure:
        with_delay, without = value(slow), value(plain)
        more = None if with_delay is None or without is None else with_delay - without
        return Figure(f"{what}: added to p50", "ms", _MOST_ADDED_MS, more)

    def wall(what: str, ideal_seconds: float, value: Callable[[_Found], Outcome]) -> Figure:
        return figure(what, "of the ideal", MOST_OF_IDEAL, lambda found: value(found).took_seconds / ideal_seconds)

    relayed, created = f"relay, {_RELAYED.generations} generations", "create, 200 a second"
    crowd = f"append, {_WRITING.writers} connections"
    return [
        figure(f"{relayed}: processor time a chunk", "µs", 50, lambda found: micros_per_chunk(found.relayed)),
        added(relayed, lambda found: found.relayed.streaming_latency.percentile_ms(50)),
        figure(f"{relayed}: p99", "ms", None, lambda found: found.relayed.streaming_latency.percentile_ms(99)),
        wall(f"{relayed}: wall time", _RELAYED.expected_seconds, lambda found: found.relayed),
        added(created, lambda found: found.created.create.percentile_ms(50)),
        figure(f"{created}: p99", "ms", None, lambda found: found.created.create.percentile_ms(99)),
        wall(f"{created}: wall time", _CREATED.expected_seconds, lambda found: found.created),
        figure(
            crowd,
            "a second",
            round(_LEAST_KEPT * plain.written.appends_per_second),
            lambda found: found.written.appends_per_second,
        ),
        added(crowd, lambda found: found.written.latency.percentile_ms(50)),
    ]
