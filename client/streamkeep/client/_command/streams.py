"""Streams as things: create, fork, close, delete, look at one, list them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, BinaryIO

import click

from streamkeep.client._command.outcomes import EXIT_CODES
from streamkeep.client._command.output import printable, write_rows
from streamkeep.client._command.parameters import as_json, seconds
from streamkeep.client._command.server import StreamServer, server_options
from streamkeep.client._errors import ProtocolError, ServerError
from streamkeep.client._handles import OCTETS, DurableStream
from streamkeep.client._retry import Patience
from streamkeep.client._rules import wire
from streamkeep.client._streams import stream

_REGISTRY = "__registry__"
_MAX_REGISTERED = 100_000
_MAX_SCHEMA_BYTES = 1024 * 1024
_WILDCARD = re.compile(r"[*?\[]")
_PATIENCE = Patience(send_seconds=10.0, silence_seconds=10.0)


_ttl = click.option("--ttl", metavar="TIME", callback=seconds, help="Delete it so long after its last use: 3600, 12h.")
_expires_at = click.option("--expires-at", metavar="INSTANT", help="Delete it then; RFC 3339.")


def _json_object(_: click.Context, __: click.Parameter, file: BinaryIO | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        found = json.loads(file.read(_MAX_SCHEMA_BYTES))
    except (ValueError, RecursionError) as exc:
        raise click.BadParameter(f"{file.name} holds no JSON, or too much of it: {exc}") from exc
    if not isinstance(found, dict):
        raise click.BadParameter(f"{file.name} holds no JSON object")
    return found


_CREATE_EPILOG = f"""\
\b
Examples:
  streamkeep create hello --content-type text/plain
  streamkeep create events --content-type application/json --ttl 30d
  streamkeep create done --expires-at 2030-01-01T00:00:00Z --closed
  streamkeep create orders --schema order.schema.json

Creating again what is there already, in the same way, is no error.

{EXIT_CODES}"""


@click.command("create", epilog=_CREATE_EPILOG)
@click.argument("name", metavar="STREAM")
@click.option("--content-type", metavar="TYPE", default=OCTETS, show_default=True, help="What it holds.")
@_ttl
@_expires_at
@click.option("--closed", is_flag=True, help="Nothing shall ever be appended.")
@click.option(
    "--schema",
    metavar="FILE",
    type=click.File("rb"),
    callback=_json_object,
    help="A JSON Schema that every message must satisfy; makes a JSON stream.",
)
@server_options
def create(
    name: str,
    content_type: str,
    ttl: int | None,
    expires_at: str | None,
    closed: bool,
    schema: dict[str, Any] | None,
    server: StreamServer,
) -> int:
    """Create a stream, and print its URL. STREAM is an id below /v1/stream/, or a whole URL."""
    url = server.stream_url(name)
    DurableStream.create(
        url,
        content_type=content_type,
        schema=schema,
        ttl_seconds=ttl,
        expires_at=expires_at,
        closed=closed,
        headers=server.headers_for(url),
        patience=_PATIENCE,
    ).disconnect()
    click.echo(wire.without_query(url))
    return 0


@click.command(
    "fork", epilog="\b\nExample:\n  streamkeep fork story other-ending --offset 0000000000000000_0000000000000042"
)
@click.argument("source")
@click.argument("name", metavar="NEW")
@click.option("--offset", help="Share what is before it; all of it otherwise.")
@click.option("--sub-offset", type=click.IntRange(0), default=0, help="So many messages, or bytes, further.")
@_ttl
@_expires_at
@server_options
def fork(
    source: str,
    name: str,
    offset: str | None,
    sub_offset: int,
    ttl: int | None,
    expires_at: str | None,
    server: StreamServer,
) -> int:
    """Create the stream NEW that begins with the data of SOURCE, and print its URL."""
    url = server.stream_url(name)
    with _handle(source, server) as handle:
        handle.fork(url, offset=offset, sub_offset=sub_offset, ttl_seconds=ttl, expires_at=expires_at)
    click.echo(wire.without_query(url))
    return 0


@click.command("close", epilog="\b\nExample:\n  streamkeep close logs/today")
@click.argument("name", metavar="STREAM")
@server_options
def close(name: str, server: StreamServer) -> int:
    """Close a stream for good, and print its final offset: readers reach its end, and nothing is appended any more."""
    with _handle(name, server) as handle:
        click.echo(printable(handle.close()))
    return 0


@click.command("delete", epilog="\b\nExample:\n  streamkeep delete hello")
@click.argument("name", metavar="STREAM")
@server_options
def delete(name: str, server: StreamServer) -> int:
    """Delete a stream and its data, at once."""
    with _handle(name, server) as handle:
        handle.delete()
    return 0


@click.command("info", epilog=f"\b\nExamples:\n  streamkeep info hello\n  streamkeep info hello --json\n\n{EXIT_CODES}")
@click.argument("name", metavar="STREAM")
@as_json
@server_options
def info(name: str, as_json: bool, server: StreamServer) -> int:
    """Tell what a stream holds, where its tail is, and when it expires."""
    with _handle(name, server) as handle:
        found = handle.head()
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return 0
    rows = {
        "url": wire.without_query(server.stream_url(name)),
        "content type": found.content_type,
        "tail": found.offset,
        "state": "closed" if found.is_closed else "open",
        "expires": found.expires_at
        or ("never" if found.ttl_seconds is None else f"{found.ttl_seconds} s after its last use"),
    }
    if found.schema_url is not None:
        rows["schema"] = found.schema_url
    for label, value in rows.items():
        click.echo(f"{click.style(f'{label:<13}', bold=True)} {printable(value)}")
    return 0


_LIST_EPILOG = f"""\
\b
Examples:
  streamkeep list
  streamkeep list 'logs/*' --json | jq -r .path

A server of ours lists them page by page. Of other servers the registry is read, a stream that tells of each creation and
deletion.

{EXIT_CODES}"""


@click.command("list", epilog=_LIST_EPILOG)
@click.argument("pattern", metavar="[GLOB]", required=False)
@as_json
@server_options
def list_streams(pattern: str | None, as_json: bool, server: StreamServer) -> int:
    """List the streams that there are, by path, with content type and time of creation."""
    found = _listed(pattern, server)
    if as_json:
        for row in found:
            click.echo(printable(json.dumps(row, ensure_ascii=False)))
        return 0
    rows = ((row.get("path"), row.get("contentType"), row.get("createdAt")) for row in found)
    write_rows(("Path", "Content type", "Created"), rows)
    return 0


def _listed(pattern: str | None, server: StreamServer) -> Iterator[dict[str, object]]:
    """The streams whose paths match, in the order of their paths."""
    prefix = "" if pattern is None else _WILDCARD.split(pattern, maxsplit=1)[0]
    rows = server.rows("streams", {"prefix": prefix} if prefix else {}, continued_by="after")
    try:
        first = next(rows, None)
    except (ServerError, ProtocolError) as exc:
        if isinstance(exc, ServerError) and exc.status not in (404, 405):
            raise
        yield from _registered(pattern, server)
        return
    for row in chain(() if first is None else (first,), rows):
        if pattern is None or fnmatchcase(str(row.get("path")), pattern):
            yield row


def _registered(pattern: str | None, server: StreamServer) -> list[dict[str, object]]:
    """The same by the registry, which tells of what was deleted too."""
    url = server.stream_url(_REGISTRY)
    known: dict[str, dict[str, object]] = {}
    with stream(url, live=False, headers=server.headers_for(url), patience=_PATIENCE) as response:
        for event in response.iter_json():
            path, value = _change(event)
            if pattern is not None and not fnmatchcase(path, pattern):
                continue
            if value is None:
                known.pop(path, None)
            else:
                known[path] = value
            if len(known) > _MAX_REGISTERED:
                raise click.ClickException(f"there are more than {_MAX_REGISTERED} streams: narrow them by a GLOB")
    return [{"path": path, **value} for path, value in sorted(known.items())]


def _change(event: object) -> tuple[str, dict[str, object] | None]:
    """A stream's path, and what is told of it; None when it is deleted."""
    if isinstance(event, dict) and isinstance(event.get("key"), str):
        value = event.get("value")
        return event["key"], value if isinstance(value, dict) else None
    raise ProtocolError("the registry holds something that is no event of a stream")


def _handle(name: str, server: StreamServer) -> DurableStream:
    url = server.stream_url(name)
    return DurableStream(url, headers=server.headers_for(url), patience=_PATIENCE)
