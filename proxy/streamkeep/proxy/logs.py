"""Log lines, for people or for machines. Neither ever holds a body, a query or a header's value but the request's id.

A line says which request it belongs to, and which generation where one is at work: both are set where a request begins
and travel with the tasks that it starts.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from streamkeep.storage import GenerationKey

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered, or that started what is going on."""

GENERATION: ContextVar[GenerationKey | None] = ContextVar("generation", default=None)
"""The generation that a request is about, or that is being recorded."""

_ACCESS_LOGGER = "uvicorn.access"
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
    # On the logger, so that no handler of anybody's sees more.
    logging.getLogger(_ACCESS_LOGGER).addFilter(tidy_access)


def handler(log_format: LogFormat | None, stream: TextIO) -> logging.Handler:
    """Writes lines to a stream; without a format, text on a terminal and else JSON."""
    chosen = log_format or (LogFormat.TEXT if stream.isatty() else LogFormat.JSON)
    writes = logging.StreamHandler(stream)
    writes.setFormatter(JsonFormatter() if chosen is LogFormat.JSON else logging.Formatter(_TEXT))
    return writes


def tidy_access(record: logging.LogRecord) -> bool:
    """Signed URLs are credentials: the access log shows paths only. Probes that find all well are not shown at all."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, target, version, status = record.args
        path = str(target).partition("?")[0]
        record.args = (client, method, path, version, status)
        return not (path in _PROBED and status == 200)
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and as far as they are known `request`, `session`,
    `generation`, `exception`, and `client`, `method`, `path`, `status` of the access log."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id, key = REQUEST_ID.get(), GENERATION.get()
        if request_id is not None:
            line["request"] = request_id
        if key is not None:
            line["session"], line["generation"] = key.session_id, key.request_id
        if record.name == _ACCESS_LOGGER and isinstance(record.args, tuple) and len(record.args) == 5:
            line["client"], line["method"], line["path"], _, line["status"] = record.args
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII alone: nothing that a terminal or a line splitter would take for its own.
        return json.dumps(line, default=str)
