"""Requests through the proxy: `fetch`, and what can be asked about generations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import click

from streamkeep.client._command.outcomes import (
    EXIT_CODES,
    INTERRUPTED,
    NOTHING_TO_RESUME,
    UPSTREAM_REFUSED,
    complain,
    note,
)
from streamkeep.client._command.output import printable, write, write_rows
from streamkeep.client._command.parameters import as_json
from streamkeep.client._command.server import StreamServer, header, server_options
from streamkeep.client._rules import wire

_FETCH_EPILOG = f"""\
\b
Examples:
  streamkeep fetch https://api.openai.com/v1/models -H "Authorization: Bearer $OPENAI_API_KEY"
  streamkeep fetch http://127.0.0.1:4001/v1/chat/completions --session my-chat -d @question.json
  streamkeep fetch --resume --session my-chat
  streamkeep fetch --resume --session my-chat --from-start

Put the server's key into STREAMKEEP_KEY: others on the machine can see what stands on a command line.

{EXIT_CODES}"""


@click.command("fetch", epilog=_FETCH_EPILOG)
@click.argument("url", required=False)
@click.option("-X", "--method", help="POST with -d, else GET.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="For upstream; repeatable.")
@click.option("-d", "--data", help="The body: text, @FILE, or @- for standard input; JSON where no header says.")
@click.option("--session", metavar="ID", help="Which chat this is; random otherwise.")
@click.option("--request", metavar="ID", help="Which call in it; random otherwise.")
@click.option("--resume", is_flag=True, help="Send nothing: go on with the session's last generation.")
@click.option("--from-start", is_flag=True, help="With --resume: from the first byte.")
@server_options
def fetch(
    url: str | None,
    method: str | None,
    headers: tuple[str, ...],
    data: str | None,
    session: str | None,
    request: str | None,
    resume: bool,
    from_start: bool,
    server: StreamServer,
) -> int:
    """Ask URL through the proxy, as curl would; the body goes to standard output.

    The answer is recorded while it is shown. Press Ctrl-C, close the terminal, lose the network: it goes on, and
    --resume shows the rest.
    """
    if url is None and not resume:
        raise click.UsageError("a URL is needed, or --resume")
    if resume and session is None:
        raise click.UsageError("--resume needs --session")
    sent = dict(map(header, headers))
    content = None if data is None else _content(data)
    if content is not None and all(name.lower() != "content-type" for name in sent):
        sent["Content-Type"] = "application/json"
    with server.fetch_client() as client:
        response = client.fetch(
            url,
            method=method,
            headers=sent,
            content=content,
            session_id=session,
            request_id=request,
            resume=resume,
            replay_from_start=from_start,
        )
        if wire.NOTHING_TO_RESUME in response.headers:
            complain(f"nothing to resume ({response.headers[wire.NOTHING_TO_RESUME]})")
            return NOTHING_TO_RESUME
        session_id = response.headers[wire.SESSION_ID]
        try:
            with closing(response):
                for piece in response.iter_raw():
                    write(piece)
        except KeyboardInterrupt:
            again = f"streamkeep fetch --resume --session {session_id}"
            note(f"interrupted; the generation goes on. To read on: {again}")
            return INTERRUPTED
        if response.is_success:
            return 0
        complain(f"upstream answered {response.status_code}")
        return UPSTREAM_REFUSED


@click.command("active", epilog="\b\nExample:\n  streamkeep active my-chat")
@click.argument("session")
@server_options
def active(session: str, server: StreamServer) -> int:
    """List a session's generations that run, or ended within the hour, newest first."""
    with server.fetch_client() as client:
        found = client.active(session)
    rows = ((each.request_id, each.state, each.code, each.created_at, each.content_type) for each in found)
    write_rows(("Request", "State", "Code", "Created", "Content type"), rows)
    return 0


_limit = click.option(
    "-n", "--limit", type=click.IntRange(1, 1_000_000_000), default=100, show_default=True, help="The newest so many."
)
_text = click.option("-q", "--query", metavar="TEXT", help="Those whose ids contain it.")


@click.command(
    "sessions",
    epilog="\b\nExamples:\n  streamkeep sessions\n  streamkeep sessions -q support --json | jq -r .sessionId",
)
@_text
@_limit
@as_json
@server_options
def sessions(query: str | None, limit: int, as_json: bool, server: StreamServer) -> int:
    """List sessions, by their newest generation."""
    found = _listing(server, "sessions", limit, {"q": query})
    columns = ("sessionId", "generations", "live", "firstAt", "lastAt")
    _show(("Session", "Generations", "Running", "First", "Last"), columns, found, as_json=as_json)
    return 0


_GENERATIONS_EPILOG = f"""\
\b
Examples:
  streamkeep generations
  streamkeep generations my-chat
  streamkeep generations --state live
  streamkeep generations --state error,cancelled -n 1000 --json

{EXIT_CODES}"""


@click.command("generations", epilog=_GENERATIONS_EPILOG)
@click.argument("session", required=False)
@click.option("--state", metavar="STATES", help="live, or creating, running, done, error, cancelled, refused.")
@_text
@_limit
@as_json
@server_options
def generations(
    session: str | None, state: str | None, query: str | None, limit: int, as_json: bool, server: StreamServer
) -> int:
    """List generations, newest first; with SESSION those of one."""
    found = _listing(server, "generations", limit, {"session": session, "state": state, "q": query})
    columns = ("sessionId", "requestId", "state", "code", "createdAt", "endedAt", "bytes", "contentType")
    headings = ("Session", "Request", "State", "Code", "Created", "Ended", "Bytes", "Content type")
    _show(headings, columns, found, as_json=as_json)
    return 0


@click.command("cancel", epilog="\b\nExample:\n  streamkeep cancel my-chat 1")
@click.argument("session")
@click.argument("request")
@server_options
def cancel(session: str, request: str, server: StreamServer) -> int:
    """Stop a generation, for every reader; what came so far is kept."""
    with server.fetch_client() as client:
        click.echo(printable(client.cancel(session, request)))
    return 0


def _listing(
    server: StreamServer, what: str, limit: int, asked: Mapping[str, str | None]
) -> Iterator[dict[str, object]]:
    params = {name: value for name, value in asked.items() if value is not None}
    return islice(server.rows(what, params, limit=limit, continued_by="before"), limit)


def _show(
    headings: Sequence[str], columns: Sequence[str], found: Iterable[dict[str, object]], *, as_json: bool
) -> None:
    if as_json:
        for row in found:
            click.echo(printable(json.dumps(row, ensure_ascii=False)))
    else:
        write_rows(headings, ([row.get(column) for column in columns] for row in found))


def _content(argument: str) -> bytes:
    if argument == "@-":
        return sys.stdin.buffer.read()
    if argument.startswith("@"):
        return Path(argument[1:]).read_bytes()
    return argument.encode()
