"""`subscribe` and `work`: have streams watched, and run a command on what comes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

import click

from streamkeep.client._command.outcomes import EXIT_CODES, complain, note
from streamkeep.client._command.output import printable
from streamkeep.client._command.parameters import as_json, seconds
from streamkeep.client._command.reading import pieces
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._errors import LeaseLost
from streamkeep.client._handles import DurableStream
from streamkeep.client._rules import protocol
from streamkeep.client._rules.subscriptions import SubscribedStream, Subscription
from streamkeep.client._subscriptions import Subscriptions, Work, Worker

_LOOK_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 30.0

_SUBSCRIBE_EPILOG = f"""\
\b
Examples:
  streamkeep subscribe resizers --pattern 'images/*'
  streamkeep subscribe audit --stream orders --stream refunds --webhook https://ours.example/hook
  streamkeep subscribe resizers
  streamkeep subscribe resizers --delete

Without --webhook it is for workers (`streamkeep work`), and wake-ups are told in the stream ID-wakes.

{EXIT_CODES}"""


@click.command("subscribe", epilog=_SUBSCRIBE_EPILOG)
@click.argument("id")
@click.option("--pattern", metavar="GLOB", help="Watch all streams whose path matches.")
@click.option("--stream", "streams", multiple=True, metavar="PATH", help="Watch this stream; repeatable.")
@click.option("--webhook", metavar="URL", help="Send wake-ups there.")
@click.option("--wake-stream", metavar="PATH", help="Tell wake-ups there instead of in ID-wakes.")
@click.option("--lease", metavar="TIME", callback=seconds, help="How long a worker has a wake-up before it renews.")
@click.option("--description", metavar="TEXT", help="For whoever looks at it.")
@click.option("--delete", "deletes", is_flag=True, help="End it.")
@as_json
@server_options
def subscribe(
    id: str,
    pattern: str | None,
    streams: tuple[str, ...],
    webhook: str | None,
    wake_stream: str | None,
    lease: int | None,
    description: str | None,
    deletes: bool,
    as_json: bool,
    server: StreamServer,
) -> int:
    """Subscribe to streams under the name ID. Without streams: show the subscription."""
    with Subscriptions(server.root, headers=server.headers_for(server.root)) as subscriptions:
        if deletes:
            subscriptions.delete(id)
            return 0
        if pattern is None and not streams:
            found = subscriptions.get(id)
        else:
            wakes = None if webhook is not None else _wake_stream(wake_stream or f"{id}-wakes", server)
            found = subscriptions.create(
                id,
                pattern=pattern,
                streams=streams,
                webhook_url=webhook,
                wake_stream=wakes,
                lease_seconds=lease,
                description=description,
            )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show(found)
    return 0


_WORK_EPILOG = f"""\
\b
Examples:
  streamkeep subscribe resizers --pattern 'images/*'
  streamkeep work resizers -- ./resize.sh
  streamkeep work resizers --once -- sh -c 'echo "$STREAM_PATH: $(cat)"'

The command runs once for each stream with news. It finds what is new on its standard input (of a JSON stream one message
a line), and STREAM_PATH, STREAM_OFFSET and STREAM_URL in its environment. When it ends with 0 that is done; otherwise,
or when this machine dies, it is handed out again, here or to another worker. Run as many as you like, anywhere.

{EXIT_CODES}"""


@click.command("work", epilog=_WORK_EPILOG)
@click.argument("id")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", default="streamkeep work", show_default=True, help="Tells the server who works.")
@click.option("--once", is_flag=True, help="End after one piece of work, with the command's exit code.")
@server_options
@click.pass_obj
def work(
    environ: Mapping[str, str], /, id: str, command: tuple[str, ...], name: str, once: bool, server: StreamServer
) -> int:
    """Run COMMAND on whatever comes to the streams of the subscription ID, until SIGTERM or Ctrl-C."""
    pause_seconds = _FIRST_PAUSE_SECONDS
    is_stopped = False

    def handle(piece: Work) -> None:
        nonlocal pause_seconds
        for watched in piece.streams:
            if watched.has_pending is not False and watched.acked_offset != watched.tail_offset:
                _run(command, {**environ, "STREAM_URL": server.base}, piece, watched)
        pause_seconds = _FIRST_PAUSE_SECONDS
        if once:
            worker.stop()

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        worker.stop()

    with Subscriptions(server.root, headers=server.headers_for(server.root)) as subscriptions:
        worker = Worker(subscriptions, id, handle, name=name)
        signal.signal(signal.SIGTERM, stop)
        while True:
            try:
                worker.run()
                return 0
            except _CommandFailed as exc:
                complain(str(exc))
                if once or is_stopped:
                    return exc.code
            note(f"the work is handed out again; going on in {pause_seconds:g} s")
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)


class _CommandFailed(Exception):
    """The command ended with another code than 0: negative for a signal."""

    def __init__(self, command: str, path: str, code: int) -> None:
        super().__init__(f"`{command}` ended with {code} on {path}")
        self.code = code if code > 0 else 128 - code


def _run(command: tuple[str, ...], environ: dict[str, str], work: Work, watched: SubscribedStream) -> None:
    """Run the command on what is new in a stream. Raises: _CommandFailed, LeaseLost, OSError: it cannot be run."""
    own = {"STREAM_PATH": watched.path, "STREAM_OFFSET": watched.acked_offset}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**environ, **own}) as process:
        try:
            offset = _feed(process, work, watched)
            while process.poll() is None:
                if work.is_lost:
                    raise LeaseLost("the lease has ended while the command ran")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise _CommandFailed(command[0], watched.path, process.returncode)
    work.ack(watched.path, offset)


def _feed(process: subprocess.Popen[bytes], work: Work, watched: SubscribedStream) -> str:
    """Write what is new to the command's standard input; the offset after it. A command may leave it unread."""
    assert process.stdin is not None
    offset = watched.acked_offset
    is_wanted = True
    with work.stream(watched.path).stream(offset=offset, live=False) as response:
        for data, after in pieces(response):
            offset = after
            if work.is_lost:
                raise LeaseLost("the lease has ended while the command ran")
            try:
                if is_wanted:
                    process.stdin.write(data)
            except BrokenPipeError:
                is_wanted = False
    with suppress(BrokenPipeError):
        process.stdin.close()
    return offset


def _wake_stream(path: str, server: StreamServer) -> str:
    url = server.stream_url(path)
    DurableStream.create(url, content_type=protocol.JSON, headers=server.headers_for(url)).disconnect()
    return path


def _show(found: Subscription) -> None:
    rows = {
        "id": found.id,
        "type": found.type,
        "status": found.status,
        "pattern": found.pattern,
        "wakes": found.wake_stream or found.webhook_url,
        "lease": f"{found.lease_seconds:g} s",
        "description": found.description,
    }
    for label, value in rows.items():
        if value is not None:
            click.echo(f"{click.style(f'{label:<12}', bold=True)} {printable(value)}")
    for watched in found.streams:
        told = printable(f"{watched.path} acknowledged up to {watched.acked_offset}")
        click.echo(f"{click.style('stream      ', bold=True)} {told}")
