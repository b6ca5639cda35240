"""The public conformance suite of the open protocol, unmodified, against a served proxy: on Postgres and in memory.

Its time limit of 5 s per test stands, so the proxy's long-poll must wait for less than that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamkeep.storage import MemoryStore
from tests import node
from tests.serving import served_process, serving

EXPECTED_TESTS = 338
HOLD_SECONDS = 0.5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def suite() -> Path:
    return node.project(Path(__file__).parent)


async def test_every_test_passes_on_postgres(suite: Path, database_url: str) -> None:
    environ = {"STREAMKEEP_LONG_POLL_SECONDS": str(HOLD_SECONDS)}
    async with served_process(database_url=database_url, environ=environ) as proxy:
        await check(suite, proxy.url)


async def test_every_test_passes_in_memory(suite: Path) -> None:
    async with serving(MemoryStore(), long_poll_seconds=HOLD_SECONDS) as proxy:
        await check(suite, proxy.url)


async def check(suite: Path, url: str) -> None:
    """Run the suite; nothing may fail, be skipped, or be missing."""
    report = suite / "report.json"
    report.unlink(missing_ok=True)
    status, output = await node.run(
        suite,
        *("node_modules/vitest/vitest.mjs", "run", "--reporter=json", f"--outputFile={report}"),
        environ={"CONFORMANCE_TEST_URL": url, "CONFORMANCE_SUBSCRIPTIONS": "1"},
        timeout_seconds=600,
    )
    assert report.exists(), output
    tests = [test for file in json.loads(report.read_text("utf-8"))["testResults"] for test in file["assertionResults"]]
    failed = [
        f"{test['status']}: {test['fullName']}: {' '.join(test.get('failureMessages') or [])[:300]}"
        for test in tests
        if test["status"] != "passed"
    ]
    passed = len(tests) - len(failed)
    assert (failed, passed >= EXPECTED_TESTS, status) == ([], True, 0), f"{passed} passed\n" + "\n".join(failed)
