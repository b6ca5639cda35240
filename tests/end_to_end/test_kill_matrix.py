"""Some cells of the kill matrix, small, and several at once, since they mostly wait: `make kill-matrix` runs all of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.end_to_end.kill_matrix import MOMENTS, Scale, Toll, run_cell

BEFORE, MIDDLE, LAST = MOMENTS
CELLS = [
    ("proxy SIGKILL", MIDDLE),
    ("network black hole", BEFORE),
    ("Postgres stopped", MIDDLE),
    ("proxy SIGTERM", BEFORE),
    ("Postgres SIGKILL", LAST),
    ("network RST", LAST),
]
AT_ONCE = 3
SMALL = Scale(instances=3, generations=9, outage_seconds=4.0)


@pytest.mark.slow
async def test_t12_a_fault_costs_no_byte_no_reader_and_no_second_call(tmp_path: Path) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def cell(number: int, fault: str, moment: str) -> tuple[str, str, Toll, int, set[str]]:
        async with places:
            toll, endings = await run_cell(fault, moment, SMALL, tmp_path / str(number))
        return fault, moment, toll, endings.total(), set(endings) - {"complete", "owner_lost"}

    found = await asyncio.gather(*(cell(number, *names) for number, names in enumerate(CELLS)))
    assert found == [(*names, Toll(), SMALL.generations, set()) for names in CELLS]
