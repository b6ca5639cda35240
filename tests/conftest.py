"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("streamkeep.storage.contract", "streamkeep.storage.contract_streams")

from tests import database
from tests.serving import vendor_in_a_thread

# The same examples each time, however slow the machine; `--hypothesis-profile=default` looks for others.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", choices=["memory", "remote"], default="memory", help="what tests/proxy runs over")
    parser.addoption(
        "--sequential", type=int, default=50, help="calls that tests/client/test_leftovers.py makes in a row"
    )


def pytest_report_header() -> str:
    return f"database: {database.source()}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end, so nobody looks for garbage in it: not now, and not later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def blamed_for_what_it_left_open() -> Iterator[None]:
    """pytest keeps a failed test's frames until the next test runs, which then failed too for the sockets in them."""
    yield
    if hasattr(sys, "last_value"):
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        gc.collect()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def database_server() -> Iterator[str]:
    """The URL of the session's Postgres. The header of the run says which one it is."""
    with database.running_server() as url:
        yield url


@pytest.fixture(scope="session")
def _databases(database_server: str) -> Iterator[database.Databases]:
    databases = database.Databases(database_server)
    with databases.template():
        yield databases


@pytest.fixture
def database_url(_databases: database.Databases) -> Iterator[str]:
    """The URL of a migrated database that only this test uses; it is dropped afterwards, with its connections."""
    with _databases.fresh() as url:
        yield url


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[database.PrivateServer]:
    """A running Postgres of this test's own, to be killed, frozen, stopped and started: see `PrivateServer`."""
    server = database.PrivateServer(tmp_path / "private-server")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def vendor() -> Iterator[str]:
    """The fake vendor: its URL."""
    with vendor_in_a_thread() as url:
        yield url
