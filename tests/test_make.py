"""`make run` as on a fresh machine: it makes its environment, serves, stops when told to, and keeps what it had."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.installed import UPSTREAM_BODY, free_port, read_to_the_end, running, tiny_upstream

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_make_run_stops_cleanly_on_sigterm_and_on_ctrl_c_and_keeps_its_streams(tmp_path: Path) -> None:
    command = ["make", "run", f"VENV={tmp_path / 'venv'}"]
    # ARGS as well: `make test ARGS=...` hands on what it was given itself.
    ours = ("STREAMKEEP_", "MAKE", "DATABASE_URL", "ARGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    data_dir = tmp_path / "data"
    environ = kept | {"STREAMKEEP_PORT": str(free_port()), "STREAMKEEP_DATA_DIR": str(data_dir)}

    with tiny_upstream() as upstream:
        environ["STREAMKEEP_ALLOW"] = f"{upstream}/**"
        with running(command, environ=environ, cwd=ROOT, logs=tmp_path) as proxy:
            made = httpx.post(f"{proxy.url}/api/chat/1", headers={"X-Proxy-Url": f"{upstream}/v1"}).json()
            assert read_to_the_end(made["streamUrl"]) == UPSTREAM_BODY
            # make ends by the signal that it passed on, and complains when the proxy's own exit code is not 0.
            assert proxy.terminate() == -signal.SIGTERM
    assert "***" not in proxy.output
    assert list(data_dir.rglob("postmaster.pid")) == []

    with running(command, environ=environ, cwd=ROOT, logs=tmp_path) as proxy:
        assert read_to_the_end(made["streamUrl"]) == UPSTREAM_BODY
        assert proxy.interrupt() == -signal.SIGINT
    assert "***" not in proxy.output
    assert list(data_dir.rglob("postmaster.pid")) == []
