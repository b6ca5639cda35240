"""`streamkeep chat`: on a terminal with keys, and without one line by line; and the line that is typed."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from streamkeep.client._rules.line_editor import Ended, LineEditor, Meant, Pressed, Submitted
from streamkeep.client.sessions import AgentSpec
from tests.client.commands import Program
from tests.client.test_chat import QUESTION, Party, present, until
from tests.serving import Proxy
from tests.sessions.session_rows import Author as Agent

SECONDS = 30.0
_SEQUENCES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The command on a terminal of its own: keys go in, and what it shows is kept."""

    def __init__(self, screen: int) -> None:
        self._screen = screen
        self.shown = b""

    @property
    def text(self) -> str:
        return _SEQUENCES.sub(b"", self.shown).decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    async def until(self, *texts: str) -> None:
        """Wait until all of these were shown since the last time."""
        async with asyncio.timeout(SECONDS):
            while not all(text in self.text for text in texts):
                await asyncio.sleep(0.01)
        self.shown = b""

    def read(self) -> None:
        with suppress(OSError):  # nobody has the other end any more
            self.shown += os.read(self._screen, 65_536)


@asynccontextmanager
async def on_terminal(run: Program, *arguments: str) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamkeep.client", "chat", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**run.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    terminal = Terminal(ours)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, terminal.read)
    try:
        yield terminal, process
        async with asyncio.timeout(SECONDS):
            await process.wait()
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


@pytest.fixture
def party(proxy: Proxy, session: str) -> Party:
    return Party("async", proxy.url, session)


async def test_people_on_terminals_talk_to_each_other(run: Program, session: str, party: Party) -> None:
    async with (
        on_terminal(run, "--new", session, "--name", "Ann") as (ann, ann_process),
        party.joined("bob", name="Bob") as bob,
    ):
        await ann.until(f"● {session} · connected", "> ")
        ann.type("Hällo\x7fo Bøb\r")
        await ann.until("Ann: Hällo Bøb\r\n")
        await until(lambda: [(one.actor_id, one.text) for one in bob.messages] == [("Ann", "Hällo Bøb")])
        bob.announce()
        bob.typing()
        await ann.until("Bob is typing", "Ann, Bob")
        await bob.send_message("hi \x1b[31mAnn\x1b]0;x\x07")
        await ann.until("Bob: hi \\u001b[31mAnn\\u001b]0;x\\u0007")
        ann.type("/who\r")
        await ann.until("Bob  online  1 message\r\n")
        ann.type("/nothing\r/rename The kitchen\r")
        await ann.until("there is no /nothing", "the session is called The kitchen", "● The kitchen · connected")
        ann.type("half a line")
        await ann.until("> half a line")
        await until(lambda: present(bob, "typing").get("Ann") is True)
        ann.type("\x15/fork side\r")
        await ann.until("now, a branch of", "● side · connected")
        ann.type("only here\r")
        await ann.until("Ann: only here\r\n")
        assert [one.text for one in bob.messages][-1] == "hi \x1b[31mAnn\x1b]0;x\x07"
        ann.type("\x04")
    assert ann_process.returncode == 0
    assert b"\x1b[?2004l" in ann.shown, "the terminal is left as it was"


async def test_answers_stream_and_approvals_are_given_by_key(run: Program, session: str, party: Party) -> None:
    async with party.joined("bob") as bob:
        await bob.register_agents([AgentSpec("gpt", "http://127.0.0.1:9/", name="GPT")])
        await bob.append("Look!", role="system")
        async with on_terminal(run, session, "--name", "Ann") as (ann, process):
            await ann.until("Look!", "connected")
            ann.type("/agents\r")
            await ann.until("GPT  http://127.0.0.1:9/")
            await party.write(*QUESTION[:2])
            await ann.until("GPT is writing", 'GPT: Let me see. \r\n⚙ weather(city="Lodz")')
            await party.write(*QUESTION[2:])
            await ann.until("⚙ danger()", "? danger()  y/n")
            ann.type("y")
            await ann.until("⚙ danger()  ✓ allowed")
            await until(lambda: [(one.status, one.responded_by) for one in bob.approvals] == [("approved", "Ann")])
            await bob.add_tool_result("call", {"celsius": 21})
            await ann.until('→ {"celsius":21}')
            ann.type("yes\x04\r")
            await ann.until("Ann: yes\r\n")
            ann.type("/approve\r/quit\r")
            await ann.until("nobody asks for an approval")
        assert process.returncode == 0


async def test_a_session_that_is_deleted_ends_the_chat(run: Program, session: str, party: Party) -> None:
    async with party.joined("bob") as bob, on_terminal(run, session) as (ann, process):
        await ann.until("connected")
        await bob.delete()
        await ann.until("there is no session")
    assert process.returncode == 6


async def test_ctrl_c_leaves_the_terminal_as_it_was(run: Program, session: str) -> None:
    async with on_terminal(run, "--new", session) as (terminal, process):
        await terminal.until("connected")
        process.send_signal(signal.SIGINT)
    assert (process.returncode, b"\x1b[?2004l" in terminal.shown) == (130, True)


async def test_lines_go_in_and_what_others_write_comes_out(run: Program, session: str, party: Party) -> None:
    ended = await run(
        "chat", "--new", session, "--name", "Ann", stdin=b"one\n\n//two\n/who\n/fork side\nthree\n/agents\n"
    )
    assert (ended.code, ended.out) == (0, b"")
    assert [line.split("  ")[0] for line in ended.err.splitlines()[:1]] == ["streamkeep: Ann"]
    assert ended.err.splitlines()[-1] == "streamkeep: no agents; --agent URL adds one"
    assert [one.text for one in (await party.fold()).messages] == ["one", "/two"]
    shown = await run("chat", session, "--as", "bob", "-n", "1")
    assert (shown.code, shown.text) == (0, "Ann: /two\n")
    lines = (await run("chat", session, "--json", "-n", "9")).json_lines
    assert [(line["actorName"], line["parts"][0]["content"]) for line in lines] == [("Ann", "one"), ("Ann", "/two")]


async def test_a_vendors_model_answers_in_its_own_format(run: Program, session: str, vendor: str) -> None:
    agent = ("--agent", f"gpt={vendor}/v1/responses?fake-rate=0&fake-tokens=5", "--agent-format", "openai-responses")
    ended = await run("chat", "--new", session, "--name", "Ann", *agent, "--model", "m", stdin=b"Hi\n")
    assert (ended.code, ended.text[:5]) == (0, "gpt: "), ended.err


@pytest.mark.parametrize(("end", "code"), [("error", 11), ("stop", 18), ("done", 0)])
async def test_the_last_answers_end_is_the_exit_code(
    run: Program, session: str, party: Party, end: str, code: int
) -> None:
    """The input is over, so the command waits for the answer alone."""
    async with party.joined("bob"):
        answer = Agent("a", actor_id="gpt")
        await party.write(*QUESTION, answer.content("half an answer"))
        process = await run.start("chat", session, "--name", "Ann")
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        async with asyncio.timeout(SECONDS):
            told = await process.stderr.readline()
        assert told == b"streamkeep: danger() waits for /approve ask or /deny ask\n"
        last: dict[str, Any] = {"error": {"message": "out of words"}} if end == "error" else {}
        await party.write(answer.row(end, **last))
        async with asyncio.timeout(SECONDS):
            out, _ = await process.communicate()
    endings = {"error": "\n✗ out of words", "stop": "\n■ stopped", "done": ""}
    assert (process.returncode, out.decode()) == (code, f"gpt: half an answer{endings[end]}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a/b"],
        ["s", "--agent", "gpt"],
        ["s", "--model", "m"],
        ["s", "--agent", "http://127.0.0.1:9/", "--agent-body", "[]"],
        ["s", "--agent", "http://127.0.0.1:9/", "--agent-body", "x"],
        ["s", "--agent", "http://127.0.0.1:9/", "--agent-header", "none"],
        ["s", "--agent", "http://127.0.0.1:9/", "--agent-format", "none"],
    ],
)
async def test_wrong_usage_is_told(run: Program, arguments: list[str]) -> None:
    ended = await run.here("chat", *arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert len(ended.err.splitlines()) == 1


async def test_a_session_without_a_name_gets_one(run: Program) -> None:
    ended = await run("chat", "--new", stdin=b"/who\n")
    assert ended.code == 0
    assert ended.err.startswith("streamkeep: the session is chat-")


async def test_an_absent_session_is_told(run: Program) -> None:
    ended = await run("chat", "nothing")
    assert (ended.code, ended.err) == (6, "streamkeep: there is no session nothing (404 not_found)\n")


LEFT, RIGHT, UP, DOWN, HOME, END = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B", "\x1b[H", "\x1bOF"


@pytest.mark.parametrize(
    ("keys", "text", "cursor"),
    [
        ("abc", "abc", 3),
        (f"abc{LEFT}{LEFT}x{RIGHT}y", "axbyc", 4),
        ("abc\x7f\x08", "a", 1),
        (f"abc{HOME}\x1b[3~x{END}y", "xbcy", 4),
        (f"one two  {LEFT}\x17x", "one x ", 5),
        ("one\x17two", "two", 3),
        ("abcdef\x01\x0b", "", 0),
        (f"abc{LEFT}\x15", "c", 0),
        (f"abc{LEFT}\x04", "ab", 2),
        ("a\x00\x07\x1b[99;1Rb\x1b\x1bc", "abc", 3),
        ("\x1b[200~one\ntwo\ty\x1b[201~!", "one\ntwo    y!", 13),
        ("first\rsecond\r" + UP + UP, "first", 5),
        ("first\r" + UP + DOWN, "", 0),
        ("👩\u200d🚀", "👩\u200d🚀", 3),
    ],
)
def test_the_line_is_edited_whatever_the_pieces(keys: str, text: str, cursor: int) -> None:
    for at in range(len(keys) + 1):
        editor = LineEditor()
        editor.feed(keys[:at])
        editor.feed(keys[at:])
        assert (editor.text, editor.cursor) == (text, cursor), at


def test_keys_mean_lines_ends_and_what_is_watched() -> None:
    editor = LineEditor()
    meant: list[Meant] = editor.feed("y\rn\x7fyes\r\r \r\x04", watched="yn")
    assert meant == [Pressed("y"), Pressed("n"), Pressed("y"), Submitted("es"), Ended()]
    editor.feed("x" * 200_000)
    editor.insert("y" * 200_000)
    assert len(editor.text) == 100_000
