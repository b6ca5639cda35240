"""The command on a terminal: tables, colours, and the progress bar of `write`."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamkeep.client._command.output import printable
from tests.client.commands import Program

RED = b"\x1b[31m"


@pytest.fixture
async def name(run: Program, session: str) -> str:
    await run.here("create", f"{session}/a", "--content-type", "text/plain")
    return f"{session}/a"


async def test_a_list_is_a_table(run: Program, name: str, session: str) -> None:
    shown = (await run.on_terminal("list", f"{session}/*", COLUMNS="160")).text.splitlines()
    assert ["Path" in shown[0], "Content type" in shown[0], name in shown[1]] == [True] * 3
    assert "\t" not in shown[1]
    narrow = (await run.on_terminal("list", f"{session}/*", COLUMNS="60")).text.splitlines()
    assert "".join(line.split()[0] for line in narrow[1:]) == name
    assert (await run.here("list", f"{session}/*")).text.split("\t")[:2] == [name, "text/plain"]


async def test_what_goes_wrong_is_red_but_where_no_colour_is_wanted(run: Program) -> None:
    assert RED in (await run.on_terminal("read", "nothing")).out.replace(b"1;", b"")
    plain = (await run.on_terminal("read", "nothing", NO_COLOR="1")).out
    assert plain.startswith(b"streamkeep: there is no stream")
    assert b"\x1b" not in plain
    assert b"\x1b" not in (await run.on_terminal("--help", NO_COLOR="1")).out
    assert "\x1b" not in (await run("read", "nothing")).err


async def test_write_shows_how_far_it_is(run: Program, name: str, tmp_path: Path) -> None:
    """And nothing of it stays."""
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    shown = await run.on_terminal("write", name, stdin=tmp_path / "large")
    assert shown.code == 0
    assert "3.0 MB" in shown.text
    assert "━" in shown.text
    assert shown.text.endswith("\x1b[2K")
    assert (await run.on_terminal("write", name, "-q", stdin=tmp_path / "large")).out == b""
    assert (await run.here("info", name, "--json")).json["offset"].endswith("6000000")


async def test_a_servers_words_cannot_steer_the_terminal(run: Program, name: str, session: str) -> None:
    """Neither by escapes, nor by the controls above them, nor by line ends."""
    hostile = "\x1b[31mred\x9b2J\nnext\ud800"
    shown = await run.on_terminal("subscribe", session, "--stream", name, "--description", hostile[:-1], NO_COLOR="1")
    assert shown.code == 0
    assert "\\u001b[31mred\\u009b2J\\u000anext" in shown.text
    assert not {"\x1b", "\x9b"} & set(shown.text)
    assert printable(hostile) == "\\u001b[31mred\\u009b2J\\u000anext\\ud800"
    assert printable("gnp.\u202eexe \u2066") == "gnp.\\u202eexe \\u2066", (
        "nothing changes the direction of what follows"
    )
    complaint = await run.on_terminal("read", name, "--resume-file", "no\x1b]0;x\x07/where", NO_COLOR="1")
    assert (complaint.code, "\x1b" in complaint.text) == (1, False)
