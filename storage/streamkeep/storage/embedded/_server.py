"""EmbeddedPostgres: one Postgres for all processes that name the same data directory, for as long as one of them lives.

How it works. Each process runs a thread, the keeper, for as long as it uses the server. The keeper that holds the
directory's lock supervises: it starts Postgres as its own child, and starts it anew when it ends unasked. The keepers
of other processes wait for the lock, so that one of them takes over when the supervisor stops or dies.

Postgres dies with its supervisor, however that dies, because the kernel interrupts it then (see `_launch.py`). The
kernel watches the *thread* that started the child, and therefore every start, the first and the later ones, is made by
the keeper, and the keeper ends only with its process or after it has stopped Postgres. Whoever takes over meets a
server that is shutting down, waits for its end, and starts a new one at the same address.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from streamkeep.storage.embedded import _launch
from streamkeep.storage.embedded._directory import PORT, DataDirectory, SupervisorLock, make_root
from streamkeep.storage.embedded._errors import (
    DataDirectoryInUse,
    EmbeddedPostgresError,
    InitdbFailed,
    ServerFailed,
    WrongMajorVersion,
)
from streamkeep.storage.embedded._processes import server_processes
from streamkeep.storage.embedded._programs import Programs

logger = logging.getLogger(__name__)

_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_checkpoints": "off",
    "log_startup_progress_interval": "1s",
    # The defaults: initdb writes smaller ones for smaller segments.
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
}
# All commits wait while the log gets a new segment, filled with zeros and synced: with the default of 16 MiB that takes 55 ms.
_LOG_SEGMENT_MIB = 1
_WATCH_SECONDS = 0.1
_START_POLL_SECONDS = 0.01
_QUIET_START_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_FAST_SHUTDOWN_SECONDS, _IMMEDIATE_SHUTDOWN_SECONDS = 30.0, 5.0
_LOG_TAIL_BYTES = 4096


class EmbeddedPostgres:
    """A running Postgres in a data directory, reached through a Unix socket at `dsn`.

    Durability is Postgres's default: what is committed survives a crash, of this process, of Postgres and of the
    machine. When Postgres is killed it is back at the same address within a second or so; connections made before are
    lost. Linux and macOS; as root too.
    """

    def __init__(
        self,
        directory: DataDirectory,
        programs: Programs,
        settings: Mapping[str, str],
        report: Callable[[str], None],
        patience_seconds: float,
    ) -> None:
        """Use `start`."""
        self._directory = directory
        self._programs = programs
        self._settings = _SETTINGS | dict(settings)
        self._report = report
        self._patience_seconds = patience_seconds
        self._lock = SupervisorLock(directory.lock)
        self._process: subprocess.Popen[bytes] | None = None
        self._first_ready: Future[None] = Future()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="embedded-postgres", daemon=True)
        # A forked child has the lock's file open too, and would go on holding it after our death.
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
        patience_seconds: float = 300.0,
    ) -> Self:
        """Return when the server takes connections: started by us, or by another process that uses the same directory.

        Blocks. There is no limit while the server's log shows progress (the recovery of a large log takes its time);
        `on_progress` gets the log's lines when a start takes longer than a second, on another thread, and the logger
        gets them where it is None. `patience_seconds` is how long a start may say nothing. `bin_dir` is where
        `postgres` and `initdb` are, by default in the wheel; `settings` are configuration parameters of Postgres.

        Raises:
            EmbeddedPostgresError: in its kinds, each saying what to do. Nothing of ours is left running.
        """
        directory = make_root(data_dir)
        programs = Programs.ready_to_run(bin_dir, directory.root)
        report = on_progress if on_progress is not None else logger.info
        server = cls(directory, programs, settings or {}, report, patience_seconds)
        server._keeper.start()
        try:
            server._first_ready.result()
        except BaseException:
            server.stop()
            raise
        return server

    def __repr__(self) -> str:
        process = self._process
        if not self._keeper.is_alive():
            role = "stopped"
        elif not self._lock.is_held:
            role = "shared"
        else:
            role = f"pid {process.pid}" if process is not None else "restarting"
        return f"EmbeddedPostgres({str(self._directory.root)!r}, {role})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """Where to connect: a `postgresql://` URL, the same after every restart."""
        return self._directory.dsn

    @property
    def data_dir(self) -> Path:
        return self._directory.root

    @property
    def log_path(self) -> Path:
        """The server's log; the supervising process writes it, whichever that is."""
        return self._directory.log

    @property
    def postmaster_pid(self) -> int | None:
        """The pid of the server's first process; None while there is none."""
        pid = self._directory.postmaster_pid()
        return pid if pid in server_processes(self._directory.cluster) else None

    @property
    def is_ready(self) -> bool:
        """Whether the server takes connections now; it may be starting again."""
        return self._directory.is_ready()

    def stop(self) -> None:
        """Let go of the server, and shut it down where we supervise it. Does nothing the second time.

        Its clients are disconnected and everything is written; a server that is not done by then is ended less
        politely, which loses nothing either. Another process that shares the server starts it anew.
        """
        self._stopping.set()
        if self._keeper.ident is not None:
            self._keeper.join()

    def _forget(self) -> None:
        """In a forked child: the keeper thread is not here, and the server is the parent's."""
        self._stopping.set()
        self._lock.release()
        self._process = None

    # The keeper's own code, from here on.

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not self._stopping.is_set():
                began_at = time.monotonic()
                try:
                    if self._lock.try_acquire():
                        self._supervise()
                    else:
                        self._share()
                except (EmbeddedPostgresError, OSError) as exc:
                    self._lock.release()
                    if not self._first_ready.done():
                        self._first_ready.set_exception(_as_embedded_error(exc))
                        return
                    logger.error("the embedded Postgres does not run: %s", exc)
                if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            if self._lock.is_held:
                self._directory.remove_socket_directory()
            self._lock.release()
            if not self._first_ready.done():
                self._first_ready.set_exception(EmbeddedPostgresError("stopped before the server was ready"))

    def _supervise(self) -> None:
        """One life of the server, from its start to its end."""
        directory, owner = self._directory, self._programs.identity.files
        directory.clear_remains(patience_seconds=_FAST_SHUTDOWN_SECONDS)
        self._ensure_cluster()
        if owner is not None:
            directory.hand_cluster_over(owner)
        sockets = directory.prepare_socket_directory(owner)
        settings = self._settings | {"unix_socket_directories": str(sockets)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with directory.open_log() as log:
            said = _LogTail(directory.log)
            process = self._programs.spawn("postgres", "-D", str(directory.cluster), *arguments, output=log)
        self._process = process
        try:
            self._wait_until_ready(said, process)
            self._announce()
            while process.poll() is None and not self._stopping.wait(_WATCH_SECONDS):
                pass
        finally:
            status = process.poll()
            _shut_down(process)
            self._process = None
        if status is not None and not self._stopping.is_set():
            logger.warning("the embedded Postgres ended with status %d and is started again", status)

    def _share(self) -> None:
        """Somebody else supervises: wait until the server is ready, then for the lock to come free."""
        if not self._first_ready.done():
            self._wait_until_ready(_LogTail(self._directory.log))
            if self._lock.is_held:
                return
            self._announce()
        while not self._stopping.wait(_WATCH_SECONDS):
            if self._lock.try_acquire():
                return

    def _announce(self) -> None:
        if not self._stopping.is_set() and not self._first_ready.done():
            self._first_ready.set_result(None)

    def _ensure_cluster(self) -> None:
        programs, directory = self._programs, self._directory
        written_by = directory.version()
        if written_by is None:
            self._initialise()
        elif written_by != programs.major_version:
            raise WrongMajorVersion(directory.cluster, written_by=written_by, programs=programs.major_version)

    def _initialise(self) -> None:
        path = self._directory.new_cluster_path(self._programs.identity.files)
        process = self._programs.spawn(
            "initdb",
            *("-D", str(path), "-U", "postgres", "--auth-local=trust", "--auth-host=reject"),
            *("--locale=C", "-E", "UTF8", "--no-instructions", f"--wal-segsize={_LOG_SEGMENT_MIB}"),
            output=subprocess.PIPE,
        )
        said, _ = process.communicate(input=_launch.ENDED)
        if process.returncode != 0:
            log = said[-_LOG_TAIL_BYTES:].decode(errors="replace")
            raise InitdbFailed(f"initdb ended with status {process.returncode}", log)
        self._directory.install_cluster(path)

    def _wait_until_ready(self, said: _LogTail, process: subprocess.Popen[bytes] | None = None) -> None:
        """Wait for our own server, or, with no process, for that of whoever holds the lock.

        Raises:
            ServerFailed: our server ended, or stands still.
            DataDirectoryInUse: the holder of the lock brings no server up.
        """
        began_at = moved_at = time.monotonic()
        while not self._directory.is_ready(process.pid if process is not None else None):
            if process is not None and process.poll() is not None:
                raise ServerFailed(f"postgres ended with status {process.returncode}", said.all())
            if self._stopping.wait(_START_POLL_SECONDS) or (process is None and self._lock.try_acquire()):
                return
            now = time.monotonic()
            if now - began_at < _QUIET_START_SECONDS:
                continue
            for line in said.new_lines():
                self._report(line)
                moved_at = now
            if now - moved_at > self._patience_seconds:
                raise self._stands_still(said, process)

    def _stands_still(self, said: _LogTail, process: subprocess.Popen[bytes] | None) -> EmbeddedPostgresError:
        seconds = f"{self._patience_seconds:g} s"
        if process is not None:
            return ServerFailed(f"postgres is not ready and has said nothing for {seconds}", said.all())
        holder = self._lock.holder()
        return DataDirectoryInUse(
            f"process {holder} holds {self._directory.lock}, and its server has not come up for {seconds}: "
            "end that process, or choose another data directory",
            holder,
        )


class _LogTail:
    """What the server says from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = self._position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """The whole lines that were written since the last call."""
        said = self._read(self._position)
        whole = said[: said.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode(errors="replace").splitlines()

    def all(self) -> str:
        return self._read(self._start)[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def _read(self, position: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(position)
                return file.read()
        except FileNotFoundError:
            return b""


def _shut_down(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then an immediate one, then none at all: the last two cost a recovery at the next start."""
    for number, seconds in [
        (signal.SIGINT, _FAST_SHUTDOWN_SECONDS),
        (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS),
        (signal.SIGKILL, None),
    ]:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(_launch.ENDED)


def _as_embedded_error(exc: EmbeddedPostgresError | OSError) -> EmbeddedPostgresError:
    if isinstance(exc, EmbeddedPostgresError):
        return exc
    error = EmbeddedPostgresError(f"the data directory cannot be used: {exc}")
    error.__cause__ = exc
    return error
