"""Local stores: what every one of them does, and what a file adds to that."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import redis

from streamkeep.client import GenerationRecord, LocalStoreFailed, MemoryStore, SQLiteStore
from streamkeep.client.postgres_store import PostgresStore
from streamkeep.client.redis_store import RedisStore
from streamkeep.client.store_contract import GenerationStoreContract

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


class TestMemoryStore(GenerationStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


class TestSQLiteStore(GenerationStoreContract):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[SQLiteStore]:
        with closing(SQLiteStore(path)) as store:
            yield store


class TestPostgresStore(GenerationStoreContract):
    @pytest.fixture
    def store(self, database_url: str) -> Iterator[PostgresStore]:
        with closing(PostgresStore(database_url)) as store:
            yield store

    def test_a_lost_connection_is_opened_again(self, database_url: str) -> None:
        with closing(PostgresStore(database_url)) as store, psycopg.connect(database_url) as other:
            store.put(record())
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            with pytest.raises(LocalStoreFailed):
                store.records(PROXY, "s")
            assert store.records(PROXY, "s") == [record()]

    def test_two_processes_may_make_the_table_at_once(self, database_url: str) -> None:
        stores = [PostgresStore(database_url) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda store: store.records(PROXY, "s"), stores)) == [[]] * 4
        for store in stores:
            store.close()

    def test_records_that_nobody_touches_are_dropped(self, database_url: str) -> None:
        with closing(PostgresStore(database_url)) as store:
            store.put(record("old", age_seconds=8 * 24 * 3600 + 200 * 365 * 24 * 3600))
        with closing(PostgresStore(database_url)) as store:
            assert store.records(PROXY, "s") == []

    @pytest.mark.parametrize("damage", ["state = 'odd'", "position = -1", "created_at = 'infinity'"])
    def test_a_damaged_row_is_a_failed_store(self, database_url: str, damage: str) -> None:
        with closing(PostgresStore(database_url)) as store, psycopg.connect(database_url, autocommit=True) as other:
            store.put(record())
            store.put(record(session_id="other"))
            other.execute(f"UPDATE streamkeep_generations SET {damage} WHERE session_id = 's'".encode())
            with pytest.raises(LocalStoreFailed):
                store.records(PROXY, "s")
            assert store.records(PROXY, "other") == [record(session_id="other")]

    def test_no_password_stands_in_an_error(self) -> None:
        with closing(PostgresStore("postgresql://me:secret@127.0.0.1:9/db")) as store:
            with pytest.raises(LocalStoreFailed) as caught:
                store.records(PROXY, "s")
            assert "secret" not in f"{caught.value!r} {caught.value.__cause__} {store!r}"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own, on a socket in a folder."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "s"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while not path.exists():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            server.terminate()


class TestRedisStore(GenerationStoreContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[RedisStore]:
        with closing(RedisStore(redis_url)) as store:
            yield store

    def test_a_session_expires_with_what_was_last_touched(self, redis_url: str, store: RedisStore) -> None:
        store.put(record(session_id="expires"))
        with closing(redis.Redis.from_url(redis_url)) as other:
            (key,) = other.scan_iter(match="streamkeep:expires *")
            assert 7 * 24 * 3600 - 60 < other.ttl(key) <= 7 * 24 * 3600 + 1

    def test_records_that_nobody_touches_are_not_shown(self, store: RedisStore) -> None:
        store.put(record("old", age_seconds=200 * 365 * 24 * 3600))
        assert store.records(PROXY, "s") == []

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"nonsense",
            b"\xff",
            b"[" * 100_000,
            b"[1, 2, 3, 4, 5]",
            b"{}",
            b"[]",
            b'["2030-01-01T00:00:00", "2030-01-01T00:00:00", "open", 0, 0]',
            b'["2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "odd", 0, 0]',
            b'["2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "open", -1, 0]',
            b'["2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "open", 1e300, "0"]',
            b'["2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "open", 0, ' + b"9" * 5000 + b"]",
        ],
    )
    def test_a_damaged_value_is_a_failed_store(self, redis_url: str, store: RedisStore, value: bytes) -> None:
        store.put(record(session_id="other"))
        with redis.Redis.from_url(redis_url) as other:
            other.hset(store._key(PROXY, "damaged"), "r", value)
        with pytest.raises(LocalStoreFailed):
            store.records(PROXY, "damaged")
        assert store.records(PROXY, "other") == [record(session_id="other")]

    def test_a_redis_that_is_away_is_a_failed_store(self, tmp_path: Path) -> None:
        with closing(RedisStore(f"unix://:secret@{tmp_path}/nobody")) as store:
            with pytest.raises(LocalStoreFailed) as caught:
                store.put(record())
            assert "secret" not in f"{caught.value!r} {store!r}"


@pytest.mark.parametrize("name", ["memory", "sqlite"])
def test_equal_times_are_told_apart_by_the_order_of_creation(name: str, path: Path) -> None:
    store: MemoryStore | SQLiteStore = MemoryStore() if name == "memory" else SQLiteStore(path)
    store.put(record("b", age_seconds=1))
    store.put(record("a"))
    store.put(record("c"))
    store.put(record("a", position=3))
    assert [found.request_id for found in store.records(PROXY, "s")] == ["c", "a", "b"]
    if isinstance(store, SQLiteStore):
        store.close()


@pytest.mark.parametrize("module", ["redis_store", "postgres_store"])
def test_a_store_whose_package_is_missing_says_what_to_install(module: str) -> None:
    package = {"redis_store": "redis", "postgres_store": "psycopg"}[module]
    program = f"import sys; sys.modules[{package!r}] = None\nimport streamkeep.client.{module}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"pip install 'streamkeep[{module.removesuffix('_store')}]'" in ended.stderr


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


@pytest.mark.parametrize(
    "damage", ["state = 'odd'", "position = -1", "position = 'x'", "created_at = 1e300", "created_at = x'ff'"]
)
def test_a_damaged_row_of_a_file_is_a_failed_store(path: Path, damage: str) -> None:
    with closing(SQLiteStore(path)) as store:
        store.put(record())
        store.put(record(session_id="other"))
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(f"UPDATE generations SET {damage} WHERE session_id = 's'")
        with pytest.raises(LocalStoreFailed):
            store.records(PROXY, "s")
        assert store.records(PROXY, "other") == [record(session_id="other")]


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
