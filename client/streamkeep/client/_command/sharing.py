"""`share`: a signed link to hand on."""

from __future__ import annotations

import json

import click

from streamkeep.client._command.outcomes import EXIT_CODES
from streamkeep.client._command.output import printable
from streamkeep.client._command.parameters import as_json, seconds
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._rules import protocol

_EPILOG = f"""\
\b
Examples:
  streamkeep share logs/today
  streamkeep share inbox --append --for 1h
  streamkeep share --session my-chat --request 1 --cancel

Who has the link may do what it says until it expires, without a key, and nothing else. The default is to read, for as
long as the server's links are good.

{EXIT_CODES}"""


@click.command("share", epilog=_EPILOG)
@click.argument("name", metavar="[STREAM]", required=False)
@click.option("--session", metavar="ID", help="Share a generation of this session …")
@click.option("--request", metavar="ID", help="… the one with this id.")
@click.option("--append", is_flag=True, help="The link may also append to the stream.")
@click.option("--cancel", is_flag=True, help="The link may also cancel the generation.")
@click.option("--for", "lifetime", metavar="TIME", callback=seconds, help="How long the link is good: 3600, 12h, 7d.")
@as_json
@server_options
def share(
    name: str | None,
    session: str | None,
    request: str | None,
    append: bool,
    cancel: bool,
    lifetime: int | None,
    as_json: bool,
    server: StreamServer,
) -> int:
    """Print a signed link to a stream, or to a generation."""
    is_generation = session is not None and request is not None
    if (name is None) != is_generation or (name is not None and (session or request or cancel)):
        raise click.UsageError("name a STREAM, or a generation by --session and --request")
    if is_generation and append:
        raise click.UsageError("--append is for streams")
    subject = {"sessionId": session, "requestId": request} if name is None else {"path": _path(name, server)}
    rights = ["read", *(["append"] if append else []), *(["cancel"] if cancel else [])]
    asked: dict[str, object] = {**subject, "rights": rights}
    if lifetime is not None:
        asked["seconds"] = lifetime
    found = server.ask("POST", "/api/share", body=asked)
    if as_json:
        click.echo(json.dumps(found))
        return 0
    for which in ("url", "streamUrl", "cancelUrl"):
        if which in found:
            click.echo(printable(found[which]))
    return 0


def _path(name: str, server: StreamServer) -> str:
    """A stream's path on the server, which signs for none but its own."""
    if not name.startswith(("http://", "https://")):
        return name.lstrip("/")
    if not name.startswith(f"{server.root}/"):
        raise click.UsageError(f"only streams below {server.root} can be shared by that server")
    return protocol.path_of(name).partition("/v1/stream/")[2]
