"""`python -m bench`: what streamkeep costs, beside a direct call, a bare pass-through and the open protocol's reference server. README.md explains it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvloop

from bench.appends import Writing, write
from bench.catch_up import compare_catch_up
from bench.clients import compare_clients
from bench.fan_out import compare_fan_out
from bench.load import Load, Outcome
from bench.machine import describe_machine
from bench.memory import compare_memory
from bench.processes import Cores, StartFailed
from bench.report import UPSTREAM, AppendComparison, AppendFigures, Comparison, RelayComparison, result_entry
from bench.storage import compare_storage
from bench.systems import SYSTEMS, Place, Site, StreamServer, System, measure_each, site_at
from bench.workload import MIN_CHUNK_BYTES, Workload

_WARM_UP = Workload(generations=10, rate=30, chunk_bytes=200, seconds=0.5, ramp_seconds=0.1)
# Few streams: with more than a hundred in all, the reference server answers 404 for some of those that it made.
_WARM_UP_WRITERS = 8
_WARM_UP_SECONDS = 1.0
_SHOWN_FAULTS = 10

RELAY = "relay"
APPEND = "append"
FAN_OUT = "fan-out"
CATCH_UP = "catch-up"
MEMORY = "memory"
STORAGE = "storage"
CLIENT = "client"
ROWS = (RELAY, APPEND, FAN_OUT, CATCH_UP, MEMORY, STORAGE, CLIENT)

_APPEND_SERVERS = ("streamkeep", "reference")


def main() -> int:
    """Returns the exit code: 0, or 1 when a byte was lost or changed, or a system did not start."""
    chosen = _parse(sys.argv[1:])
    _raise_file_limit()
    cores = Cores.choose() if chosen.pin else None
    if cores is not None:
        os.sched_setaffinity(0, {cores.load})
    elif chosen.pin:
        _say("not pinned: this takes Linux and two cores; load and servers compete for the same ones")
    started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with tempfile.TemporaryDirectory(prefix="streamkeep-bench-", dir=chosen.data_dir) as name:
        machine = describe_machine(Path(name))
        try:
            comparisons = uvloop.run(_compare_all(chosen, Place(cores, Path(name))))
        except StartFailed as exc:
            _say(f"bench: {exc}")
            return 1
        except (KeyboardInterrupt, asyncio.CancelledError):
            _say("bench: interrupted")
            return 130
    command = f"python -m bench {shlex.join(sys.argv[1:])}".rstrip()
    for comparison in comparisons:
        _say(f"\n{comparison.to_markdown()}")
    if chosen.append is not None:
        entry = result_entry(machine, date=started_at[:10], command=command, comparisons=comparisons, note=chosen.note)
        with chosen.append.open("a", encoding="utf-8") as results:
            results.write(f"\n{entry}\n")
    faults = [fault for comparison in comparisons for fault in comparison.faults]
    found = {
        "startedAt": started_at,
        "command": command,
        "machine": machine,
        "pinned": cores is not None,
        "runs": [comparison.to_json() for comparison in comparisons],
        "faults": faults,
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))
    _say_faults(faults)
    return 1 if faults else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure streamkeep beside a direct call, a bare pass-through and the reference server. Progress and tables go to "
        "stderr, the result as JSON to stdout. Ends with 1 when a byte was lost or changed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="what to measure")
    parser.add_argument(
        "--generations",
        type=int,
        nargs="+",
        default=[200],
        metavar="N",
        help="streams at once; one run for each number",
    )
    parser.add_argument("--rate", type=float, default=30, help="chunks per second of each stream")
    parser.add_argument("--chunk-bytes", type=int, default=200, help=f"size of a chunk, {MIN_CHUNK_BYTES} at least")
    parser.add_argument("--seconds", type=float, default=7, help="length of each stream")
    parser.add_argument("--ramp", type=float, default=2, help="seconds over which the streams are started")
    parser.add_argument("--writers", type=int, default=64, help="connections that append at once")
    parser.add_argument("--append-bytes", type=int, default=200, help="size of an append")
    parser.add_argument("--append-seconds", type=float, default=5, help="length of each measurement of appends")
    parser.add_argument(
        "--readers",
        type=int,
        nargs="+",
        default=[500, 1000],
        metavar="N",
        help="readers of one stream, a run for each number",
    )
    parser.add_argument("--fan-out-seconds", type=float, default=5, help="for how long each crowd reads")
    names = list(dict.fromkeys([*SYSTEMS, *_APPEND_SERVERS]))
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"which to measure: {', '.join(names)}",
    )
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="leave the choice of cores to the kernel")
    parser.add_argument("--data-dir", type=Path, help="where the database lies; a temporary folder if not given")
    parser.add_argument("--append", type=Path, metavar="FILE", help="also append an entry to a file like RESULTS.md")
    parser.add_argument("--note", help="what to remember about the entry, say that the machine was busy")
    chosen = parser.parse_args(arguments)
    if chosen.chunk_bytes < MIN_CHUNK_BYTES:
        parser.error(f"--chunk-bytes must be {MIN_CHUNK_BYTES} at least: a chunk carries a time and looks real")
    if min(chosen.generations) < 1 or chosen.rate <= 0 or chosen.seconds <= 0 or chosen.ramp < 0:
        parser.error("--generations, --rate and --seconds must be positive, and --ramp not negative")
    if min(chosen.writers, chosen.append_bytes) < 1 or chosen.append_seconds <= 0:
        parser.error("--writers, --append-bytes and --append-seconds must be positive")
    return chosen


async def _compare_all(chosen: argparse.Namespace, place: Place) -> list[Comparison]:
    task = asyncio.current_task()
    assert task is not None
    # A polite kill stops the servers too, as Ctrl-C does.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    comparisons: list[Comparison] = []
    if RELAY in chosen.rows and (names := [name for name in SYSTEMS if name in chosen.systems]):
        for generations in chosen.generations:
            workload = Workload(generations, chosen.rate, chosen.chunk_bytes, chosen.seconds, chosen.ramp)
            comparisons.append(await _compare_relays(workload, names, place))
    if APPEND in chosen.rows and (names := [name for name in _APPEND_SERVERS if name in chosen.systems]):
        comparisons.append(await _compare_appends(chosen, names, place))
    if FAN_OUT in chosen.rows:
        comparisons.append(await compare_fan_out(place, chosen.readers, chosen.fan_out_seconds, _say))
    rows = (
        (CATCH_UP, compare_catch_up),
        (MEMORY, compare_memory),
        (STORAGE, compare_storage),
        (CLIENT, compare_clients),
    )
    for row, compare in rows:
        if row in chosen.rows:
            comparisons.append(await compare(place, _say))
    return comparisons


async def _compare_relays(workload: Workload, names: Sequence[str], place: Place) -> RelayComparison:
    """The systems one after the other, each started afresh."""
    outcomes: dict[str, Outcome] = {}
    async with site_at(place) as site:
        for name in names:
            _say(f"{name}: {workload.generations} generations, {workload.expected_seconds:.0f} s …")
            async with SYSTEMS[name](site) as system:
                outcomes[name] = await _measure(system, workload, site)
    return RelayComparison(workload, outcomes)


async def _compare_appends(chosen: argparse.Namespace, names: Sequence[str], place: Place) -> AppendComparison:
    _say(f"append: {3 * chosen.append_seconds:.0f} s on each server …")
    servers, left_out = await measure_each(names, place, partial(_measure_appends, chosen))
    return AppendComparison(chosen.append_bytes, chosen.append_seconds, chosen.writers, servers, left_out)


async def _measure_appends(chosen: argparse.Namespace, stream_server: StreamServer) -> AppendFigures:
    alone = Writing(1, chosen.append_bytes, chosen.append_seconds)
    crowd = replace(alone, writers=chosen.writers)
    await write(stream_server, replace(alone, writers=_WARM_UP_WRITERS, seconds=_WARM_UP_SECONDS), "warm-up")
    return AppendFigures(
        stream_server.durability,
        plain=await write(stream_server, alone, "plain"),
        producer=await write(stream_server, replace(alone, has_producer=True), "producer"),
        crowd=await write(stream_server, crowd, "crowd"),
    )


async def _measure(system: System, workload: Workload, site: Site) -> Outcome:
    parties = {**system.parties, UPSTREAM: site.upstream.pid}

    async def run(workload: Workload, label: str) -> Outcome:
        return await Load(system.route, workload, upstream_url=site.upstream.url, parties=parties).run(label)

    # What a process does once only, it does now.
    await run(replace(_WARM_UP, chunk_bytes=workload.chunk_bytes), "warm-up")
    return await run(workload, "run")


def _raise_file_limit() -> None:
    """A thousand streams are four thousand sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say_faults(faults: Sequence[str]) -> None:
    for fault in faults[:_SHOWN_FAULTS]:
        _say(f"WRONG: {fault}")
    if len(faults) > _SHOWN_FAULTS:
        _say(f"WRONG: and {len(faults) - _SHOWN_FAULTS} more; the JSON has them all")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
