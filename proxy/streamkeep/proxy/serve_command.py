"""`streamkeep serve`: run the proxy."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import click

from streamkeep.proxy import logs
from streamkeep.proxy.parameters import Parsed, complain
from streamkeep.proxy.settings import InvalidSetting, Settings, streams_url
from streamkeep.storage import StoreError
from streamkeep.storage.embedded import EmbeddedPostgresError

_EPILOG = """\
Everything else is set by environment variables; the README lists them. With DATABASE_URL the proxy uses that
Postgres, without it an embedded one whose data lie in STREAMKEEP_DATA_DIR. With STREAMKEEP_STREAMS_URL there is no
database: everything is kept on another server of the Durable Streams protocol.

Without keys (`streamkeep keys create`, or STREAMKEEP_KEYS) it serves its own machine alone.

Ctrl-C or SIGTERM: stop taking new work, let running generations finish (STREAMKEEP_DRAIN_SECONDS), exit.
"""

_NO_KEYS = """\
streamkeep: there are no keys yet, so whoever reaches {host} could use your vendors' accounts. One of these helps:
  streamkeep keys create        make a key, on this database, and start again
  streamkeep serve --first-key  the same in one step: the key is printed once
  STREAMKEEP_KEYS=...           a key of your own choice, 16 characters or more
  streamkeep serve --host 127.0.0.1
"""
_DEVELOPMENT_MODE = "Development mode: there are no keys, and this machine alone is served.  (streamkeep keys create)"


@click.command("serve", epilog=_EPILOG)
@click.option("--host", help="Address to listen on (STREAMKEEP_HOST, 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, 0 for a free one (STREAMKEEP_PORT, 4000).")
@click.option("--workers", type=int, metavar="N", help="How many processes share the port (STREAMKEEP_WORKERS, 1).")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The embedded Postgres' data (STREAMKEEP_DATA_DIR, .streamkeep).",
)
@click.option(
    "--streams-url",
    type=Parsed("URL", streams_url),
    help="Another stream server to keep everything on (STREAMKEEP_STREAMS_URL).",
)
@click.option("--dev", is_flag=True, help="Start anew whenever the source of the package changes; for its developers.")
@click.option("--first-key", is_flag=True, help="Where there was never a key, make the operator's and print it, once.")
@click.pass_obj
def serve_command(environ: Mapping[str, str], /, dev: bool, first_key: bool, **chosen: object) -> int:
    """Run the proxy."""
    try:
        settings = Settings.from_env(environ)
    except InvalidSetting as exc:
        complain(f"streamkeep: {exc}")
        return 2
    overrides = {name: value for name, value in chosen.items() if value is not None}
    settings = replace(settings, **overrides)  # type: ignore[arg-type]  # options are named and typed as the settings are
    if dev and settings.workers > 1:
        raise click.UsageError("--dev starts one process anew, not several workers")
    logs.configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings, first_key=first_key, is_dev=dev)
    except KeyboardInterrupt:
        return 0
    except StoreError as exc:
        where = "database at DATABASE_URL" if settings.streams_url is None else "server at STREAMKEEP_STREAMS_URL"
        complain(f"streamkeep: the {where} cannot be used: {exc}")
        return 1
    except (EmbeddedPostgresError, OSError) as exc:
        complain(f"streamkeep: {exc}")
        return 1


def _serve(settings: Settings, *, first_key: bool, is_dev: bool) -> int:
    from streamkeep.proxy.reloading import serve_and_reload
    from streamkeep.proxy.server import bind, serve_proxy
    from streamkeep.proxy.store import with_database
    from streamkeep.proxy.workers import Supervisor
    from streamkeep.storage.remote import check

    with ExitStack() as stack:
        is_shared = settings.workers > 1
        listener = stack.enter_context(bind(settings.host, settings.port, is_shared=is_shared))
        where = _where(settings)
        settings = with_database(settings, stack)
        # Before the server starts: what is wrong with a store is told in one line.
        if settings.streams_url is not None:
            asyncio.run(check(settings.streams_url, token=settings.streams_token))
        doors = asyncio.run(_doors(settings, first_key=first_key))
        host, port = listener.getsockname()[:2]
        if doors.is_open and not ip_address(host).is_loopback:
            complain(_NO_KEYS.format(host=host))
            return 2
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def announce() -> None:
            _announce(base, where, settings, doors)

        if is_shared:
            return Supervisor(settings, (host, port)).run(announce)
        if is_dev:
            return serve_and_reload(settings, listener, announce=announce)
        return serve_proxy(settings, listener, announce=announce)


def _where(settings: Settings) -> str:
    if settings.streams_url is not None:
        return "the stream server at STREAMKEEP_STREAMS_URL"
    if settings.database_url is not None:
        return "the database at DATABASE_URL"
    return f"an embedded Postgres in {settings.data_dir}"


@dataclass(frozen=True, slots=True)
class _Doors:
    """Whether everybody may come in, and the key that was made just now, if one was."""

    is_open: bool
    first_key: str | None = field(repr=False)


async def _doors(settings: Settings, *, first_key: bool) -> _Doors:
    """Bring the store up to date, make the first key where that is asked for, and see whether there are keys."""
    from streamkeep.proxy.keys_command import key_template, make_key
    from streamkeep.proxy.store import chosen_store

    store = chosen_store(settings)
    await store.open()
    try:
        made = None
        if first_key and not settings.has_keys:
            made = await make_key(store.keys, key_template(name="first", is_operator=True), if_first=True)
        return _Doors(not settings.has_keys and not await store.keys.exists(), made)
    finally:
        await store.close()


def _announce(base: str, where: str, settings: Settings, doors: _Doors) -> None:
    key = doors.first_key or "$STREAMKEEP_KEY"
    with_key = [] if doors.is_open else [f'    -H "Streamkeep-Key: {key}" \\']
    lines = [
        f"streamkeep is ready at {base}, on {where}.",
        *([_DEVELOPMENT_MODE] if doors.is_open else []),
        f"May call: {', '.join(settings.allow.globs) or 'nothing'}  (STREAMKEEP_ALLOW)",
        *(["", f"The first key, shown this once: {doors.first_key}"] if doors.first_key else []),
        "",
        "Try it, with the demo vendor in another terminal (`streamkeep vendor`; in a clone, `make vendor`):",
        f"  curl -X POST {base}/api/my-chat/1 -H 'X-Proxy-Url: http://127.0.0.1:4001/v1/chat/completions' \\",
        *with_key,
        "    -H 'Content-Type: application/json' \\",
        '    -d \'{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hello"}]}\'',
        f"  curl -N '{base}/stream/data?sessionId=my-chat&requestId=1&offset=-1&live=sse'"
        + (" \\" if with_key else ""),
        *(line.removesuffix(" \\") for line in with_key),
        "",
        f"API: {base}/docs   Stop: Ctrl-C",
    ]
    click.echo("\n".join(lines))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Until the server handles signals itself, SIGTERM unwinds like Ctrl-C, so that Postgres is stopped."""
    raise KeyboardInterrupt
