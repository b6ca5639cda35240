"""The examples of the adapters, as programs: killed in the middle of an answer, the next run has all of it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from streamkeep.client import astream
from tests import python_packages
from tests.serving import Proxy

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("resume_*.py"))
HOW_TOS = re.findall(r"```python\n(.*?)```", (ROOT / "adapters" / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_an_example_that_was_killed_is_run_again(
    proxy: Proxy, vendor: str, tmp_path: Path, example: Path
) -> None:
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    if example.stem == "resume_litellm":
        packages = await asyncio.to_thread(python_packages.folder, "litellm", python_packages.LITELLM)
        environ |= {"PYTHONPATH": str(packages), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(example), proxy.url, vendor), stdout=asyncio.subprocess.PIPE, env=environ
        )

    before = await number_of_calls(proxy, vendor)
    killed = await start()
    assert killed.stdout is not None
    heard = await killed.stdout.readexactly(20)
    killed.kill()
    heard += (await killed.communicate())[0]
    second = await start()
    answer = (await second.communicate())[0]
    assert second.returncode == 0
    assert answer.startswith(heard)
    assert len(answer) > len(heard)
    assert await number_of_calls(proxy, vendor) == before + 1


async def number_of_calls(proxy: Proxy, vendor: str) -> int:
    count: int = (await proxy.client.get(f"{vendor}/_fake/calls")).json()["count"]
    return count


def test_what_the_how_tos_show_is_what_the_examples_run() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py")]
    assert len(HOW_TOS) > len(EXAMPLES)
    for shown in HOW_TOS:
        assert any(shown in source or textwrap.indent(shown, "    ") in source for source in sources), shown


async def test_a_fastapi_app_answers_once_whoever_leaves(proxy: Proxy, session: str) -> None:
    app = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / "fastapi_producer.py"), proxy.url, "0"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert app.stderr is not None
    try:
        async with asyncio.timeout(30):
            while not (found := re.search(rb"http://[0-9.]+:[1-9][0-9]*", await app.stderr.readline())):
                pass
        url = found[0].decode()
        async with httpx.AsyncClient(base_url=url) as client:
            asked = {"id": session, "messages": [{"id": "1"}]}
            answers = [await client.post("/api/chat", json=asked) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [201, 200]
            where = answers[0].headers["Location"]
            async with astream(url + where) as left:
                first = await anext(left.iter_json())
            found_again = await client.get(f"/api/chat/{session}/stream")
            assert found_again.json() == {"streamUrl": where}
            async with astream(url + where) as response:
                chunks = [chunk async for chunk in response.iter_json()]
            assert first == chunks[0] == {"type": "start"}
            assert [chunk["type"] for chunk in chunks[-2:]] == ["text-end", "finish"]
            assert len(chunks) == 104
            assert (await client.get(f"/api/chat/{session}/stream")).status_code == 204
            assert (await client.post("/api/chat", json={"id": session, "messages": []})).status_code == 422
    finally:
        app.terminate()
        await app.communicate()
