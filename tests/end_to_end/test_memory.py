"""How far a process grows. The first test is the short form of `make memory`; `pytest -rP` shows what was measured."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.memory import MIB, SHORT, run, stuck_readers
from tests.serving import served_process
from tests.upstream import upstream, whole


@pytest.mark.slow
async def test_a_process_stays_within_its_budgets_though_nobody_takes_anything(tmp_path: Path) -> None:
    """On two busy cores the short form grew by 59 to 76 MiB of 93. Where nothing slows upstreams down, it grows by 235."""
    assert await run(SHORT, tmp_path)


async def test_readers_that_do_not_take_their_backlog_hold_little_of_it(database_url: str) -> None:
    """Here they held 50 KiB each."""
    body = random.Random(20).randbytes(8 * MIB)
    count = 100
    async with (
        served_process(database_url=database_url) as process,
        upstream(whole(body, "application/octet-stream", chunk_bytes=60_000)) as server,
    ):
        await process.create("chat", "1", server.url)
        await process.ending("chat", "1")
        assert await process.read_all("chat", "1") == body
        observed = psutil.Process(process.process.pid)
        before = observed.memory_info().rss
        with stuck_readers() as readers:
            for _ in range(count):
                readers.ask(process, "GET /stream/data?sessionId=chat&requestId=1&live=sse&encoding=base64")
            # By the time that another reader has it all, they have been sent what they do not take.
            for _ in range(2):
                assert await process.read_all("chat", "1") == body
            grown = observed.memory_info().rss - before
    assert grown < count * MIB // 2
