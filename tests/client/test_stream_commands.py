"""The commands on streams, run as programs: `create`, `write`, `read` and the others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shlex
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.client.commands import Program
from tests.gateway import gateway
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole

LINES = b"".join(b"line %d\n" % number for number in range(50_000))


@pytest.fixture
def name(session: str) -> str:
    return f"logs/{session}"


async def test_a_stream_is_made_written_read_and_deleted(run: Program, name: str, proxy: Proxy) -> None:
    made = await run("create", name, "--content-type", "text/plain", "--ttl", "12h")
    assert (made.code, made.text) == (0, f"{proxy.url}/v1/stream/{name}\n")
    assert (await run("write", name, "first ")).code == 0
    assert (await run("write", made.text.strip(), "--close", stdin=b"second")).code == 0
    assert (await run("read", name)).out == b"first second"
    assert (await run("read", name, "--follow", "--offset", f"{0:016d}_{6:016d}")).out == b"second"
    found = (await run("info", name, "--json")).json
    assert (found["content_type"], found["is_closed"], found["ttl_seconds"]) == ("text/plain", True, 12 * 3600)
    assert "43200 s after its last use" in (await run("info", name)).text
    refused = await run("write", name, "third")
    assert (refused.code, refused.err.count("\n")) == (7, 1)
    assert (await run("create", name)).code == 7
    assert (await run("delete", name)).code == 0
    for command in ("read", "info", "delete", "close", "write"):
        gone = await run(command, name)
        assert (gone.code, gone.out, gone.err.count("\n")) == (6, b"", 1)


async def test_a_pipe_of_any_size_goes_in_and_out(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    assert (await run("write", name, stdin=LINES)).code == 0
    assert (await run("read", name)).out == LINES
    await run.here("close", name)
    ended = await run("tail", name, "-n", "2")
    assert (ended.code, ended.out) == (0, b"line 49998\nline 49999\n")


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells of another process how much memory it needed at most"
)
async def test_write_needs_little_memory(run: Program, name: str, tmp_path: Path) -> None:
    """What it needs for 96 MiB is not much more than what it needs for a byte."""

    async def most_kib(size: int) -> int:
        """The most that a command has while it writes so many bytes."""
        (tmp_path / "large").write_bytes(bytes(size))
        command = (sys.executable, "-m", "streamkeep.client", "write", name)
        with (tmp_path / "large").open("rb") as large:
            process = await asyncio.create_subprocess_exec(*command, stdin=large, env=run.environ)
        most = 0
        while process.returncode is None:
            # It may have ended since.
            with suppress(FileNotFoundError, ProcessLookupError):
                told = await asyncio.to_thread(Path(f"/proc/{process.pid}/status").read_text)
                most = max(most, *map(int, re.findall(r"VmHWM:\s*(\d+) kB", told)), 0)
            await asyncio.sleep(0.01)
        assert process.returncode == 0
        return most

    await run.here("create", name)
    size = 96 * 1024 * 1024
    least = await most_kib(1)
    assert 0 < await most_kib(size) - least < 48 * 1024
    assert (await run.here("info", name, "--json")).json["offset"].endswith(f"_{size + 1:016d}")


async def test_a_write_that_gets_no_memory_ends_and_says_so(run: Program, name: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(32 * 1024 * 1024))
    codes = set()
    for mib in range(60, 100, 5):
        await run.here("create", f"{name}-{mib}")
        with (tmp_path / "large").open("rb") as large:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "streamkeep.client", "write", f"{name}-{mib}"),
                stdin=large,
                stderr=asyncio.subprocess.PIPE,
                env=run.environ,
                preexec_fn=partial(resource.setrlimit, resource.RLIMIT_DATA, (mib * 1024 * 1024,) * 2),
            )
        try:
            async with asyncio.timeout(60):
                _, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert (process.returncode == 0) == (err == b"")
        codes.add(process.returncode)
    assert codes == {0, 1}


async def test_messages_go_in_and_come_out_one_a_line(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "application/json")
    assert (await run.here("write", name, "--json", '{"a": [1, "]"]}')).code == 0
    assert (await run("write", name, stdin=b'{"n": 1.50}\n"two"\n\n{\n "n": 3\n}\n')).code == 0
    assert (await run("write", name, "--batch-json", stdin=b'[4, [5, 6],\n {"n": 7}]')).code == 0
    read = await run.here("read", name)
    assert read.text.splitlines()[:3] == ['{"a": [1, "]"]}', '{"n": 1.50}', '"two"']
    assert [json.loads(line) for line in read.text.splitlines()[3:]] == [{"n": 3}, 4, [5, 6], {"n": 7}]
    for bad, said in (('{"a": ', "ends inside of message 1"), ("1 nonsense", "message 2 is not JSON")):
        ended = await run.here("write", name, bad)
        assert (ended.code, said in ended.err, ended.err.count("\n")) == (1, True, 1)
    assert (await run.here("write", name, "--batch-json", '{"a": 1}')).code == 1


async def test_json_flags_want_a_json_stream(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    ended = await run.here("write", name, "--json", "1")
    assert (ended.code, "text/plain" in ended.err) == (2, True)


async def test_follow_waits_until_the_stream_is_closed(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    await run.here("write", name, "one ")
    reader, tailing = await run.start("read", name, "--follow"), await run.start("tail", name)
    assert reader.stdout is not None
    async with asyncio.timeout(60):
        assert await reader.stdout.readexactly(4) == b"one "
    await run.here("write", name, "two", "--close")
    async with asyncio.timeout(60):
        assert (await reader.communicate(), reader.returncode) == ((b"two", b""), 0)
        out, err = await tailing.communicate()
    # What came before it stood at the tail is not shown, if the machine was slow.
    assert (tailing.returncode, err) == (0, b"")
    assert b"two".endswith(out)


async def test_tail_shows_the_last_lines_first(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    await run("write", name, "--close", stdin=b"one\ntwo\nthree\nfour")
    assert (await run.here("tail", name, "-n", "2")).out == b"two\nthree\nfour"


async def test_a_resume_file_goes_on_where_the_last_run_was(run: Program, name: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    await run.here("create", name, "--content-type", "text/plain")
    await run.here("write", name, "one ")
    reader = await run.start("read", name, "--follow", "--resume-file", str(kept))
    assert reader.stdout is not None
    async with asyncio.timeout(60):
        assert await reader.stdout.readexactly(4) == b"one "
        while not kept.exists():
            await asyncio.sleep(0.01)
    reader.kill()
    await reader.wait()
    await run.here("write", name, "two ")
    assert (await run.here("read", name, "--resume-file", str(kept))).out == b"two "
    assert (await run.here("read", name, "--resume-file", str(kept))).out == b""
    await run.here("create", f"{name}-2")
    other = await run.here("read", f"{name}-2", "--resume-file", str(kept))
    assert (other.code, "another stream" in other.err) == (2, True)
    kept.write_text("nonsense")
    assert (await run.here("read", name, "--resume-file", str(kept))).code == 2


async def test_what_is_no_resume_file_is_refused(run: Program, name: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for content in ("", "[" * 200_000, "[]", '{"url": 1}'):
        kept.write_text(content)
        refused = await run.here("read", name, "--resume-file", str(kept))
        assert (refused.code, refused.err.count("\n"), kept.read_text()) == (2, 1, content)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with asyncio.timeout(60):
        refused = await run("read", name, "--resume-file", str(pipe))
    assert (refused.code, refused.err.count("\n"), pipe.is_fifo()) == (2, 1, True)


async def test_an_id_leads_to_no_other_stream_and_out_of_none(run: Program, name: str) -> None:
    await run.here("create", name)
    for given in (f"other/../{name}", f"./{name}", "..", "../../api/keys", f"{name}/."):
        for command in ("read", "delete", "info"):
            refused = await run.here(command, given)
            assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (await run.here("info", name)).code == 0


async def test_a_closed_input_or_output_is_told_in_a_line(run: Program, name: str) -> None:
    await run.here("create", name)
    for arguments, code in ((f"write {name} text >&-", 0), (f"read {name} >&-", 1), (f"write {name} --close <&-", 1)):
        command = f"exec {shlex.quote(sys.executable)} -m streamkeep.client {arguments}"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("sh", "-c", command, stderr=pipe, env=run.environ)
        _, err = await process.communicate()
        assert (process.returncode, err.count(b"\n")) == (code, code)
    assert (await run.here("read", name)).out == b"text"


async def test_what_is_no_header_is_not_repeated(run: Program) -> None:
    refused = await run.here("fetch", "http://127.0.0.1:1/", "-H", "Bearer sk-secret")
    assert (refused.code, "sk-secret" in refused.err) == (2, False)


async def test_a_fork_shares_what_was_before_it(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    await run.here("write", name, "shared and more")
    made = await run.here("fork", name, f"{name}-fork", "--offset", f"{0:016d}_{6:016d}")
    assert made.code == 0
    await run.here("write", f"{name}-fork", " otherwise")
    assert (await run.here("read", f"{name}-fork")).out == b"shared otherwise"
    final = await run.here("close", f"{name}-fork")
    assert final.text == f"{0:016d}_{16:016d}\n"


async def test_list_tells_of_what_is_there(run: Program, session: str) -> None:
    for number in range(3):
        await run.here("create", f"{session}/{number}", "--content-type", "text/plain")
    await run.here("delete", f"{session}/1")
    async with asyncio.timeout(60):
        while True:
            listed = (await run.here("list", f"{session}/*")).text.splitlines()
            if [line.split("\t")[0] for line in listed] == [f"{session}/0", f"{session}/2"]:
                break
    found = [json.loads(line) for line in (await run.here("list", f"{session}/*", "--json")).text.splitlines()]
    assert [each["contentType"] for each in found] == ["text/plain"] * 2


async def test_list_is_the_same_page_by_page_and_by_the_registry(run: Program, session: str, proxy: Proxy) -> None:
    paths = sorted(f"{session}/{number}" for number in range(501))
    for path in paths:
        await proxy.client.put(f"/v1/stream/{path}", headers={"Content-Type": "text/plain"})
    await proxy.client.delete(f"/v1/stream/{paths.pop()}")
    assert [line.split("\t")[0] for line in (await run.here("list", f"{session}/*")).text.splitlines()] == paths
    assert (await run.here("list", f"{session}/?")).text.count("\n") == 10
    async with gateway(proxy.url, hides="/api/") as url, asyncio.timeout(60):
        other = Program({**run.environ, "STREAM_URL": url})
        while (listed := await other("list", f"{session}/*", "--json")).text.count("\n") != len(paths):
            pass
    assert [row["path"] for row in listed.json_lines] == paths


async def test_ctrl_c_is_quiet(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    await run.here("write", name, "one")
    reader = await run.start("read", name, "--follow")
    assert reader.stdout is not None
    await reader.stdout.readexactly(3)
    reader.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        assert (await reader.communicate(), reader.returncode) == ((b"", b""), 130)


async def test_head_may_leave_early(run: Program, name: str) -> None:
    await run.here("create", name, "--content-type", "text/plain")
    await run("write", name, stdin=LINES)
    command = f"{shlex.quote(sys.executable)} -m streamkeep.client read {name}; echo $? >&2"
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"({command}) | head -1"),
        env=run.environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        assert await shell.communicate() == (b"line 0\n", b"141\n")


async def test_the_key_goes_to_its_server_alone(run: Program, name: str) -> None:
    """And is never shown."""
    key, wrong = 32 * "a", 32 * "b"
    keys = BootstrapKeys.parse([key])
    async with serving(MemoryStore(), keys=keys) as server, upstream(whole(b"", "text/plain")) as stranger:
        with_key = Program({**run.environ, "STREAM_URL": server.url, "STREAMKEEP_KEY": key})
        assert (await with_key("create", name)).code == 0
        assert (await with_key("read", f"{stranger.url}/v1/stream/{name}")).code == 1
        assert stranger.calls[0].header("Streamkeep-Key") is None
        for arguments in (["read", name], ["cancel", "chat", "1"]):
            refused = await with_key(*arguments, "--key", wrong)
            assert (refused.code, wrong in refused.err, refused.err.count("\n")) == (5, False, 1)
