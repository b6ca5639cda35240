"""Run an installed command that serves: wait until it is ready, and stop it as an operator would."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_WITHIN_SECONDS = 60.0
STOPPED_WITHIN_SECONDS = 30.0


@dataclass(slots=True)
class Running:
    """A running command: where it answers, what it printed, and how it ended once it was stopped."""

    url: str
    process: subprocess.Popen[bytes]
    output_path: Path
    exit_code: int | None = None

    @property
    def output(self) -> str:
        return self.output_path.read_text("utf-8", "replace")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"it ended by itself:\n{self.output}"
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        self.exit_code = self.process.wait(STOPPED_WITHIN_SECONDS)
        return self.exit_code


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str | Path], *, environ: Mapping[str, str], cwd: Path, logs: Path) -> Iterator[Running]:
    """Run a command from the moment its `/ready` answers 200; killed at the end of the block unless it was stopped.

    `environ` is its whole environment, with the port in `STREAMKEEP_PORT`; its output goes to a file in `logs`.
    """
    port = environ["STREAMKEEP_PORT"]
    output_path = logs / f"output-{port}.log"
    with output_path.open("wb") as output:
        process = subprocess.Popen(command, env=environ, cwd=cwd, stdout=output, stderr=subprocess.STDOUT)
    command_running = Running(f"http://127.0.0.1:{port}", process, output_path)
    try:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not command_running.is_ready():
            assert time.monotonic() < deadline, f"not ready in time:\n{command_running.output}"
            time.sleep(0.05)
        yield command_running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
