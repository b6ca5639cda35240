"""`conformance`: the public suite from npm, against a server of ours that wants a key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.client.commands import Program
from tests.node import NODE, NPM
from tests.serving import serving

KEY = 32 * "a"


@pytest.fixture
def with_node(run: Program, tmp_path: Path) -> Program:
    # The wheel's own `npm` does not find what it needs.
    (tmp_path / "npm").write_text(f'#!/bin/sh\nexec "{NODE}" "{NPM}" "$@"\n')
    (tmp_path / "npm").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(NODE.parent), run.environ["PATH"]])
    return Program({**run.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path), "STREAMKEEP_KEY": KEY})


async def test_the_suite_is_installed_and_run_with_the_key(with_node: Program, tmp_path: Path) -> None:
    async with serving(MemoryStore(), keys=BootstrapKeys.parse([KEY]), long_poll_seconds=0.5) as proxy:
        ended = await with_node("conformance", proxy.url, "-t", "Basic Stream Operations", "--", "--reporter=tap-flat")
        assert ended.code == 0, ended.text + ended.err
        assert "should create a stream" in ended.text
        assert "not ok" not in ended.text
        assert "npm installs" in ended.err
        wrong = await with_node("conformance", proxy.url, "-t", "should create a stream", "--key", "b" * 32)
        assert (wrong.code, "npm installs" in wrong.err) == (1, False)
        assert KEY not in ended.text + ended.err + wrong.text + wrong.err


async def test_without_node_it_says_what_is_missing(run: Program, tmp_path: Path) -> None:
    here = Program({**run.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    for version, said in ((None, "needs Node.js"), ("v18.1.0", "newer Node.js than v18"), ("v22.1.0", "needs npm")):
        if version is not None:
            (tmp_path / "node").write_text(f"#!/bin/sh\necho {version}\n")
            (tmp_path / "node").chmod(0o755)
        ended = await here("conformance", "http://127.0.0.1:1")
        assert (ended.code, said in ended.err, ended.err.count("\n")) == (2, True, 1)
