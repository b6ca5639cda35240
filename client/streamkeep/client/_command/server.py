"""Where the server is and who asks: the options that commands share, and the addresses that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import click

from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import BlockingChannel, run_blocking
from streamkeep.client._errors import ProtocolError
from streamkeep.client._fetch import FetchClient
from streamkeep.client._peer import Address, Peer
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, wire

_DEFAULT_URL = "http://127.0.0.1:4000"
_STREAMS = "/v1/stream"
_ASK_SECONDS = 10.0
_PAGE_ROWS = 500
_IN_PATHS = "/-._~!$&'()*+,;=:@"

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class StreamServer:
    """A server at a URL. Its key, and `headers`, go to that origin alone, whatever other URLs a command is given."""

    url: str
    key: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def root(self) -> str:
        """Below it lie streams that are named by their ids."""
        base = self.url.rstrip("/")
        return base if base.endswith(_STREAMS) else base + _STREAMS

    @property
    def base(self) -> str:
        """Below it lie the proxy's own routes."""
        return self.url.rstrip("/").removesuffix(_STREAMS)

    def stream_url(self, name: str) -> str:
        """The URL of a stream by its id, or by its URL. Raises: click.UsageError: the id would lead elsewhere."""
        if name.startswith(("http://", "https://")):
            return name
        if {".", ".."} & set(name.split("/")):
            raise click.UsageError("a stream's id has no segments that are . or ..")
        return f"{self.root}/{quote(name.lstrip('/'), safe=_IN_PATHS)}"

    def headers_for(self, url: str) -> dict[str, str]:
        """What a request to a URL says of who asks."""
        if wire.origin(url) != wire.origin(self.url):
            return {}
        return {**({} if self.key is None else {wire.KEY: self.key}), **dict(self.headers)}

    def fetch_client(self) -> FetchClient:
        """A client for what is asked of the proxy itself."""
        return FetchClient(self.base, key=self.key, auth=dict(self.headers))

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> dict[str, object]:
        """Ask one of the proxy's own routes that answers with a JSON object. Raises: StreamkeepError."""
        channel = BlockingChannel()
        address = Address(self.base + path, self.headers_for(self.base), params)
        peer = Peer(channel, address, within=timeouts_of(_ASK_SECONDS), patience=Patience(send_seconds=_ASK_SECONDS))
        content = b"" if body is None else json.dumps(body).encode()
        try:
            answer = run_blocking(peer.ask(method, {"Content-Type": protocol.JSON} if content else {}, content))
        finally:
            run_blocking(channel.close())
        found = protocol.parse_json(answer.content, "the answer")
        if not isinstance(found, dict):
            raise ProtocolError("the answer is not a JSON object, so it is not the proxy's")
        return found

    def rows(
        self, what: str, asked: Mapping[str, str], *, continued_by: str, limit: int | None = None
    ) -> Iterator[dict[str, object]]:
        """What one of the proxy's listings tells, page by page; of `limit` rows no more are asked for than needed.

        Raises: StreamkeepError.
        """
        params, left = dict(asked), limit
        while left is None or left > 0:
            size = _PAGE_ROWS if left is None else min(left, _PAGE_ROWS)
            page = self.ask("GET", f"/api/{what}", params={**params, "limit": str(size)})
            rows, following = page.get(what), page.get("next")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ProtocolError(f"the listing of {what} is not a list of objects")
            yield from rows
            left = None if left is None else left - len(rows)
            if not rows or not isinstance(following, str):
                return
            params[continued_by] = following


def server_options(command: F) -> F:
    """The options that say where the server is; they become the one argument `server`."""
    url = click.option(
        "--server",
        metavar="URL",
        envvar="STREAM_URL",
        default=_DEFAULT_URL,
        callback=_server,
        help=f"The server (STREAM_URL, {_DEFAULT_URL}).",
    )
    key = click.option(
        "--key", envvar="STREAMKEEP_KEY", is_eager=True, expose_value=False, callback=_keep_key,
        help="The server's key (STREAMKEEP_KEY); sent to that server alone.",
    )  # fmt: skip
    return url(key(command))


def _keep_key(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and not wire.is_header_value(value):
        raise click.BadParameter("a key is ASCII without control characters", context, parameter)
    context.meta[wire.KEY] = value


def _server(context: click.Context, parameter: click.Parameter, value: str) -> StreamServer:
    try:
        wire.proxy_base(value)
        wire.origin(value)
    except ValueError:
        message = "must be an absolute http or https URL, without query, fragment and credentials"
        raise click.BadParameter(message, context, parameter) from None
    return StreamServer(value, context.meta[wire.KEY])


def header(line: str) -> tuple[str, str]:
    """A header as it is written for curl. Raises: click.UsageError."""
    name, colon, value = (part.strip() for part in line.partition(":"))
    if not colon or not wire.is_header_name(name):
        raise click.UsageError("a header is written 'Name: value'")
    if not wire.is_header_value(value):
        raise click.UsageError(f"the value of the header {name} is not ASCII without control characters")
    return name, value
