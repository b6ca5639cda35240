"""The databases that tests run on: where the server comes from, fresh databases on it, and servers to be broken."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from streamkeep.storage.embedded import EmbeddedPostgres
from streamkeep.storage.embedded._processes import send, server_processes

URL_VARIABLE = "STREAMKEEP_TEST_DATABASE_URL"
_DOCKER_IMAGE = "postgres:18-alpine"
_DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"

# Tests outlive no power failure, and fsync is what they would wait for most.
_QUICK = {"fsync": "off", "full_page_writes": "off"}
# Each test's database is some eight hundred files, and they are made and deleted in memory in a fifth of the time.
_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 2 * 1024**3


def source() -> str:
    """Which server the tests use: the one that is named, else one in Docker, else an embedded one."""
    if os.environ.get(URL_VARIABLE):
        return f"the server in {URL_VARIABLE}"
    if _docker_answers():
        return f"{_DOCKER_IMAGE} in Docker"
    return "embedded Postgres"


@contextmanager
def running_server() -> Iterator[str]:
    """A server for the whole session, by its URL."""
    if url := os.environ.get(URL_VARIABLE):
        yield url
    elif _docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(_DOCKER_IMAGE, driver=None) as container:
            yield container.get_connection_url()
    else:
        with _quick_folder() as home, EmbeddedPostgres.start(home / "data", settings=_QUICK) as server:
            yield server.dsn


@contextmanager
def _quick_folder() -> Iterator[Path]:
    """A folder in memory, where there is enough of it, and else on the disk."""
    is_in_memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
    with tempfile.TemporaryDirectory(prefix="streamkeep-tests-", dir=_MEMORY if is_in_memory else None) as home:
        yield Path(home)


def _docker_answers() -> bool:
    host = urlsplit(os.environ.get("DOCKER_HOST") or _DEFAULT_DOCKER_HOST)
    try:
        if host.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(host.path)
        else:
            socket.create_connection((host.hostname, host.port or 2375), timeout=2).close()
    except OSError:
        return False
    return True


class Databases:
    """Makes databases on one server: a migrated one first, and copies of it, which take a few hundredths of a second."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._template = f"streamkeep_template_{uuid.uuid4().hex[:12]}"

    @contextmanager
    def template(self) -> Iterator[None]:
        from streamkeep.storage.postgres import migrate

        with psycopg.connect(self._server_url, autocommit=True) as self._server:
            self._execute(f"CREATE DATABASE {self._template}")
            try:
                asyncio.run(migrate(self._url(self._template)))
                yield
            finally:
                self._drop(self._template)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a migrated database that nobody else uses."""
        name = f"streamkeep_test_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _url(self, name: str) -> str:
        return urlsplit(self._server_url)._replace(path=f"/{name}").geturl()

    def _execute(self, statement: str) -> None:
        self._server.execute(statement.encode())


class PrivateServer:
    """A Postgres of one test's own, for the test to break. Its database is empty: `PostgresStore.open` migrates it.

    The URL stays the same whatever happens. All methods block: in async tests call them through
    `anyio.to_thread.run_sync(server.stop)`.

        stop(), start()      away for as long as the test likes; connections are refused meanwhile
        kill()               SIGKILL to the postmaster, as the OOM killer would; it is started again by itself, soon
        freeze(), thaw()     every process stopped by SIGSTOP: connections stay open and nothing answers
        wait_until_ready()   after kill(), until connections are taken again
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._server = self._start()

    def __repr__(self) -> str:
        return f"PrivateServer({self._server!r})"

    @property
    def url(self) -> str:
        return self._server.dsn

    def _start(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.start(self._data_dir, settings=_QUICK)

    def start(self) -> None:
        self._server.stop()
        self._server = self._start()

    def stop(self) -> None:
        self.thaw()
        self._server.stop()

    def kill(self) -> None:
        """Returns when the postmaster is dead."""
        pid = self._server.postmaster_pid
        assert pid is not None, f"{self} is not running"
        send(pid, signal.SIGKILL)
        _poll_until(lambda: self._server.postmaster_pid != pid)

    def wait_until_ready(self) -> None:
        _poll_until(lambda: self._server.is_ready)

    def freeze(self) -> None:
        postmaster = self._server.postmaster_pid
        assert postmaster is not None, f"{self} is not running"
        send(postmaster, signal.SIGSTOP)  # First, for it would start others.
        for pid in self._processes():
            send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            send(pid, signal.SIGCONT)

    def _processes(self) -> set[int]:
        return server_processes(self._server.data_dir / "postgres")


def _poll_until(condition: Callable[[], bool], *, deadline_seconds: float = 60) -> None:
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < deadline, "the server did not get there in time"
        time.sleep(0.01)
