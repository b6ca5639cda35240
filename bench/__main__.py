"""`python -m bench`: what streamkeep costs, beside a direct call, a bare pass-through and the open protocol's reference server. README.md explains it."""

from __future__ import annotations

import argparse
import asyncio
import gc
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
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from bench.machine import describe_machine
from bench.processes import Cores
from bench.relay import by_default
from bench.report import Comparison, Report, result_entry
from bench.rows import FOREIGN_ROWS, ROWS, Plan, measure_rows
from bench.systems import OURS, STREAM_SERVERS, SYSTEMS, Place, StreamServer
from bench.workload import MIN_CHUNK_BYTES

_COLLECTION_THRESHOLDS = (50_000, 20, 100)
_SHOWN_FAULTS = 10
_KEY = "STREAMKEEP_BENCH_KEY"
_QUICK = {
    "rows": ["relay", "create", "append", "fan-out"],
    "systems": ["pass-through-fast", OURS, "reference"],
    "generations": [200],
    "create_seconds": 2,
    "append_seconds": 1.5,
    "readers": [200],
    "fan_out_seconds": 2,
}


def main() -> int:
    """Returns the exit code: 0, or 1 when a byte was lost or changed, or a row could not be measured."""
    chosen = _parse(sys.argv[1:])
    _raise_file_limit()
    cores = Cores.choose() if chosen.pin else None
    if cores is not None:
        os.sched_setaffinity(0, cores.load)
    elif chosen.pin:
        _say("not pinned: this takes Linux and two cores; load and servers compete for the same ones")
    # A full collection of all that was imported would count as the servers' delay.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    comparisons: list[Comparison] = []
    failures: dict[str, str] = {}
    is_interrupted = False
    with tempfile.TemporaryDirectory(prefix="streamkeep-bench-", dir=chosen.data_dir) as name:
        machine = describe_machine(Path(name))
        place = Place(cores, Path(name), _foreign(chosen))
        try:
            uvloop.run(_measure(chosen, place, comparisons, failures))
        except (KeyboardInterrupt, asyncio.CancelledError):
            _say("bench: interrupted; this is what was found")
            is_interrupted = True
    command = f"python -m bench {shlex.join(sys.argv[1:])}".rstrip()
    report = Report(place.subject, comparisons, failures, _notes(chosen))
    _say(f"\n{report.to_markdown()}")
    if chosen.append is not None:
        entry = result_entry(machine, report, date=started_at[:10], command=command, note=chosen.note)
        with chosen.append.open("a", encoding="utf-8") as results:
            results.write(f"\n{entry}\n")
    found = {
        "startedAt": started_at,
        "command": command,
        "machine": machine,
        "pinned": cores is not None,
        "runs": [comparison.to_json() for comparison in comparisons],
        "failures": failures,
        "faults": report.faults,
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))
    _say_faults(report.faults)
    return 130 if is_interrupted else 1 if report.faults or failures else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure streamkeep beside a direct call, a bare pass-through and the reference server. Progress and tables go to "
        "stderr, the result as JSON to stdout. Ends with 1 when a byte was lost or changed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--url",
        help=f"measure this server of the open protocol instead of ours, with a key in {_KEY} where it wants one",
    )
    parser.add_argument("--quick", action="store_true", help="the main rows, each as short as it can be")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="ROW",
        help=f"what to measure: {', '.join(ROWS)}",
    )
    parser.add_argument(
        "--generations",
        type=int,
        nargs="+",
        default=[200, 500, 1000],
        metavar="N",
        help="streams at once; one run for each number",
    )
    parser.add_argument("--rate", type=float, default=30, help="chunks per second of each stream")
    parser.add_argument("--chunk-bytes", type=int, default=200, help=f"size of a chunk, {MIN_CHUNK_BYTES} at least")
    parser.add_argument("--seconds", type=float, help="length of each stream; if not given, the ramp and 5 s")
    parser.add_argument("--ramp", type=float, help="seconds over which they are started; if not given, 60 a second")
    parser.add_argument("--create-seconds", type=float, default=5, help="for how long 200 a second are created")
    parser.add_argument("--writers", type=int, default=64, help="connections that append at once")
    parser.add_argument("--append-bytes", type=int, default=200, help="size of an append")
    parser.add_argument("--append-seconds", type=float, default=4, help="length of each measurement of appends")
    parser.add_argument(
        "--readers",
        type=int,
        nargs="+",
        default=[500, 1000],
        metavar="N",
        help="readers of one stream, a run for each number",
    )
    parser.add_argument("--fan-out-seconds", type=float, default=5, help="for how long each crowd reads")
    parser.add_argument(
        "--stored-rows", type=int, default=5_000_000, help="chunks that the store is filled with, for its growth"
    )
    parser.add_argument("--minutes", type=float, default=1, help="length of the long run, for growth with time")
    parser.add_argument("--session-events", type=int, default=50_000, help="length of the durable session")
    names = list(dict.fromkeys([*SYSTEMS, *STREAM_SERVERS]))
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
    if "--quick" in arguments:
        parser.set_defaults(**_QUICK)
    chosen = parser.parse_args(arguments)
    if chosen.url is not None and urlsplit(chosen.url).scheme not in ("http", "https"):
        parser.error("--url must begin with http:// or https://")
    if chosen.chunk_bytes < MIN_CHUNK_BYTES:
        parser.error(f"--chunk-bytes must be {MIN_CHUNK_BYTES} at least: a chunk carries a time and looks real")
    if min(chosen.generations) < 1 or min(chosen.rate, chosen.create_seconds) <= 0:
        parser.error("--generations, --rate and --create-seconds must be positive")
    if (chosen.seconds is not None and chosen.seconds <= 0) or (chosen.ramp is not None and chosen.ramp < 0):
        parser.error("--seconds must be positive, and --ramp not negative")
    if min(chosen.writers, chosen.append_bytes) < 1 or chosen.append_seconds <= 0:
        parser.error("--writers, --append-bytes and --append-seconds must be positive")
    return chosen


async def _measure(
    chosen: argparse.Namespace, place: Place, comparisons: list[Comparison], failures: dict[str, str]
) -> None:
    task = asyncio.current_task()
    assert task is not None
    # A polite kill stops the servers too, as Ctrl-C does.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rows = [name for name in chosen.rows if chosen.url is None or name in FOREIGN_ROWS]
    await measure_rows(rows, _plan(chosen), place, _say, comparisons, failures)


def _foreign(chosen: argparse.Namespace) -> StreamServer | None:
    if chosen.url is None:
        return None
    key = os.environ.get(_KEY)
    return StreamServer.foreign(chosen.url, {"Authorization": f"Bearer {key}"} if key else {})


def _notes(chosen: argparse.Namespace) -> list[str]:
    if chosen.url is None:
        return []
    rows = ", ".join(name for name in ROWS if name not in FOREIGN_ROWS)
    return [
        f"Not measured at a URL, since they need a proxy of ours: {rows}; nor processor time, since it is not seen."
    ]


def _plan(chosen: argparse.Namespace) -> Plan:
    workloads = [
        by_default(generations, rate=chosen.rate, chunk_bytes=chosen.chunk_bytes) for generations in chosen.generations
    ]
    if chosen.seconds is not None:
        workloads = [replace(workload, seconds=chosen.seconds) for workload in workloads]
    if chosen.ramp is not None:
        workloads = [replace(workload, ramp_seconds=chosen.ramp) for workload in workloads]
    return Plan(
        systems=chosen.systems,
        workloads=workloads,
        create_seconds=chosen.create_seconds,
        writers=chosen.writers,
        append_bytes=chosen.append_bytes,
        append_seconds=chosen.append_seconds,
        readers=chosen.readers,
        fan_out_seconds=chosen.fan_out_seconds,
        stored_rows=chosen.stored_rows,
        minutes=chosen.minutes,
        session_events=chosen.session_events,
    )


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
