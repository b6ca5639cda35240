"""The processes of a run: started on the right core, stopped, and measured by what the kernel says of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 60
_STOP_SECONDS = 20
_SHOWN_LOG_CHARACTERS = 2000
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class StartFailed(Exception):
    """A process did not come up; the message has the end of what it said."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes run: everything under test on one core, all that makes and takes the load on another."""

    servers: frozenset[int]
    load: frozenset[int]

    @classmethod
    def choose(cls) -> Cores | None:
        """Two of the cores that we may use; None where there are not two, or where a process cannot choose."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[:1]), frozenset(usable[1:2])) if len(usable) > 1 else None

    def shared(self) -> Cores:
        """All of them, for everybody."""
        return Cores(self.servers | self.load, self.servers | self.load)


@contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """Processes and threads that are started inside run on these cores, and so do theirs."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server of ours."""

    pid: int
    url: str


@asynccontextmanager
async def server(
    *command: str, log: Path, cores: frozenset[int] | None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Start a server that prints its base URL in its first line; terminated at the end. Its stderr goes to `log`.

    Raises:
        StartFailed: it ended, or said nothing, before that line.
    """
    with log.open("ab") as stderr, pinned(cores):
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **(environ or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                line = (await process.stdout.readline()).decode(errors="replace")
        found = re.search(r"http://[0-9.]+:[0-9]+", line)
        if found is None:
            raise StartFailed(f"{' '.join(command)} did not start: {line}{_end_of(log)}")
        yield Server(process.pid, found[0])
    finally:
        await _stop(process)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_SHOWN_LOG_CHARACTERS:]


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
                return


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    ticks: int


class ProcessTable:
    """Every process of the machine at one instant. `busy_seconds` is what all cores have worked since the machine
    started. Linux alone; elsewhere it is empty."""

    def __init__(self, processes: Mapping[int, _Process], busy_seconds: float) -> None:
        self.busy_seconds = busy_seconds
        self._processes = processes

    @classmethod
    def read(cls) -> ProcessTable:
        processes: dict[int, _Process] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir("/proc"):
                if name.isdigit() and (process := _read_process(name)) is not None:
                    processes[int(name)] = process
        return cls(processes, _busy_seconds())

    def tree(self, root: int) -> list[int]:
        """A process and all that descend from it, by their pids; [] when it is gone."""
        found = [root] if root in self._processes else []
        for pid in found:
            found += [child for child, process in self._processes.items() if process.parent == pid]
        return found

    def cpu_seconds(self, root: int) -> float:
        """What a process and its descendants have used so far, those that have ended and were reaped included."""
        return sum(self._processes[pid].ticks for pid in self.tree(root)) / _TICKS_PER_SECOND

    def memory_bytes(self, root: int) -> int:
        """What they occupy now, memory that several of them share counted once (proportional set size)."""
        return sum(_proportional_bytes(pid) for pid in self.tree(root))


def cpu_seconds(parties: Mapping[str, int]) -> dict[str, float]:
    """What each party has used so far, by its name; each stands for all that descend from its process."""
    table = ProcessTable.read()
    return {name: table.cpu_seconds(pid) for name, pid in parties.items()}


def memory_bytes(parties: Mapping[str, int]) -> dict[str, int]:
    """What each party occupies now, likewise."""
    table = ProcessTable.read()
    return {name: table.memory_bytes(pid) for name, pid in parties.items()}


def _read_process(name: str) -> _Process | None:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            # The command's name stands in parentheses and may hold anything, parentheses too.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    own_and_reaped = sum(map(int, fields[11:15]))
    return _Process(parent=int(fields[1]), ticks=own_and_reaped)


def _busy_seconds() -> float:
    with contextlib.suppress(FileNotFoundError), open("/proc/stat", "rb") as file:
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(
            int, file.readline().split()[1:9]
        )
        return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICKS_PER_SECOND
    return 0.0


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return 0
