"""Several worker processes on one port: `serve --workers N`.

Each worker is a whole proxy with a lease of its own; they share the database and nothing else, as instances on several
machines do. The kernel spreads connections over them (SO_REUSEPORT). This process serves nothing: it starts workers, starts
anew those that die, and passes signals on. A worker whose supervisor is gone stops by itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from streamkeep.proxy import logs
from streamkeep.proxy.settings import Settings

logger = logging.getLogger(__name__)

_READY = b"ready"
_RESTART_SECONDS = 1.0
# A worker that dies before it was ever ready is started anew only so often in a row.
_MAX_FAILED_STARTS = 3
_STOP_GRACE_SECONDS = 15.0
_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class _Worker:
    """A worker process and our end of its pipe: it writes once when it is ready, and stops when our end is closed."""

    process: SpawnProcess
    pipe: Connection
    is_ready: bool = False


class Supervisor:
    """Keeps `settings.workers` processes running on one address, which somebody has bound as shared."""

    def __init__(self, settings: Settings, address: tuple[str, int]) -> None:
        self._settings = settings
        self._address = address
        self._count = settings.workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._start_at = 0.0
        self._is_stopping = False
        self._has_failed = False

    def run(self, announce: Callable[[], None]) -> int:
        """Serve until SIGINT or SIGTERM; `announce` is called once all workers are ready. Returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note_signal)
        is_announced = False
        kill_at = float("inf")
        try:
            while not self._is_stopping or self._workers:
                self._fill_up()
                self._watch()
                if not is_announced and len(self._ready) == self._count:
                    is_announced = True
                    announce()
                if self._is_stopping:
                    kill_at = min(kill_at, time.monotonic() + self._settings.drain_seconds + _STOP_GRACE_SECONDS)
                if time.monotonic() > kill_at:
                    break
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
        return 1 if self._has_failed else 0

    @property
    def _ready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.is_ready]

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        """Passed on each time it is called: a second signal skips the waiting."""
        self._is_stopping = True
        for worker in self._workers:
            worker.process.terminate()

    def _fill_up(self) -> None:
        while not self._is_stopping and len(self._workers) < self._count and time.monotonic() >= self._start_at:
            self._workers.append(self._start())
            if self._is_stopping:  # The signal came in between.
                self._workers[-1].process.terminate()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self._settings, self._address, theirs))
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _watch(self) -> None:
        """Wait a moment for news of the workers, and act on it."""
        waited: list[Connection | int] = [worker.process.sentinel for worker in self._workers]
        waited += [worker.pipe for worker in self._workers if not worker.is_ready]
        news = wait(waited, timeout=_LOOK_SECONDS)
        for worker in list(self._workers):
            if worker.pipe in news and _is_message(worker.pipe):
                worker.is_ready = True
                self._failed_starts = 0
            if worker.process.sentinel in news:
                self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        if self._is_stopping:
            return
        logger.error("a worker died with exit code %s", worker.process.exitcode)
        if worker.is_ready:
            return
        self._failed_starts += 1
        self._start_at = time.monotonic() + _RESTART_SECONDS
        if self._failed_starts >= _MAX_FAILED_STARTS:
            logger.critical("workers do not start; giving up")
            self._has_failed = True
            self._stop()


def _work(settings: Settings, address: tuple[str, int], pipe: Connection) -> None:
    """The life of one worker process."""
    from streamkeep.proxy.server import bind, serve_proxy

    # Ctrl-C goes to the supervisor alone, which passes it on once.
    os.setpgid(0, 0)
    logs.configure(settings.log_level, settings.log_format)
    threading.Thread(target=stop_with, args=(pipe,), daemon=True).start()
    with bind(*address, is_shared=True) as listener:
        sys.exit(serve_proxy(settings, listener, announce=lambda: pipe.send_bytes(_READY)))


def stop_with(pipe: Connection) -> None:
    """Nothing ever comes from the supervisor; when its end closes, it is gone."""
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _is_message(pipe: Connection) -> bool:
    try:
        return pipe.recv_bytes() == _READY
    except (EOFError, OSError):
        return False
