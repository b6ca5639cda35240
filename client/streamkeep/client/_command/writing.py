"""`write`: from an argument or a pipe into a stream, in bounded memory, each byte stored once."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import click

from streamkeep.client._command.outcomes import EXIT_CODES
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._handles import DurableStream
from streamkeep.client._producer import IdempotentProducer
from streamkeep.client._rules import protocol
from streamkeep.client._rules.json_values import JsonValues

_PIECE_BYTES = 64 * 1024
_BUFFERED_BYTES = 4 * 1024 * 1024

_EPILOG = f"""\
\b
Examples:
  streamkeep write hello "some text"
  tail -f app.log | streamkeep write logs/today
  streamkeep write backup --close < backup.tar
  streamkeep write events '{{"step": 1}}'
  streamkeep write events --batch-json '[{{"step": 2}}, {{"step": 3}}]'

Input of any size goes through in some 20 MiB of memory. It is sent by an idempotent producer: what a broken connection
leaves unanswered is sent again, and stored once.

{EXIT_CODES}"""


@click.command("write", epilog=_EPILOG)
@click.argument("name", metavar="STREAM")
@click.argument("data", required=False)
@click.option("--json", "is_json", is_flag=True, help="JSON values, one message each; assumed for a JSON stream.")
@click.option("--batch-json", is_flag=True, help="A JSON array whose items are the messages.")
@click.option("--close", "closes", is_flag=True, help="Close the stream behind it.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar on a terminal.")
@server_options
def write(
    name: str,
    data: str | None,
    is_json: bool,
    batch_json: bool,
    closes: bool,
    quiet: bool,
    server: StreamServer,
) -> int:
    """Append DATA, or standard input, to a stream. Everything is stored when the command ends with 0."""
    if is_json and batch_json:
        raise click.UsageError("--json and --batch-json say different things of the same input")
    if data is None and sys.stdin is None:
        raise click.ClickException("the standard input is closed")
    url = server.stream_url(name)
    pieces = _pipe() if data is None else [data.encode("utf-8", "surrogateescape")]
    with DurableStream.connect(url, headers=server.headers_for(url)) as handle, _progress(data, quiet) as advance:
        holds_json = protocol.is_json(handle.content_type)
        if (is_json or batch_json) and not holds_json:
            raise click.UsageError(f"the stream holds {handle.content_type}, not JSON messages")
        # The id is this run's own, so no epoch can be taken by another.
        with IdempotentProducer(handle, f"streamkeep-{uuid4()}", max_buffered_bytes=_BUFFERED_BYTES) as producer:
            for piece in _messages(pieces, of_arrays=batch_json) if holds_json else pieces:
                producer.append(piece)
                advance(len(piece))
            if closes:
                producer.close()
    return 0


def _messages(pieces: Iterable[bytes], *, of_arrays: bool) -> Iterator[bytes]:
    values = JsonValues(of_arrays=of_arrays)
    try:
        for piece in pieces:
            yield from values.feed(piece)
        yield from values.end()
    except ValueError as exc:
        raise click.ClickException(str(exc)) from exc


def _pipe() -> Iterator[bytes]:
    """Standard input as it comes."""
    while piece := os.read(sys.stdin.fileno(), _PIECE_BYTES):
        yield piece


@contextmanager
def _progress(data: str | None, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many bytes went through, of a file also how many there are."""
    if quiet or data is not None or sys.stdin.isatty() or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    state = os.fstat(sys.stdin.fileno())
    total = state.st_size if stat.S_ISREG(state.st_mode) else None
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("write", total=total)
        yield lambda count: progress.advance(task, count)
