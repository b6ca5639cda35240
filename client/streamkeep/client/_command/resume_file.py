"""A file that keeps how far a stream was read, so that the next run of a command goes on there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from streamkeep.client._rules import wire

_MAX_BYTES = 64 * 1024


class ResumeFile:
    """What was read of one stream. The file is replaced whole, so that no crash leaves half of one."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = wire.without_query(url)

    def offset(self) -> str | None:
        """Where to go on; None at the first time. Raises: click.UsageError: the file is not this stream's."""
        if self._path.exists() and not self._path.is_file():
            raise click.UsageError(f"{self._path} is not a file")
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            url, offset = found["url"], found["offset"]
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise click.UsageError(f"{self._path} is not a resume file") from None
        if url != self._url or not isinstance(offset, str):
            raise click.UsageError(f"{self._path} belongs to another stream")
        return offset

    def keep(self, offset: str) -> None:
        """Everything before an offset is done."""
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        beside.write_text(json.dumps({"url": self._url, "offset": offset}) + "\n")
        beside.replace(self._path)
