"""The benchmark runs, finds every byte, and keeps what it found when a part of it breaks off. Nothing here looks at a time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bench.appends import Writing
from bench.bars import Figure, bars_table
from bench.growth import fill
from bench.relay import by_default, relay_on
from bench.report import Comparison, Report
from bench.rows import Plan, measure_rows
from bench.slow_disk import compare_slow_disk, compile_library
from bench.systems import POSTGRES, Place, StreamServer, System, site_at, streamkeep
from bench.workload import Workload
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.installed import free_port
from tests.serving import serving

KEY = "bench-key-0123456789ab"
ROOT = Path(__file__).parents[2]
TINY = Plan(
    systems=("streamkeep",),
    workloads=[by_default(3)],
    create_seconds=0.1,
    writers=2,
    append_bytes=200,
    append_seconds=0.2,
    readers=[3],
    fan_out_seconds=0.2,
    stored_rows=1000,
    minutes=0.1,
    session_events=2000,
)


async def bench(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, dict[str, Any], str]:
    """Run the command: its exit code, what it found, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "--no-pin", *arguments),
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        found, said = await process.communicate()
    assert process.returncode is not None
    assert found, said.decode()
    return process.returncode, json.loads(found), said.decode()


async def test_a_run_measures_rows_side_by_side_and_keeps_one_table(tmp_path: Path) -> None:
    results = tmp_path / "results.md"
    status, found, said = await bench(
        *("--rows", "relay", "--systems", "pass-through-fast", "sketch", "streamkeep", "--append", str(results)),
        *("--generations", "3", "--seconds", "1", "--ramp", "0.2"),
    )

    assert (status, found["faults"], found["failures"]) == (0, [], {}), said
    (relayed,) = found["runs"]
    assert relayed["measured"] == "relay"
    assert {name: system["chunks"] for name, system in relayed["systems"].items()} == {
        "pass-through-fast": 90,
        "sketch": 90,
        "streamkeep": 90,
    }
    table = results.read_text()
    assert len(relayed["figures"]) > 3
    assert all(f"| {figure['what']}" in table for figure in relayed["figures"])
    assert "Every stream came whole." in table


async def test_any_server_can_be_measured_with_a_key_and_keeps_no_stream() -> None:
    store = MemoryStore()
    async with serving(store, keys=BootstrapKeys.parse([f"acme={KEY}"])) as proxy:
        status, found, said = await bench(
            *("--url", proxy.url, "--writers", "2", "--append-seconds", "0.2"),
            *("--rows", "append", "fan-out", "relay", "--readers", "3", "--fan-out-seconds", "0.2"),
            environ={"STREAMKEEP_BENCH_KEY": KEY},
        )
        left = await store.list_streams("acme", prefix="bench-")

    assert (status, found["faults"], found["failures"]) == (0, [], {}), said
    assert left == []
    assert KEY not in said
    assert all(
        figure["value"] for run in found["runs"] for figure in run["figures"] if "processor" not in figure["what"]
    )
    assert [run["measured"] for run in found["runs"]] == ["append", "fan-out"]
    assert "since they need a proxy of ours: relay" in said


async def test_a_session_is_opened_and_followed() -> None:
    status, found, said = await bench("--rows", "session", "--session-events", "2000")
    assert (status, found["faults"], found["failures"]) == (0, [], {}), said
    figures = {figure["what"]: figure for figure in found["runs"][0]["figures"]}
    assert figures["opened with what was kept, 20 events later: read"]["isMet"]
    assert figures["opened anew: read"]["value"] > 100


async def test_a_row_that_breaks_off_leaves_the_others(tmp_path: Path) -> None:
    nobody = StreamServer.foreign(f"http://127.0.0.1:{free_port()}", {})
    comparisons: list[Comparison] = []
    failures: dict[str, str] = {}
    said: list[str] = []

    await measure_rows(["fan-out", "append"], TINY, Place(None, tmp_path, nobody), said.append, comparisons, failures)

    assert list(failures) == ["fan-out"]
    assert [comparison.row for comparison in comparisons] == ["append"]
    assert "fan-out was not measured" in Report("nobody", comparisons, failures).bars()


async def test_the_store_is_filled_with_ended_generations(database_url: str) -> None:
    levels = await fill(database_url, 1010)

    assert levels >= 1
    database = await asyncpg.connect(database_url)
    try:
        assert await database.fetchval("select count(*) from streamkeep.chunks") == 1010
        assert await database.fetchval("select count(*) from streamkeep.generations where state = 'done'") == 10
        short = "select count(*) from streamkeep.streams as s where final_position <> (select sum(size) from streamkeep.chunks where stream_id = s.id)"
        assert await database.fetchval(short) == 0
    finally:
        await database.close()


def has_loaded(system: System, library: Path) -> bool:
    return library.name in Path(f"/proc/{system.parties[POSTGRES]}/maps").read_text()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
async def test_a_generation_is_recorded_by_a_postgres_whose_syncs_are_delayed(tmp_path: Path) -> None:
    library = compile_library(tmp_path)
    few = Workload(generations=2, rate=30, chunk_bytes=200, seconds=0.2, ramp_seconds=0)
    async with (
        site_at(Place(None, tmp_path)) as site,
        streamkeep(site, preload=library) as slow,
        streamkeep(site) as plain,
    ):
        outcome = await relay_on(slow, few, site)
        loaded = [has_loaded(system, library) for system in (slow, plain)]
    assert (outcome.faults, outcome.latency.count) == ([], 12)
    assert loaded == [True, False]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
async def test_a_slow_disk_is_measured_beside_one_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RELAYED", "_RELAYED_ON_EACH", "_CREATED", "_CREATED_ON_EACH"):
        monkeypatch.setattr(f"bench.slow_disk.{name}", Workload(3, 30, 200, 1, 0.1))
    monkeypatch.setattr("bench.slow_disk._WRITING", Writing(2, 200, 0.1))
    monkeypatch.setattr("bench.slow_disk._WRITING_PAIRS", 2)
    monkeypatch.setattr("bench.slow_disk._MERGED_SECONDS", 0)

    found = await compare_slow_disk(Place(None, tmp_path), lambda _: None)

    assert (found.faults, found.left_out) == ([], {})
    assert len(found.figures) == 12
    assert [figure.what for figure in found.figures if figure.value is None] == []


@pytest.mark.parametrize(
    ("figure", "is_met", "ratio"),
    [
        (Figure("p50", "ms", 2, 1.0, {"peer": 3.0}), True, 3.0),
        (Figure("p50", "ms", 2, 4.0, {"peer": 2.0}), False, 0.5),
        (Figure("appends", "a second", 100, 200.0, {"peer": 100.0}, is_floor=True), True, 2.0),
        (Figure("appends", "a second", 100, 50.0, {"peer": 100.0}, is_floor=True), False, 0.5),
        (Figure("p50", "ms", None, 4.0), None, None),
        (Figure("p50", "ms", 2, None, {"peer": 1.0}), None, None),
    ],
)
def test_a_figure_beside_its_bar_and_its_peers(figure: Figure, is_met: bool | None, ratio: float | None) -> None:
    assert (figure.is_met, figure.ratio("peer")) == (is_met, ratio)
    assert {True: "yes", False: "no ", None: "-  "}[is_met] in bars_table([("row", [figure])], "ours")
