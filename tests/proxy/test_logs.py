"""Log lines: what they say, in both forms, and the id by which a request's lines are found again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from streamkeep.proxy import logs
from streamkeep.proxy.logs import AccessLog, Answer, JsonFormatter, LogFormat
from streamkeep.storage import GenerationKey
from tests.serving import Proxy
from tests.upstream import upstream, whole


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What the process logs as JSON while the test runs."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel("INFO")
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


async def line_of(written: StringIO, is_meant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first line of a kind; it may come a little after the answer."""
    async with asyncio.timeout(60):
        while True:
            lines: list[dict[str, Any]] = [json.loads(line) for line in written.getvalue().splitlines()]
            found = [line for line in lines if is_meant(line)]
            if found:
                return found[0]
            await asyncio.sleep(0.01)


async def test_a_requests_lines_and_its_generations_lines_have_its_id(proxy: Proxy, written: StringIO) -> None:
    async with upstream(whole(b"hello", "text/plain")) as server:
        await proxy.create("chat", "7", server.url, X_Request_ID="trace-me")
        await proxy.ending("chat", "7")
    access = await line_of(written, lambda line: line.get("path") == "/api/chat/7")
    assert (access["method"], access["status"], access["logger"]) == ("POST", 200, "streamkeep.access")
    end = await line_of(written, lambda line: line["message"].endswith("complete, 5 bytes"))
    for line in (access, end):
        assert (line["request"], line["session"], line["generation"]) == ("trace-me", "chat", "7")
        assert line["level"] == "info"
        assert line["time"].endswith("+00:00")


async def test_an_answer_carries_the_requests_id_and_a_strange_one_is_replaced(proxy: Proxy) -> None:
    async def answered(given: str) -> str:
        return str((await proxy.client.get("/health", headers={"X-Request-ID": given})).headers["X-Request-ID"])

    assert await answered("from-my-gateway") == "from-my-gateway"
    for strange in ("a b", "x" * 201, '"}', "-first", ""):
        made = await answered(strange)
        assert made != strange
        assert len(made) == 16
    assert await answered("") != await answered("")


async def test_a_creations_answer_names_its_generation(proxy: Proxy) -> None:
    async with upstream(whole(b"hello", "text/plain")) as server:
        answer = await proxy.create("chat", "7", server.url, X_Request_ID="other")
    assert answer.headers.get_list("X-Request-ID") == ["7"]


async def test_the_access_log_shows_paths_alone_and_no_probe_that_finds_all_well(
    proxy: Proxy, written: StringIO
) -> None:
    for target in ("/health?probe=1", "/stream/data?sessionId=secret", "/nowhere/a%0Ab%22?last"):
        await proxy.client.get(target)
    assert (await line_of(written, lambda line: line.get("path") == "/stream/data"))["status"] == 400
    last = await line_of(written, lambda line: str(line.get("path")).startswith("/nowhere"))
    assert last["message"] == f'{last["client"]} - "GET /nowhere/a%0Ab%22 HTTP/1.1" 404'
    access = [
        line for line in map(json.loads, written.getvalue().splitlines()) if line["logger"] == "streamkeep.access"
    ]
    assert not [line for line in access if line["path"] == "/health" or "secret" in str(line)]


async def test_a_probe_that_fails_is_logged(written: StringIO) -> None:
    AccessLog().note(Answer(None, "GET", "/ready", "1.1", 503, "r", None))
    assert (await line_of(written, lambda line: line.get("path") == "/ready"))["status"] == 503


async def test_each_answer_of_one_turn_has_a_line_of_its_own_in_either_form() -> None:
    text, json_lines = StringIO(), StringIO()
    logger, level = logging.getLogger("streamkeep.access"), logging.getLogger("streamkeep.access").level
    handlers = [logs.handler(LogFormat.TEXT, text), logs.handler(LogFormat.JSON, json_lines)]
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        log = AccessLog()
        for path in ("/a", "/b"):
            log.note(Answer(("peer", 1), "GET", path, "1.1", 200, "r", GenerationKey("t", "s", "g")))
        await asyncio.sleep(0)
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
    ends = [f'INFO streamkeep.access: peer:1 - "GET {path} HTTP/1.1" 200' for path in ("/a", "/b")]
    assert [line.endswith(end) for line, end in zip(text.getvalue().splitlines(), ends, strict=True)] == [True, True]
    found = [json.loads(line) for line in json_lines.getvalue().splitlines()]
    assert [line["path"] for line in found] == ["/a", "/b"]
    assert {(line["session"], line["generation"], line["request"]) for line in found} == {("s", "g", "r")}


def test_a_json_line_is_one_line_whatever_is_logged() -> None:
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "a\nb %s \u2028\x1b[0m", ("c\r\n",), None)
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "a\nb c\r\n \u2028\x1b[0m"


@pytest.mark.parametrize(
    ("chosen", "is_terminal", "is_json"),
    [(None, True, False), (None, False, True), (LogFormat.TEXT, False, False), (LogFormat.JSON, True, True)],
)
def test_the_form_follows_the_setting_or_else_the_terminal(
    chosen: LogFormat | None, is_terminal: bool, is_json: bool
) -> None:
    class Stream(StringIO):
        def isatty(self) -> bool:
            return is_terminal

    assert isinstance(logs.handler(chosen, Stream()).formatter, JsonFormatter) is is_json


def test_a_text_line_is_one_line_whatever_is_logged() -> None:
    text = StringIO()
    handler = logs.handler(LogFormat.TEXT, text)
    handler.handle(logging.LogRecord("x", logging.ERROR, __file__, 1, "é %s \u2028", ("c\r\n\x1b[0m\ud800",), None))
    assert text.getvalue().endswith(" ERROR x: é c\\r\\n\\x1b[0m\\ud800 \\u2028\n")
