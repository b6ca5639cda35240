"""The `streamkeep` command: the client's subcommands, and those of the server where it is installed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import NoReturn

import httpx

from streamkeep.client import _errors as errors
from streamkeep.client._body import GenerationBody
from streamkeep.client._calls import DEFAULT_TIMEOUT, timeouts_of
from streamkeep.client._channel import BlockingChannel, run_blocking
from streamkeep.client._fetch import FetchClient
from streamkeep.client._retry import Patience
from streamkeep.client._rules import wire
from streamkeep.client._server import Server

_DEFAULT_PROXY = "http://127.0.0.1:4000"

_FAILED = 1
_MISUSED = 2
_NOTHING_TO_RESUME = 3
_UPSTREAM_REFUSED = 4
_PROXY_REFUSED = 5
_INTERRUPTED = 130
_PIPE_CLOSED = 141
_ENDINGS: dict[type[errors.GenerationError], int] = {
    errors.Truncated: 10,
    errors.UpstreamFailed: 11,
    errors.TimedOut: 12,
    errors.Stalled: 13,
    errors.TooLarge: 14,
    errors.StorageUnavailable: 15,
    errors.OwnerLost: 16,
    errors.Shutdown: 17,
    errors.GenerationCancelled: 18,
}

_EXIT_CODES = """\
exit codes:
  0   the generation is complete           10  truncated             15  storage_unavailable
  1   the proxy cannot be reached, etc.    11  upstream_failed       16  owner_lost
  2   wrong usage                          12  timed_out             17  shutdown
  3   nothing to resume                    13  stalled               18  cancelled
  4   upstream answered with an error      14  too_large             130 interrupted (Ctrl-C)
  5   the proxy refused                                              141 the output was closed
"""

_EPILOG = """\
server commands (with the extra `proxy`):
{server}

The client's commands take the proxy's URL from --proxy or STREAMKEEP_PROXY_URL ({proxy} otherwise),
and its key from --key or STREAMKEEP_KEY.

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    server_commands = {found.name: found for found in entry_points(group="streamkeep.commands")}
    if arguments and arguments[0] in server_commands:
        return _run_server_command(server_commands[arguments[0]], arguments[1:])
    chosen = _parser(sorted(server_commands)).parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = chosen.run
    with _outcomes() as outcome:
        outcome.code = run(chosen)
    return outcome.code


def _run_server_command(command: EntryPoint, arguments: list[str]) -> int:
    """Its module is imported only now, since it may need what a client's installation does not have."""
    try:
        run: Callable[[list[str]], int] = command.load()
        return run(arguments)
    except ImportError as exc:
        print(f"streamkeep: `{command.name}` needs the server, which is not installed: {exc}", file=sys.stderr)
        print("Install it with: pip install 'streamkeep[proxy]'", file=sys.stderr)
        return _MISUSED


def _parser(server_commands: list[str]) -> argparse.ArgumentParser:
    epilog = _EPILOG.format(proxy=_DEFAULT_PROXY, server="\n".join(f"  streamkeep {name}" for name in server_commands))
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="streamkeep",
        description="Requests whose responses survive broken connections, refreshes and crashes.",
        epilog=epilog + _EXIT_CODES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"streamkeep {version('streamkeep')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    proxy = argparse.ArgumentParser(add_help=False)
    proxy.add_argument(
        "--proxy",
        metavar="URL",
        default=os.environ.get("STREAMKEEP_PROXY_URL", _DEFAULT_PROXY),
        help="where the proxy is (STREAMKEEP_PROXY_URL, %(default)s)",
    )
    proxy.add_argument("--key", default=os.environ.get("STREAMKEEP_KEY"), help="the proxy's key (STREAMKEEP_KEY)")

    fetch = commands.add_parser(
        "fetch", parents=[proxy], help="send a request through the proxy, or resume one", epilog=_EXIT_CODES,
        formatter_class=raw,
    )  # fmt: skip
    fetch.add_argument("url", nargs="?", metavar="URL", help="what upstream is asked; not needed with --resume")
    fetch.add_argument("-X", "--method", help="default: POST with -d, else GET")
    fetch.add_argument("-H", "--header", action="append", default=[], metavar="'Name: value'", help="for upstream")
    fetch.add_argument(
        "-d", "--data", metavar="DATA", help="the body, as text, @FILE, or @- for the standard input; JSON"
    )
    fetch.add_argument("--session", metavar="ID", help="which chat this is; random otherwise")
    fetch.add_argument("--request", metavar="ID", help="which call in it; random otherwise")
    fetch.add_argument("--resume", action="store_true", help="send nothing; go on with the session's last generation")
    fetch.add_argument("--from-start", action="store_true", help="with --resume: from the first byte")
    fetch.set_defaults(run=_fetch)

    read = commands.add_parser(
        "read", help="read a generation by its stream URL, to its end", epilog=_EXIT_CODES, formatter_class=raw
    )
    read.add_argument("url", metavar="STREAM_URL", help="the streamUrl of a generation")
    read.add_argument("--position", type=int, default=0, metavar="BYTE", help="where to begin (0)")
    read.set_defaults(run=_read)

    active = commands.add_parser("active", parents=[proxy], help="list a session's generations, newest first")
    active.add_argument("session", metavar="SESSION")
    active.set_defaults(run=_active)

    cancel = commands.add_parser("cancel", parents=[proxy], help="stop a generation, for every reader")
    cancel.add_argument("session", metavar="SESSION")
    cancel.add_argument("request", metavar="REQUEST")
    cancel.set_defaults(run=_cancel)
    return parser


def _fetch(chosen: argparse.Namespace) -> int:
    if chosen.url is None and not chosen.resume:
        _misused("a URL is needed, or --resume")
    if chosen.resume and chosen.session is None:
        _misused("--resume needs --session")
    headers = dict(_header(line) for line in chosen.header)
    content = None if chosen.data is None else _data(chosen.data)
    if content is not None and all(name.lower() != "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    with FetchClient(chosen.proxy, key=chosen.key) as client:
        response = client.fetch(
            chosen.url,
            method=chosen.method,
            headers=headers,
            content=content,
            session_id=chosen.session,
            request_id=chosen.request,
            resume=chosen.resume,
            replay_from_start=chosen.from_start,
        )
        if wire.NOTHING_TO_RESUME in response.headers:
            print(f"streamkeep: nothing to resume ({response.headers[wire.NOTHING_TO_RESUME]})", file=sys.stderr)
            return _NOTHING_TO_RESUME
        session_id = response.headers[wire.SESSION_ID]
        try:
            with closing(response):
                for chunk in response.iter_raw():
                    _write(chunk)
        except KeyboardInterrupt:
            again = f"streamkeep fetch --resume --session {session_id}"
            print(f"\nstreamkeep: interrupted; the generation goes on. To read on: {again}", file=sys.stderr)
            return _INTERRUPTED
        if response.is_success:
            return 0
        print(f"streamkeep: upstream answered {response.status_code}", file=sys.stderr)
        return _UPSTREAM_REFUSED


def _read(chosen: argparse.Namespace) -> int:
    try:
        control_url = wire.control_url_of(chosen.url)
    except ValueError as exc:
        _misused(str(exc))
    if not 0 <= chosen.position <= wire.MAX_POSITION:
        _misused("--position must be the number of a byte")
    channel = BlockingChannel()
    server = Server(channel, wire.origin_url(chosen.url), auth={}, patience=Patience())
    creation = wire.Creation("", "", "running", chosen.url, control_url)
    body = GenerationBody(
        channel, server, creation, start=chosen.position, within=timeouts_of(DEFAULT_TIMEOUT), patience=Patience()
    )
    try:
        while (chunk := run_blocking(body.next_chunk())) is not None:
            _write(chunk)
    finally:
        run_blocking(body.close())
        run_blocking(channel.close())
    return 0


def _active(chosen: argparse.Namespace) -> int:
    with FetchClient(chosen.proxy, key=chosen.key) as client:
        for found in client.active(chosen.session):
            columns = (
                found.request_id,
                found.state,
                found.code or "-",
                found.created_at or "-",
                found.content_type or "-",
            )
            print("\t".join(columns))
    return 0


def _cancel(chosen: argparse.Namespace) -> int:
    with FetchClient(chosen.proxy, key=chosen.key) as client:
        print(client.cancel(chosen.session, chosen.request))
    return 0


class _Outcome:
    code = _FAILED


@contextmanager
def _outcomes() -> Iterator[_Outcome]:
    """Turn what goes wrong into a line on the standard error, and an exit code."""
    outcome = _Outcome()
    try:
        yield outcome
        sys.stdout.flush()
    except errors.GenerationError as exc:
        outcome.code = _ENDINGS.get(type(exc), _FAILED)
        print(f"streamkeep: {exc}", file=sys.stderr)
    except errors.ServerError as exc:
        outcome.code = _PROXY_REFUSED
        print(f"streamkeep: {exc}", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our output has gone. What is still buffered for them must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.code = _PIPE_CLOSED
    except (errors.StreamkeepError, httpx.TransportError, httpx.InvalidURL, OSError, ValueError) as exc:
        print(f"streamkeep: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        outcome.code = _INTERRUPTED


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        _misused(f"a header is written 'Name: value', not {name!r}")
    return name.strip(), value.strip()


def _data(argument: str) -> bytes:
    if argument == "@-":
        return sys.stdin.buffer.read()
    if argument.startswith("@"):
        return Path(argument[1:]).read_bytes()
    return argument.encode()


def _misused(message: str) -> NoReturn:
    print(f"streamkeep: {message}", file=sys.stderr)
    raise SystemExit(_MISUSED)


if __name__ == "__main__":
    sys.exit(main())
