"""Every command and example of the README is run: on free ports instead of 4000 and 4001, and otherwise as it stands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.proxy.vendor import Plan
from streamkeep.storage.postgres import PostgresStore
from tests.serving import Proxy, serving, vendor_in_a_thread

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("[a-z]*/README.md")]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CURL = next(code for language, code in BLOCKS if language == "sh" and code.startswith("curl"))
CURL_SCHEMA = next(code for language, code in BLOCKS if language == "sh" and "Streamkeep-Schema" in code)
CURL_VIEW = next(code for language, code in BLOCKS if language == "sh" and "as=json" in code)
CURL_LIST = next(code for language, code in BLOCKS if language == "sh" and "/api/generations" in code)
CURL_DELETE = next(code for language, code in BLOCKS if language == "sh" and "-X DELETE" in code)
CURL_SESSION, CURL_AGENT = (code for language, code in BLOCKS if language == "sh" and "/v1/sessions" in code)
VARIABLES = set(re.findall(r"`(STREAMKEEP_[A-Z_]+|DATABASE_URL)`", README))


def examples(heading: str) -> list[str]:
    """The Python examples under a heading."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    return re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def example(heading: str) -> str:
    """The first Python example under a heading."""
    return examples(heading)[0]


@pytest.fixture
def vendor_url() -> Iterator[str]:
    with vendor_in_a_thread(Plan(tokens=90, rate=60)) as url:
        yield url


@pytest.fixture
async def proxy(database_url: str, vendor_url: str) -> AsyncIterator[Proxy]:
    upstreams = Upstreams.parse(f"demo={vendor_url}")
    async with serving(PostgresStore(database_url), upstreams=upstreams) as served:
        yield served


def here(text: str, proxy: Proxy, vendor_url: str) -> str:
    return text.replace("http://127.0.0.1:4000", proxy.url).replace("http://127.0.0.1:4001", vendor_url)


async def run(*command: str, home: Path, environ: Mapping[str, str] | None = None) -> str:
    env = {**os.environ, "XDG_STATE_HOME": str(home), **(environ or {})}
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_openai_example_runs(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    answer = await run(sys.executable, "-c", here(example("OpenAI in five lines"), proxy, vendor_url), home=tmp_path)
    assert len(answer) > 100


async def test_the_base_url_example_runs_and_is_called_once(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    text = here(example("Any SDK, by its base URL"), proxy, vendor_url)
    answers = [await run(sys.executable, "-c", text, home=tmp_path) for _ in range(2)]
    assert len(answers[0]) > 100
    assert answers[0].splitlines()[0] == answers[1].splitlines()[0]
    assert (await proxy.client.get(f"{vendor_url}/_fake/calls")).json()["count"] == 1


async def test_the_resume_example_goes_on_after_a_kill(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    program = here(example("Resume"), proxy, vendor_url)
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), env=env, stdout=asyncio.subprocess.PIPE
    )
    assert killed.stdout is not None
    before = await killed.stdout.readexactly(2000)
    killed.kill()
    before += await killed.stdout.read()
    await killed.wait()
    assert b"[DONE]" not in before
    after = await run(sys.executable, "-c", program, home=tmp_path)
    assert after.rstrip().endswith("data: [DONE]")
    whole = (await proxy.client.get("/api/my-story/active")).json()[0]["streamUrl"]
    body = (await proxy.client.get(whole)).text
    assert body.startswith(before.decode())
    assert body.endswith(after)
    assert len(before.decode()) + len(after) >= len(body)
    calls = (await proxy.client.get(f"{vendor_url}/_fake/calls")).json()
    assert calls["count"] == 1


async def test_the_messages_example_remembers_what_was_said(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    program = here(example("Messages"), proxy, vendor_url)
    for turns in (1, 2):
        printed = (await run(sys.executable, "-c", program, home=tmp_path)).splitlines()
        assert [line.split()[0] for line in printed if " is whole" in line] == ["user", "assistant"] * turns
        assert "partial" not in "".join(printed)


async def test_the_streams_examples_read_on_produce_and_work(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    reading, typed, producing, working = (here(text, proxy, vendor_url) for text in examples("Streams from Python"))
    first, last = (await run(sys.executable, "-c", reading, home=tmp_path)).splitlines()
    assert first.startswith("[{'step': 1}, {'step': 2}] 0000")
    assert last == "and then {'step': 3}"
    printed = await run(sys.executable, "-c", typed, home=tmp_path)
    assert printed.splitlines() == ["$.count 'many' is not of type 'integer'", "tea 2", "cup 1"]
    for stored in (1000, 2000):
        printed = await run(sys.executable, "-c", producing, home=tmp_path)
        assert printed == f"{stored} messages are stored\n"
    assert await run(sys.executable, "-c", working, home=tmp_path) == "jobs/today [{'job': 1}]\n"


async def test_the_state_example_follows_writes_and_mirrors(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    printed = await run(sys.executable, "-c", here(example("State"), proxy, vendor_url), home=tmp_path)
    steps, names = printed.rstrip().rsplit("\n", 1)
    assert steps == "[('insert', '1'), ('insert', '2')]\n[('update', '2')]"
    assert names == "['Grace', 'Ada']"
    with closing(sqlite3.connect(tmp_path / "people.sqlite3")) as database:
        assert [key for (key,) in database.execute("SELECT key FROM state ORDER BY key")] == ["1", "2"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_schema_lines_run(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    printed = await run("bash", "-ec", here(CURL_SCHEMA, proxy, vendor_url), home=tmp_path)
    assert "message 1, $.count: 'two' is not of type 'integer'" in printed
    assert printed.rstrip().endswith('{"properties":{"count":{"type":"integer"}},"required":["count"],"type":"object"}')


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_curl_lines_run(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    create, read, control = re.split(r"\n(?=curl)", here(CURL, proxy, vendor_url).strip())
    created = json.loads(await run("bash", "-c", create, home=tmp_path))
    assert created["state"] in ("running", "done")
    frames = await run("bash", "-c", read, home=tmp_path)
    assert "streamClosed" in frames
    assert "[DONE]" in frames
    assert json.loads(await run("bash", "-c", control, home=tmp_path))[0]["code"] == "complete"
    messages = json.loads(await run("bash", "-c", here(CURL_VIEW, proxy, vendor_url), home=tmp_path))
    assert {message["object"] for message in messages} == {"chat.completion.chunk"}
    again = json.loads(await run("bash", "-c", create, home=tmp_path))
    assert again["createdAt"] == created["createdAt"]
    listed = json.loads(await run("bash", "-c", here(CURL_LIST, proxy, vendor_url), home=tmp_path))
    assert listed["generations"] == []
    deletions = re.findall(r"^curl.*", here(CURL_DELETE, proxy, vendor_url), re.MULTILINE)
    deleted = [json.loads(await run("bash", "-c", line, home=tmp_path)) for line in deletions]
    assert [(one["generations"], one["rowsRemaining"]) for one in deleted] == [(1, 0), (0, 0)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_session_lines_run(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    lines = re.split(r"\n(?=curl)", re.sub(r"^# .*\n", "", here(CURL_SESSION, proxy, vendor_url), flags=re.MULTILINE))
    answers = [json.loads(await run("bash", "-c", line, home=tmp_path)) for line in lines]
    made, written, messages, events, fork = answers
    assert (made["name"], written["messageId"], fork["name"]) == ("Summer trip", "m1", "Summer trip")
    assert [one["parts"][0]["content"] for one in messages["messages"]] == ["Where to?"]
    assert [event["type"] for event in events] == ["session", "chunk"]
    said = await run("bash", "-ec", here(CURL_AGENT, proxy, vendor_url), home=tmp_path)
    assert '"agentId":"guide"' in said
    messages = json.loads(await run("bash", "-c", lines[2], home=tmp_path))["messages"]
    assert [one["actorId"] for one in messages] == ["ann", "ann", "guide"]
    assert messages[2]["endedBy"] == "stop"


@pytest.mark.slow
async def test_the_chat_in_python_and_the_one_in_the_terminal_run(
    proxy: Proxy, vendor_url: str, tmp_path: Path
) -> None:
    program = here(example("Durable sessions"), proxy, vendor_url)
    printed = (await run(sys.executable, "-c", program, home=tmp_path)).replace("\r", "\n")
    assert "\nAnn: What shall we do tonight?\nguide: " in printed
    assert len(printed.partition("\nguide: ")[2]) > 50
    [commands] = (code for language, code in BLOCKS if language == "sh" and "streamkeep chat" in code)
    environ = {"STREAM_URL": proxy.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    told = await run("bash", "-ec", here(commands, proxy, vendor_url), home=tmp_path, environ=environ)
    assert told.count("guide: ") == 2
    assert told.count("Ann: Where to?") == 1


async def test_the_commands_run(proxy: Proxy, vendor_url: str, tmp_path: Path) -> None:
    section = README.partition("\n## The command\n")[2].partition("\n## ")[0]
    streams, messages, work, requests, door = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    environ = {"STREAM_URL": proxy.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    async def commands(block: str) -> str:
        return await run("bash", "-ec", here(block, proxy, vendor_url), home=tmp_path, environ=environ)

    said = await commands(streams)
    assert said.count("something happened\n") == 2
    assert f"{proxy.url}/v1/stream/logs/copy\n" in said
    assert (await commands(messages)).splitlines()[1:] == [f'{{"step": {step}}}' for step in range(1, 6)]
    worked = await commands(work)
    assert "words/1 has 3 new words\n" in worked
    assert "rights=append.read" in worked
    answers = await commands(requests)
    assert answers.count("data: [DONE]") == 2
    assert answers.splitlines()[-2].startswith("1\tdone\tcomplete")
    assert answers.splitlines()[-1] == "done"
    assert {line[:4] for line in (await commands(door)).splitlines() if not line.startswith(" ")} <= {"ok  ", "note"}


def test_the_readme_has_a_line_for_every_setting() -> None:
    from dataclasses import fields

    from streamkeep.proxy import Settings

    known = {f"STREAMKEEP_{setting.name.upper()}" for setting in fields(Settings)}
    known = (known - {"STREAMKEEP_DATABASE_URL"}) | {"DATABASE_URL", "STREAMKEEP_TEST_DATABASE_URL"}
    assert known == VARIABLES


def test_the_readmes_defaults_are_the_settings() -> None:
    from dataclasses import fields

    from streamkeep.proxy import Settings

    settings, units = Settings(), {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "days": 24 * 3600}
    numbers = {field.name: getattr(settings, field.name) for field in fields(Settings) if field.name != "port"}
    for name, value in numbers.items():
        if type(value) in (int, float):
            found = re.search(rf"`STREAMKEEP_{name.upper()}` \| `?([0-9]+)`?(?: (\w+))? \|", README)
            assert found is not None, name
            assert float(found[1]) * units.get(found[2], 1) == value


def test_every_link_in_the_guides_leads_somewhere() -> None:
    lost = []
    for guide in GUIDES:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(guide)):
            name, _, heading = target.partition("#")
            file = guide.parent / name if name else guide
            if not file.exists() or (heading and heading not in headings(file)):
                lost.append(f"{guide.relative_to(ROOT)}: {target}")
    assert lost == []


def headings(guide: Path) -> set[str]:
    """A page's headings, as links name them."""
    found = re.findall(r"^#+ (.+)$", without_code(guide), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def without_code(guide: Path) -> str:
    return re.sub(r"^```.*?^```", "", guide.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
