"""Log lines, for people or for machines. Neither ever holds a body, a query or a header's value but the request's id.

A line says which request it belongs to, and which generation where one is at work: both are set where a request begins
and travel with the tasks that it starts.

Answers are by far the most of what is logged. Those of one turn of the event loop are one record, which a formatter of
ours makes a line for each of.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from json.encoder import encode_basestring_ascii as quoted
from typing import TextIO

from streamkeep.storage import GenerationKey

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered, or that started what is going on."""

GENERATION: ContextVar[GenerationKey | None] = ContextVar("generation", default=None)
"""The generation that a request is about, or that is being recorded."""

_ACCESS_LOGGER = "streamkeep.access"
_PROBED = frozenset({"/health", "/ready", "/metrics"})
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def configure(level: str, log_format: LogFormat | None) -> None:
    """Log to standard error from now on."""
    logging.basicConfig(level=level.upper(), handlers=[handler(log_format, sys.stderr)])
    # It logs whole URLs, and queries hold keys.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def handler(log_format: LogFormat | None, stream: TextIO) -> logging.Handler:
    """Writes lines to a stream; without a format, text on a terminal and else JSON."""
    chosen = log_format or (LogFormat.TEXT if stream.isatty() else LogFormat.JSON)
    writes = logging.StreamHandler(stream)
    writes.setFormatter(JsonFormatter() if chosen is LogFormat.JSON else TextFormatter(_TEXT))
    return writes


@dataclass(slots=True)
class Answer:
    """A request that was answered. The path is as it came, without the query: signed URLs are credentials."""

    client: tuple[str, int] | None
    method: str
    path: str
    http_version: str
    status: int
    request_id: str
    generation: GenerationKey | None

    @property
    def is_noteworthy(self) -> bool:
        """Probes that find all well are not."""
        return self.path not in _PROBED or self.status != 200

    def __str__(self) -> str:
        return f'{self.peer} - "{self.method} {self.path} HTTP/{self.http_version}" {self.status}'

    @property
    def peer(self) -> str:
        return f"{self.client[0]}:{self.client[1]}" if self.client else ""


class AccessLog:
    """Logs how requests were answered, behind the turn of the loop in which they were."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(_ACCESS_LOGGER)
        self._answers: list[Answer] = []

    def note(self, answer: Answer) -> None:
        if not answer.is_noteworthy:
            return
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._write)
        self._answers.append(answer)

    def _write(self) -> None:
        answers, self._answers = self._answers, []
        if self._logger.isEnabledFor(logging.INFO):
            record = self._logger.makeRecord(self._logger.name, logging.INFO, "", 0, _Answers(answers), (), None)
            self._logger.handle(record)


class _Answers:
    """The message of a record of answers."""

    __slots__ = ("each",)

    def __init__(self, each: Sequence[Answer]) -> None:
        self.each = each

    def __str__(self) -> str:
        return "\n".join(map(str, self.each))


class TextFormatter(logging.Formatter):
    """One line for each thing that is told; a failure's traceback stands below its own. What a terminal, or a reader of
    lines, would take for its own is spelled out: names in messages may be anybody's."""

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, _Answers):
            return super().format(record)
        start = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        return "\n".join(f"{start}{answer}" for answer in record.msg.each)

    def formatMessage(self, record: logging.LogRecord) -> str:
        if not record.message.isprintable():
            record.message = "".join(
                one if one.isprintable() else one.encode("unicode_escape").decode() for one in record.message
            )
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and as far as they are known `request`, `session`,
    `generation`, `exception`, and `client`, `method`, `path`, `status` of the access log."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if isinstance(record.msg, _Answers):
            start = f'{{"time": "{time}", "level": "{record.levelname.lower()}", "logger": "{record.name}", '
            return "\n".join(start + _json_of(answer) for answer in record.msg.each)
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id, key = REQUEST_ID.get(), GENERATION.get()
        if request_id is not None:
            line["request"] = request_id
        if key is not None:
            line["session"], line["generation"] = key.session_id, key.request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII alone: nothing that a terminal or a line splitter would take for its own.
        return json.dumps(line, default=str)


def _json_of(answer: Answer) -> str:
    """The rest of an answer's line. Spelled out: a general encoder takes as long as all else about a small request."""
    key = answer.generation
    ids = "" if key is None else f', "session": {quoted(key.session_id)}, "generation": {quoted(key.request_id)}'
    return (
        f'"message": {quoted(str(answer))}, "request": {quoted(answer.request_id)}{ids}, "client": {quoted(answer.peer)}, '
        f'"method": {quoted(answer.method)}, "path": {quoted(answer.path)}, "status": {answer.status}}}'
    )
