"""Local stores: what every one of them does, and what a file adds to that."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streamkeep.client import GenerationRecord, GenerationStore, LocalStoreFailed, MemoryStore, RecordState, SQLiteStore

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PROXY = "http://127.0.0.1:4000"


def record(
    request_id: str = "r", session_id: str = "s", *, age_seconds: float = 0, position: int = 0
) -> GenerationRecord:
    at = NOW - timedelta(seconds=age_seconds)
    return GenerationRecord(PROXY, session_id, request_id, at, at, position=position)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "generations.sqlite3"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[GenerationStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    file = SQLiteStore(path)
    yield file
    file.close()


def test_a_record_comes_back_as_it_was_put(store: GenerationStore) -> None:
    one = replace(record(position=5), state=RecordState.LEFT, handed_position=9)
    store.put(one)
    assert store.records(PROXY, "s") == [one]


def test_a_record_takes_the_place_of_the_earlier_one(store: GenerationStore) -> None:
    store.put(record())
    store.put(record(position=7))
    assert store.records(PROXY, "s") == [record(position=7)]


def test_records_come_newest_creation_first(store: GenerationStore) -> None:
    store.put(record("b", age_seconds=1))
    store.put(record("a"))
    store.put(record("c"))
    store.put(record("a", position=3))
    assert [found.request_id for found in store.records(PROXY, "s")] == ["c", "a", "b"]


def test_sessions_and_proxies_are_kept_apart(store: GenerationStore) -> None:
    store.put(record())
    store.put(record(session_id="other"))
    store.put(replace(record(), proxy_url="http://elsewhere"))
    assert store.records(PROXY, "s") == [record()]


def test_removing_touches_one_record_and_may_be_repeated(store: GenerationStore) -> None:
    store.put(record("a"))
    store.put(record("b"))
    store.remove(PROXY, "s", "a")
    store.remove(PROXY, "s", "a")
    store.remove(PROXY, "nobody", "a")
    assert store.records(PROXY, "s") == [record("b")]


def test_threads_share_a_store(store: GenerationStore) -> None:
    def write(thread: int) -> None:
        for number in range(25):
            store.put(record(f"{thread}-{number}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.records(PROXY, "s")) == 100


def test_a_file_is_read_by_the_next_process(path: Path) -> None:
    for position in range(3):
        file = SQLiteStore(path)
        file.put(record(position=position))
        file.close()
    file = SQLiteStore(path)
    assert file.records(PROXY, "s") == [record(position=2)]
    file.close()
    assert file.records(PROXY, "s") == [record(position=2)], "a closed store opens again when it is used"
    file.close()


def test_a_file_and_what_lies_beside_it_are_readable_by_the_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        file = SQLiteStore(path)
        file.put(record())
    finally:
        os.umask(before)
    assert {name.name for name in path.parent.iterdir()} > {path.name}
    assert {stat.S_IMODE(name.stat().st_mode) for name in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    file.close()


def test_nothing_is_opened_before_it_is_needed(path: Path) -> None:
    SQLiteStore(path).close()
    assert not path.exists()


def test_records_that_nobody_touches_are_dropped(path: Path) -> None:
    file = SQLiteStore(path, keep_seconds=3600)
    file.put(replace(record("old"), updated_at=datetime.now(UTC) - timedelta(seconds=3700)))
    file.put(replace(record("new"), updated_at=datetime.now(UTC)))
    file.close()
    assert [found.request_id for found in file.records(PROXY, "s")] == ["new"]
    file.close()


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LocalStoreFailed, match="newer version"):
        SQLiteStore(path).records(PROXY, "s")


def test_a_file_that_is_no_database_is_named_in_the_error(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    with pytest.raises(LocalStoreFailed, match=r"generations\.sqlite3.*MemoryStore"):
        SQLiteStore(path).put(record())


WRITER = """
import sys
from datetime import UTC, datetime
from streamkeep.client import GenerationRecord, SQLiteStore

store, name = SQLiteStore(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for number in range(50):
    now = datetime.now(UTC)
    store.put(GenerationRecord("http://127.0.0.1:4000", "s", f"{name}-{number}", now, now))
    if number % 2:
        store.remove("http://127.0.0.1:4000", "s", f"{name}-{number}")
store.close()
"""


def test_processes_share_a_file_from_its_creation_on(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(name)], stdin=subprocess.PIPE)
        for name in range(4)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    file = SQLiteStore(path)
    found = {known.request_id for known in file.records("http://127.0.0.1:4000", "s")}
    file.close()
    assert found == {f"{name}-{number}" for name in range(4) for number in range(0, 50, 2)}


def test_a_child_process_after_a_fork_opens_a_connection_of_its_own(path: Path) -> None:
    code = (
        "import os, sys\n"
        "from tests.client.test_stores import PROXY, record\n"
        "from streamkeep.client import SQLiteStore\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "store.put(record('parent'))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    store.put(record('child'))\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "store.put(record('parent again'))\n"
        "assert {found.request_id for found in store.records(PROXY, 's')} == {'parent', 'child', 'parent again'}\n"
        "store.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=Path(__file__).parents[2])
