"""The data directory: what lies where, who may work on it, and how it is made fit for a start.

DATA_DIR/lock           held (flock) by the process that supervises; its content, a pid, is for people
DATA_DIR/postgres/      the cluster, as initdb made it
DATA_DIR/postgres.log   what the server says; the log before it is postgres.log.1
DATA_DIR/socket         where clients connect: a directory, or a link to a shorter path, for a socket's path is short
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode

from streamkeep.storage.embedded._errors import DataDirectoryInUse, EmbeddedPostgresError
from streamkeep.storage.embedded._processes import send, server_processes, wait_for_end

PORT = 5432
_SOCKET_NAME = f".s.PGSQL.{PORT}"
_MAX_SOCKET_PATH_BYTES = 103  # The smallest limit there is, without the final NUL.
_MAX_LOG_BYTES = 4 * 1024 * 1024
_STATUS_LINE = 7
_LAST_WORDS_SECONDS = 2.0


class SupervisorLock:
    """Held by one process for each data directory, and let go of by the kernel when that process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def try_acquire(self) -> bool:
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            if isinstance(exc, BlockingIOError):
                return False
            raise
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd
        return True

    def release(self) -> None:
        """Close our end; in a forked child this leaves the lock with the parent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> int | None:
        """The pid of whoever has the lock, or had it last."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths in one data directory, and the steps that prepare it. `root` has no symbolic link in it."""

    root: Path

    @property
    def cluster(self) -> Path:
        return self.root / "postgres"

    @property
    def log(self) -> Path:
        return self.root / "postgres.log"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def socket_directory(self) -> Path:
        """Where clients look for the socket. Settled by the supervisor, the same for all, and kept over restarts."""
        return (self.root / "socket").resolve()

    @property
    def dsn(self) -> str:
        where = urlencode({"host": str(self.socket_directory), "port": PORT})
        return f"postgresql://postgres@/postgres?{where}"

    def version(self) -> str | None:
        """The major version that wrote the cluster; None where there is no cluster yet."""
        try:
            return (self.cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return None

    def postmaster_pid(self) -> int | None:
        """What the postmaster's lock file says, which may be long out of date."""
        lines = self._postmaster_lines()
        return int(lines[0]) if lines and lines[0].strip().isdecimal() else None

    def is_ready(self, postmaster: int | None = None) -> bool:
        """Whether a server (this one, when a pid is given) says that it is ready, and takes connections."""
        lines = self._postmaster_lines()
        if len(lines) <= _STATUS_LINE or lines[_STATUS_LINE].strip() != "ready":
            return False
        if postmaster is not None and self.postmaster_pid() != postmaster:
            return False
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket_directory / _SOCKET_NAME))
            except OSError:
                return False
        return True

    def _postmaster_lines(self) -> list[str]:
        try:
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    # Steps before a start; only the holder of the lock takes them.

    def clear_remains(self, *, patience_seconds: float) -> None:
        """End what an earlier supervisor left behind, and remove the lock files that it left.

        Whoever runs here has no supervisor, for that one would hold the lock. It is not adopted: nobody would learn of
        its end, and its own parent's death may be stopping it at this moment.

        The lock files are judged by the processes that there are, not by the pids in them: such a pid may belong to
        another program by now, or to a zombie, and Postgres would take either for a running server.

        Raises:
            DataDirectoryInUse: a server runs here that does not end.
        """
        postmaster = self.postmaster_pid()
        if postmaster is not None and postmaster in server_processes(self.cluster):
            # The postmaster alone: to its checkpointer SIGINT means something else.
            send(postmaster, signal.SIGINT)
            if wait_for_end(self.cluster, patience_seconds=patience_seconds):
                send(postmaster, signal.SIGQUIT)
        # Without a postmaster the others end by themselves, unless they are busy with what can no longer be committed.
        for pid in wait_for_end(self.cluster, patience_seconds=_LAST_WORDS_SECONDS):
            send(pid, signal.SIGKILL)
        for pid in wait_for_end(self.cluster, patience_seconds=_LAST_WORDS_SECONDS):
            raise DataDirectoryInUse(f"a Postgres server (pid {pid}) works on {self.cluster} and cannot be ended", pid)
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        for leftover in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
            (self.socket_directory / leftover).unlink(missing_ok=True)

    def new_cluster_path(self, owner: tuple[int, int] | None) -> Path:
        """An empty directory for initdb, to be renamed when it is done: one that is killed leaves no half cluster.

        Its name is new each time, for the initdb of a killed parent may still be cleaning up its own.
        """
        self._remove_unfinished()
        path = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.root))
        if owner is not None:
            os.chown(path, *owner)
        return path

    def install_cluster(self, path: Path) -> None:
        os.rename(path, self.cluster)
        root = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(root)
        finally:
            os.close(root)
        # What a dying initdb was still at work in could not be removed before.
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for leftover in self.root.glob("postgres.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def hand_cluster_over(self, owner: tuple[int, int]) -> None:
        """Give the cluster to another account, where the last start ran under another."""
        status = self.cluster.stat()
        if (status.st_uid, status.st_gid) == owner:
            return
        # The cluster's own directory comes last: a hand-over that was cut short is taken up again.
        for folder, _, files in os.walk(self.cluster, topdown=False):
            for path in [*(os.path.join(folder, name) for name in files), folder]:
                os.chown(path, *owner, follow_symlinks=False)

    def prepare_socket_directory(self, owner: tuple[int, int] | None) -> Path:
        """Make the directory of the socket, which only its owner may enter: that is all the authentication there is."""
        link = self.root / "socket"
        if not link.is_symlink() and _fits_a_socket(link):
            directory = link
            directory.mkdir(mode=0o700, exist_ok=True)
        else:
            directory = self._short_directory(link, owner)
        directory.chmod(0o700)
        if owner is not None:
            os.chown(directory, *owner)
        return directory

    def _short_directory(self, link: Path, owner: tuple[int, int] | None) -> Path:
        """A private directory with a short path, always the same one while it can be had. `link` remembers it, since
        processes with another environment would not find the same temporary directory."""
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        linked = [Path(os.readlink(link))] if link.is_symlink() else []
        for directory in [*linked, *(Path(parent, f"streamkeep-{digest}") for parent in _temporary_directories())]:
            if _fits_a_socket(directory) and _make_private(directory, owner):
                break
        else:
            directory = Path(tempfile.mkdtemp(prefix="streamkeep-", dir="/tmp"))
        if [directory] != linked:
            link.unlink(missing_ok=True)
            link.symlink_to(directory)
        return directory

    def remove_socket_directory(self) -> None:
        """Leave nothing outside the data directory. The link stays: the next start takes the same path."""
        if (self.root / "socket").is_symlink():
            with contextlib.suppress(OSError):
                self.socket_directory.rmdir()

    def open_log(self) -> BinaryIO:
        """The server's log, for appending; a long one is put aside first."""
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_name("postgres.log.1"))
        return open(self.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def make_root(path: Path) -> DataDirectory:
    """The data directory at a path; made, for its owner alone, where there is none."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return DataDirectory(path.resolve(strict=True))
    except OSError as exc:
        raise EmbeddedPostgresError(f"the data directory {path} cannot be used: {exc}") from exc


def _temporary_directories() -> list[str]:
    """Not the runtime directory of a login: it goes when its user logs out, and a server may stay."""
    return [tempfile.gettempdir(), "/tmp"]


def _fits_a_socket(directory: Path) -> bool:
    return len(os.fsencode(directory / _SOCKET_NAME)) <= _MAX_SOCKET_PATH_BYTES


def _make_private(directory: Path, owner: tuple[int, int] | None) -> bool:
    """Whether the directory is there now and nobody else's: in a shared place anybody may have made it first."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError:
        return False
    is_ours = status.st_uid in {os.geteuid(), owner[0] if owner else os.geteuid()}
    return stat.S_ISDIR(status.st_mode) and is_ours and not status.st_mode & 0o077
