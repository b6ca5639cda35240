"""`serve --dev`: the proxy in a process of its own, which is started anew whenever the source changes.

This process keeps the database and the listening socket. So a start takes no longer than the proxy's own, and what comes
meanwhile waits to be accepted.
"""

from __future__ import annotations

import logging
import multiprocessing
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from watchfiles import Change, run_process

import streamkeep
from streamkeep.proxy import logs
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.workers import stop_with

logger = logging.getLogger(__name__)

_GATHER_MILLISECONDS = 300
_STOP_SECONDS = 10


def serve_and_reload(settings: Settings, listener: socket.socket, *, announce: Callable[[], None]) -> int:
    """Serve on a bound socket until SIGINT or SIGTERM. Running generations end when the source changes."""
    listener.listen()
    announce()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    try:
        run_process(
            *streamkeep.__path__,
            target=_work,
            args=(replace(settings, drain_seconds=0.0), listener, theirs),
            callback=_tell,
            debounce=_GATHER_MILLISECONDS,
            sigint_timeout=_STOP_SECONDS,
        )
    finally:
        ours.close()
        theirs.close()
    return 0


def _work(settings: Settings, listener: socket.socket, pipe: Connection) -> None:
    """The life of one process; `pipe` ends with the one that started it."""
    from streamkeep.proxy.server import serve_proxy

    logs.configure(settings.log_level, settings.log_format)
    threading.Thread(target=stop_with, args=(pipe,), daemon=True).start()
    sys.exit(serve_proxy(settings, listener, announce=lambda: None))


def _tell(changes: set[tuple[Change, str]]) -> None:
    names = sorted({Path(path).name for _, path in changes})
    logger.warning("changed, and started anew: %s", ", ".join(names[:5]))
