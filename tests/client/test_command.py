"""The `streamkeep` command, run as a program: what it prints, and with which code it ends."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.client.commands import Program
from tests.client.scripted import data_event, scripted_proxy
from tests.serving import Proxy
from tests.upstream import Exchange, upstream, whole

BODY = "Grüße 🌊\r\n".encode() * 100


async def endless(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/plain"})
    await exchange.chunk(BODY)
    await exchange.is_gone.wait()


async def test_help_lists_every_command_and_exit_code(run: Program) -> None:
    for arguments in (["--help"], ["fetch", "--help"]):
        ended = await run.here(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert b"18  cancelled" in ended.out
    top = (await run("--help")).out.decode()
    commands = "fetch active cancel create write read tail fork close delete info list serve demo vendor keys tenants"
    listed = re.findall(r"^  ([a-z]+)  ", top, re.MULTILINE)
    assert set(commands.split()) <= set(listed)


async def test_without_arguments_it_shows_its_help(run: Program) -> None:
    ended = await run()
    assert (ended.code, ended.out) == (2, b"")
    assert ended.err.startswith("Usage: streamkeep")


async def test_version_is_the_packages(run: Program) -> None:
    assert (await run("--version")).out.decode() == f"streamkeep {version('streamkeep')}\n"


async def test_fetch_writes_the_body(run: Program, tmp_path: Path) -> None:
    async with upstream(whole(BODY, "text/plain")) as server:
        ended = await run("fetch", f"{server.url}/a?b=1")
        assert (ended.code, ended.out, ended.err) == (0, BODY, "")
        (tmp_path / "question").write_bytes(b"from a file")
        await run.here(
            "fetch", server.url, "-d", "as text", "-H", "Authorization: Bearer x", "-H", "Content-Type: text/x"
        )
        await run.here("fetch", server.url, "-X", "PUT", "-d", f"@{tmp_path / 'question'}")
        await run("fetch", server.url, "-d", "@-", stdin=b"from outside")
        seen = [(call.method, call.path, call.body, call.header("Content-Type")) for call in server.calls]
        assert seen == [
            ("GET", "/a?b=1", b"", None),
            ("POST", "/", b"as text", "text/x"),
            ("PUT", "/", b"from a file", "application/json"),
            ("POST", "/", b"from outside", "application/json"),
        ]
        assert server.calls[1].header("Authorization") == "Bearer x"


async def test_an_interrupted_fetch_is_resumed(run: Program, session: str) -> None:
    """Ctrl-C says how to go on, and the next command does."""
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(BODY)
        await gate.wait()
        await exchange.chunk(b"the rest")
        await exchange.end()

    async with upstream(play) as server:
        process = await run.start("fetch", server.url, "--session", session)
        assert process.stdout is not None
        assert await process.stdout.readexactly(len(BODY)) == BODY
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        assert f"streamkeep fetch --resume --session {session}" in err.decode()
        gate.set()
        ended = await run.here("fetch", "--resume", "--session", session, "--from-start")
        assert (ended.code, ended.out) == (0, BODY + b"the rest")
        ended = await run.here("fetch", "--resume", "--session", session)
        assert (ended.code, ended.out) == (3, b"")
        assert "nothing to resume (ended)" in ended.err


async def test_a_closed_pipe_ends_it_quietly(run: Program) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        while not exchange.is_gone.is_set():
            await exchange.chunk(BODY)
            await asyncio.sleep(0.01)

    async with upstream(play) as server:
        process = await run.start("fetch", server.url)
        assert process.stdout is not None
        await process.stdout.readexactly(len(BODY))
        process.stdout._transport.close()  # type: ignore[attr-defined]  # the only way to close a pipe for reading
        async with asyncio.timeout(60):
            assert await process.wait() == 141
        assert process.stderr is not None
        assert await process.stderr.read() == b""


async def test_read_follows_a_stream_url_from_any_byte(run: Program, proxy: Proxy, session: str) -> None:
    async with upstream(whole(BODY, "text/plain")) as server:
        made = (await proxy.create(session, "1", server.url)).json()
        assert (await run.here("read", made["streamUrl"])).out == BODY
        assert (await run.here("read", made["streamUrl"], "--offset", f"{0:016d}_{7:016d}")).out == BODY[7:]
        ended = await run.here("read", made["streamUrl"].replace("signature=1.", "signature=1.x"))
        assert (ended.code, ended.out) == (5, b"")
        assert "signature_invalid" in ended.err


async def test_active_and_cancel(run: Program, session: str) -> None:
    async with upstream(endless) as server:
        process = await run.start("fetch", server.url, "--session", session, "--request", "1")
        assert process.stdout is not None
        await process.stdout.readexactly(len(BODY))
        listed = await run.here("active", session)
        assert listed.out.decode().split("\t")[:3] == ["1", "running", "-"]
        assert (await run.here("cancel", session, "1")).out == b"cancelled\n"
        _, err = await process.communicate()
        assert (process.returncode, "cancelled" in err.decode()) == (18, True)
        ended = await run.here("cancel", session, "2")
        assert (ended.code, "not_found" in ended.err) == (5, True)


async def truncated(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    await exchange.chunk(b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n')
    await exchange.end()


async def broken(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/plain"})
    await exchange.chunk(BODY)


async def refusing(exchange: Exchange) -> None:
    await exchange.answer(400, b"no", {"Content-Type": "text/plain"})


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        (truncated, 10, "truncated"),
        (broken, 11, "upstream_failed"),
        (refusing, 4, "upstream answered 400"),
    ],
)
async def test_the_exit_code_tells_the_ending(
    run: Program, script: Callable[[Exchange], Awaitable[None]], code: int, message: str
) -> None:
    async with upstream(script) as server:
        ended = await run("fetch", f"{server.url}/v1/chat/completions", "-d", "{}")
        assert ended.code == code
        assert message in ended.err
        assert ended.out != b""


async def test_the_proxys_refusal_says_what_would_allow_it(run: Program) -> None:
    ended = await run("fetch", "http://not.allowed/")
    assert ended.code == 5
    assert "STREAMKEEP_ALLOW" in ended.err


async def test_every_ending_has_its_code(run: Program) -> None:
    codes = {
        "timed_out": 12,
        "stalled": 13,
        "too_large": 14,
        "storage_unavailable": 15,
        "owner_lost": 16,
        "shutdown": 17,
    }
    async with scripted_proxy() as proxy:

        async def ending(exchange: Exchange) -> None:
            await proxy.end_as(exchange, "error", waiting.pop(0))

        waiting = list(codes)
        proxy.control = [ending]
        for code in codes.values():
            ended = await run.here("fetch", "http://vendor.test/", "--server", proxy.url)
            assert (ended.code, ended.out) == (code, b"0123456789")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["fetch"],
        ["fetch", "--resume"],
        ["fetch", "http://x.test/", "-H", "no colon"],
        ["fetch", "http://x.test/", "-H", "naïve: 1"],
        ["fetch", "http://x.test/", "-H", "X-Name: naïve"],
        ["fetch", "http://x.test/", "-H", "X-Name: a\x01b"],
        ["fetch", "http://x.test/", "--key", "k\x7f"],
        ["fetch", "http://x.test/", "--key", "schlüssel"],
        ["fetch", "http://x.test/", "--session", "no/slash"],
        ["fetch", "nonsense"],
        ["fetch", "http://x.test/", "--server", "nonsense"],
        ["active", "chat", "--server", "ftp://x.test"],
        ["read", "hello", "--server", "nonsense"],
        ["read", "hello", "--server", "http://x.test/?key=secret"],
        ["read", "hello", "--server", "http://user:secret@x.test/"],
        ["read", "hello", "--server", "http://x.test:99999999/"],
        ["read", "http://"],
        ["read", "http://[x/"],
        ["cancel", "no/slash", "1"],
        ["read"],
        ["read", "http://x.test/stream/data", "--offset", "7"],
        ["create", "x", "--ttl", "soon"],
        ["write", "x", "[]", "--json", "--batch-json"],
    ],
)
async def test_wrong_usage_is_said_and_is_2(run: Program, arguments: list[str]) -> None:
    ended = await run.here(*arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert ended.err.startswith("streamkeep: ")
    assert ended.err.count("\n") == 1
    assert not any(words in ended.err for words in ("secret", "codec", "schlüssel", "<"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch", "http://x.test/", "-d", "@/does/not/exist"],
        ["create", "hello", "--server", "http://127.0.0.1:1"],
    ],
)
async def test_what_fails_is_one_line(run: Program, arguments: list[str]) -> None:
    ended = await run(*arguments)
    assert (ended.code, ended.out) == (1, b"")
    assert ended.err.startswith("streamkeep: ")
    assert ended.err.count("\n") == 1


async def test_a_state_directory_that_cannot_be_written_is_named(run: Program, tmp_path: Path) -> None:
    (tmp_path / "streamkeep").write_text("in the way")
    ended = await run("fetch", "http://x.test/")
    assert ended.code == 1
    assert str(tmp_path / "streamkeep") in ended.err


async def test_a_server_command_runs_with_its_own_arguments(run: Program) -> None:
    ended = await run("vendor", "--help")
    assert (ended.code, b"fake OpenAI" in ended.out) == (0, True)


async def test_a_server_command_without_the_server_says_what_to_install(run: Program) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = sys.modules['fastapi'] = None\n"
        "from streamkeep.client.__main__ import main; sys.exit(main(['vendor', '--port', '0']))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert "pip install 'streamkeep[proxy]'" in err.decode()


async def test_the_body_comes_as_it_comes(run: Program) -> None:
    """Each piece is written at once, not when the body is over."""
    gate = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await proxy.begin(exchange)
        await exchange.chunk(data_event(b"01234", 5))
        await gate.wait()
        exchange.reset()

    async with scripted_proxy() as proxy:
        proxy.data = [slowly, proxy.serve]
        process = await run.start("fetch", "http://vendor.test/", "--server", proxy.url)
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readexactly(5) == b"01234"
        gate.set()
        assert (await process.communicate())[0] == b"56789"
