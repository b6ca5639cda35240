"""The browser's modules in Node, against a served proxy on Postgres: each file of tests is one run of `node --test`."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import AsyncIterator
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.postgres import PostgresStore
from tests import node
from tests.serving import serving

_HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def scripts() -> Path:
    home = node.project(_HERE)
    with as_file(files("streamkeep.adapters") / "browser") as modules:
        shutil.copytree(modules, home / "modules", dirs_exist_ok=True)
    return home


@pytest.fixture
async def environ(database_url: str) -> AsyncIterator[dict[str, str]]:
    """A proxy, and over the same database one that wants a key and whose URLs and connections last a second."""
    key = "a-key-for-the-tests"
    brief = {"url_seconds": 1.0, "sse_seconds": 0.5, "keys": BootstrapKeys.parse([key])}
    async with (
        serving(PostgresStore(database_url)) as proxy,
        serving(PostgresStore(database_url), **brief) as keyed,
    ):
        yield {"PROXY_URL": proxy.url, "KEYED_URL": keyed.url, "PROXY_KEY": key}


@pytest.mark.parametrize("script", sorted(path.name for path in _HERE.glob("*.test.mjs")))
async def test_modules_in_node(scripts: Path, environ: dict[str, str], script: str) -> None:
    arguments = ("--test", "--test-timeout=60000", script)
    status, output = await node.run(scripts, *arguments, environ=environ, timeout_seconds=120)
    assert status == 0, output


def test_the_fetch_client_is_small() -> None:
    module = (files("streamkeep.adapters") / "browser" / "streamkeep.js").read_bytes()
    assert len(gzip.compress(module, 9, mtime=0)) < 6000
