"""`read` and `tail`: a stream, or a generation by its stream URL, to standard output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import click

from streamkeep.client._body import GenerationBody
from streamkeep.client._calls import DEFAULT_TIMEOUT, timeouts_of
from streamkeep.client._channel import BlockingChannel, run_blocking
from streamkeep.client._command.outcomes import EXIT_CODES
from streamkeep.client._command.output import write
from streamkeep.client._command.resume_file import ResumeFile
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._errors import ProtocolError
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, wire
from streamkeep.client._rules.decoding import StreamChunk
from streamkeep.client._rules.json_values import JsonValues
from streamkeep.client._rules.last_lines import LastLines
from streamkeep.client._server import Server
from streamkeep.client._streams import LiveMode, StreamResponse, stream

_HURRIED = Patience(silence_seconds=10.0)
_STEADY = Patience()

_READ_EPILOG = f"""\
\b
Examples:
  streamkeep read hello                          what is there now
  streamkeep read hello --follow                 and what comes, until the stream is closed
  streamkeep read hello -f --resume-file .hello  each run goes on where the last one was
  streamkeep read logs/today | grep error | head -3

A JSON stream gives one message a line. STREAM is an id below /v1/stream/ or a whole URL; a generation's stream URL is
read to its end, and the exit code tells how that was.

{EXIT_CODES}"""


@click.command("read", epilog=_READ_EPILOG)
@click.argument("name", metavar="STREAM")
@click.option("--offset", help="Where to begin: one that was given, -1 for the start, now for the tail.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more, until the stream is closed.")
@click.option("--live", type=click.Choice(["sse", "long-poll"]), help="How to wait; chosen by the content otherwise.")
@click.option(
    "--resume-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep there how far it was read; go on there.",
)
@server_options
def read(
    name: str, offset: str | None, follow: bool, live: str | None, resume_file: Path | None, server: StreamServer
) -> int:
    """Write a stream to standard output."""
    url = server.stream_url(name)
    kept = None if resume_file is None else ResumeFile(resume_file, url)
    start = (kept.offset() if kept is not None else None) or offset
    control_url = _control_url(url)
    if control_url is not None:
        chunks = _generation(url, control_url, start, server)
    else:
        mode: LiveMode = cast("Literal['sse', 'long-poll'] | None", live) or follow
        chunks = _stream(url, start, mode, server)
    for data, after in chunks:
        write(data)
        if kept is not None:
            kept.keep(after)
    return 0


_TAIL_EPILOG = f"""\
\b
Examples:
  streamkeep tail logs/today
  streamkeep tail logs/today -n 10

{EXIT_CODES}"""


@click.command("tail", epilog=_TAIL_EPILOG)
@click.argument("name", metavar="STREAM")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 100_000),
    default=0,
    help="Show the last so many lines first, of at most 16 MiB.",
)
@server_options
def tail(name: str, lines: int, server: StreamServer) -> int:
    """Show what comes to a stream from now on, until it is closed."""
    url = server.stream_url(name)
    offset = protocol.NOW
    if lines:
        last = LastLines(lines)
        for data, after in _stream(url, None, False, server):
            last.feed(data)
            offset = after
        write(last.shown())
    for data, _ in _stream(url, offset, True, server):
        write(data)
    return 0


def _stream(url: str, offset: str | None, live: LiveMode, server: StreamServer) -> Iterator[tuple[bytes, str]]:
    """What to show of a stream, and the offset after it."""
    with stream(
        url,
        offset=offset,
        live=live,
        headers=server.headers_for(url),
        patience=_HURRIED if live is False else _STEADY,
    ) as response:
        yield from pieces(response)


def pieces(response: StreamResponse) -> Iterator[tuple[bytes, str]]:
    """What a stream's reader is shown, each piece with the offset after it: bytes, or messages one a line."""
    for chunk in response.iter_chunks():
        is_json = protocol.is_json(response.content_type)
        yield _lines(chunk) if is_json else chunk.data, chunk.offset


def _lines(chunk: StreamChunk) -> bytes:
    """Messages as they were sent, one a line. Line ends between them are white space, since JSON's strings have none."""
    try:
        messages = JsonValues(of_arrays=True, max_bytes=len(chunk.data)).feed(chunk.data)
    except ValueError as exc:
        raise ProtocolError("what came from a JSON stream is not an array") from exc
    return b"".join(message.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n" for message in messages)


def _control_url(url: str) -> str | None:
    """Where a generation's end is told, when the URL is that of its data stream."""
    path = protocol.path_of(url)
    if path != "/stream/data" and not path.startswith("/v1/stream/generations/"):
        return None
    try:
        return wire.control_url_of(url)
    except ValueError:
        return None


def _generation(url: str, control_url: str, offset: str | None, server: StreamServer) -> Iterator[tuple[bytes, str]]:
    """A generation's bytes to its end, each with the offset after it."""
    position = 0 if offset in (None, protocol.START) else _position(offset)
    channel = BlockingChannel()
    auth = server.headers_for(url)
    body = GenerationBody(
        channel,
        Server(channel, wire.origin_url(url), auth=auth, patience=_STEADY),
        wire.Creation("", "", "running", url, control_url),
        start=position,
        within=timeouts_of(DEFAULT_TIMEOUT),
        patience=_STEADY,
    )
    try:
        while (data := run_blocking(body.next_chunk())) is not None:
            position += len(data)
            yield data, wire.offset_of(position)
    finally:
        run_blocking(body.close())
        run_blocking(channel.close())


def _position(offset: str | None) -> int:
    try:
        return wire.position_of(offset)
    except ProtocolError as exc:
        raise click.UsageError(str(exc)) from None
