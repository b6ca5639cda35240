"""`streamkeep.adapters.litellm` with the real package, in a process of its own: it wants another `openai` than all others."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests import python_packages
from tests.serving import Proxy

ROOT = Path(__file__).parents[2]


async def test_streams_tools_and_errors_by_openais_and_anthropics_formats(
    proxy: Proxy, vendor: str, session: str
) -> None:
    packages = await asyncio.to_thread(python_packages.folder, "litellm", python_packages.LITELLM)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("litellm_calls.py")), proxy.url, vendor, session),
        env={**os.environ, "PYTHONPATH": str(packages), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    found = json.loads(output.splitlines()[-1])
    for provider in ("openai", "anthropic"):
        told = found[provider]
        begun, resumed = told["text"]["begun"], told["text"]["resumed"]
        assert resumed["text"].startswith(begun["text"])
        assert len(resumed["text"]) > 100
        tools = told["tools"]["resumed"]
        assert (tools["tool"], set(json.loads(tools["arguments"]))) == ("weather", {"city"})
        assert ["Truncated" in errors for errors in told["truncated"]] == [True, True]
        assert told["refused"][0] == "RateLimitError"
        assert told["unknown"][0] == "NothingToResume"
        awaited = found[f"async {provider}"]
        assert awaited["whole"] == awaited["resumed"]
        assert len(awaited["whole"]["text"]) > 100
