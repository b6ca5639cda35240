"""`serve --dev`, on a copy of the source that is broken and mended."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import httpx

from streamkeep import proxy

ROOT = Path(__file__).parents[2]


async def says(url: str, expected: str) -> None:
    """Wait until `/health` answers with that."""
    async with asyncio.timeout(60), httpx.AsyncClient(timeout=2) as client:
        while True:
            try:
                if expected in (await client.get(f"{url}/health")).text:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


async def test_the_proxy_is_started_anew_when_its_source_changes(database_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "streamkeep" / "proxy"
    shutil.copytree(Path(proxy.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamkeep.proxy", "serve", "--dev", "--port", "0"),
        env={**os.environ, "PYTHONPATH": str(tmp_path), "DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            found = re.search(r"http://[0-9.]+:[0-9]+", (await process.stdout.readline()).decode())
        assert found is not None
        await says(found[0], '"ok"')
        source = copy / "routes" / "operations.py"
        text = source.read_text("utf-8")
        assert '"ok"' in text
        source.write_text("this is no Python")
        async with asyncio.timeout(60):
            while b"SyntaxError" not in await process.stderr.readline():
                pass
        source.write_text(text.replace('"ok"', '"mended"'))
        await says(found[0], '"mended"')
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
