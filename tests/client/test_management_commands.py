"""Commands about sessions, links, subscriptions and work; those that end by signals, or run others, as programs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from tests.client.commands import Program
from tests.serving import Proxy
from tests.upstream import Exchange, upstream, whole

BODY = b"an answer"


async def endless(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/plain"})
    await exchange.chunk(BODY)
    await exchange.is_gone.wait()


async def test_sessions_and_generations_are_listed(run: Program, proxy: Proxy, session: str) -> None:
    async with upstream(whole(BODY, "text/plain")) as server, upstream(endless) as stuck:
        for request in ("1", "2"):
            await proxy.create(session, request, server.url)
            await proxy.ending(session, request)
        await proxy.create(session, "3", stuck.url)
        found = (await run.here("sessions", "-q", session, "--json")).json
        assert (found["sessionId"], found["generations"], found["live"]) == (session, 3, 1)
        listed = [line.split("\t") for line in (await run.here("generations", session)).text.splitlines()]
        assert [columns[1:3] for columns in listed] == [["3", "running"], ["2", "done"], ["1", "done"]]
        newest = await run.here("generations", session, "-n", "1", "--state", "done")
        assert newest.text.split("\t")[1:4] == ["2", "done", "complete"]
        assert (await run.here("generations", "--state", "nonsense")).code == 5
        assert (await run.here("cancel", session, "3")).out == b"cancelled\n"


async def test_a_link_does_what_it_says(run: Program, proxy: Proxy, session: str) -> None:
    await run.here("create", session, "--content-type", "text/plain")
    link = (await run.here("share", session, "--append", "--for", "1h")).text.strip()
    assert "append" in link
    elsewhere = Program({**run.environ, "STREAM_URL": "http://127.0.0.1:1"})
    assert (await elsewhere.here("write", link, "by a link")).code == 0
    assert (await elsewhere.here("read", link)).out == b"by a link"
    found = (await run.here("share", f"{proxy.url}/v1/stream/{session}", "--json")).json
    assert found["rights"] == ["read"]
    assert (await elsewhere.here("write", found["url"], "no")).code == 5
    async with upstream(endless) as stuck:
        await proxy.create(session, "1", stuck.url)
        data, cancel = (await run.here("share", "--session", session, "--request", "1", "--cancel")).text.splitlines()
        reader = await elsewhere.start("read", data)
        assert reader.stdout is not None
        async with asyncio.timeout(60):
            assert await reader.stdout.readexactly(len(BODY)) == BODY
            assert (await proxy.client.post(cancel)).json() == {"state": "cancelled"}
            await reader.communicate()
        assert reader.returncode == 18
    for arguments in (["share"], ["share", "x", "--cancel"], ["share", "http://other.test/v1/stream/x"]):
        assert (await run.here(*arguments)).code == 2


async def test_a_command_works_on_what_comes(run: Program, session: str) -> None:
    """It gets what is new, messages one a line; what failed is handed out again."""
    made = (await run.here("subscribe", session, "--pattern", f"{session}/*", "--lease", "30", "--json")).json
    assert (made["type"], made["wake_stream"]) == ("pull-wake", f"{session}-wakes")
    await run.here("create", f"{session}/jobs", "--content-type", "application/json")
    await run.here("write", f"{session}/jobs", '{"job": 1} {"job": 2}')
    failed = await run("work", session, "--once", "--", "sh", "-c", "cat >/dev/null; exit 7")
    assert (failed.code, "ended with 7" in failed.err) == (7, True)
    show = ("sh", "-c", 'echo "$STREAM_PATH"; cat')
    done = await run("work", session, "--once", "--", *show)
    assert (done.code, done.out) == (0, f'{session}/jobs\n{{"job": 1}}\n{{"job": 2}}\n'.encode())
    await run.here("write", f"{session}/jobs", '{"job": 3}')
    assert (await run("work", session, "--once", "--", *show)).text == f'{session}/jobs\n{{"job": 3}}\n'
    shown = (await run.here("subscribe", session)).text
    assert f"{session}/jobs" in shown
    assert (await run.here("subscribe", session, "--delete")).code == 0
    assert (await run.here("subscribe", session)).code in (5, 6)


async def test_a_worker_goes_on_after_failures_and_ends_at_sigterm(run: Program, session: str, tmp_path: Path) -> None:
    await run.here("subscribe", session, "--pattern", f"{session}/*")
    await run.here("create", f"{session}/jobs", "--content-type", "text/plain")
    script = f'cat >>"{tmp_path}/seen"; test -e "{tmp_path}/ok" || {{ touch "{tmp_path}/ok"; exit 1; }}'
    worker = await run.start("work", session, "--", "sh", "-c", script)
    await run.here("write", f"{session}/jobs", "job")
    seen = tmp_path / "seen"
    async with asyncio.timeout(60):
        while not seen.exists() or seen.read_bytes() != b"jobjob":
            await asyncio.sleep(0.05)
        await run.here("write", f"{session}/jobs", ";more")
        while seen.read_bytes() != b"jobjob;more":
            await asyncio.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        _, err = await worker.communicate()
    assert (worker.returncode, "handed out again" in err.decode()) == (0, True)


async def test_news_during_the_work_is_work_of_its_own(run: Program, session: str, tmp_path: Path) -> None:
    await run.here("subscribe", session, "--pattern", f"{session}/*")
    await run.here("create", f"{session}/jobs", "--content-type", "text/plain")
    await run.here("write", f"{session}/jobs", "one;")
    os.mkfifo(tmp_path / "gate")
    worker = await run.start("work", session, "--once", "--", "sh", "-c", f"cat; cat {tmp_path}/gate")
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        assert await worker.stdout.readexactly(4) == b"one;"
        await run.here("write", f"{session}/jobs", "two;")
        await asyncio.to_thread((tmp_path / "gate").write_text, "")
        out, err = await worker.communicate()
    assert (worker.returncode, out, err) == (0, b"", b"")
    assert (await run("work", session, "--once", "--", "cat")).out == b"two;"
