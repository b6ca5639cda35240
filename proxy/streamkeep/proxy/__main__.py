"""The server's part of the `streamkeep` command: `serve`, `keys`, `tenants` and `vendor`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from streamkeep.proxy import logs
from streamkeep.proxy.settings import InvalidSetting, Settings, streams_url
from streamkeep.storage import StoreError
from streamkeep.storage.embedded import EmbeddedPostgresError

_SERVE_EPILOG = """\
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


def serve_command(argv: Sequence[str]) -> int:
    """`streamkeep serve`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="streamkeep serve",
        description="Run the proxy.",
        epilog=_SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (STREAMKEEP_HOST, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (STREAMKEEP_PORT, 4000)")
    parser.add_argument("--workers", type=int, help="how many processes share the port (STREAMKEEP_WORKERS, 1)")
    parser.add_argument("--data-dir", type=Path, help="the embedded Postgres' data (STREAMKEEP_DATA_DIR, .streamkeep)")
    parser.add_argument(
        "--streams-url", type=_streams_url, help="another stream server to keep everything on (STREAMKEEP_STREAMS_URL)"
    )
    parser.add_argument(
        "--first-key", action="store_true", help="where there was never a key, make the operator's and print it, once"
    )
    chosen = vars(parser.parse_args(argv))
    first_key: bool = chosen.pop("first_key")
    try:
        settings = Settings.from_env(os.environ)
    except InvalidSetting as exc:
        print(f"streamkeep: {exc}", file=sys.stderr)
        return 2
    overrides = {name: value for name, value in chosen.items() if value is not None}
    settings = replace(settings, **overrides)
    logs.configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings, first_key=first_key)
    except KeyboardInterrupt:
        return 0
    except EmbeddedPostgresError as exc:
        print(f"streamkeep: {exc}", file=sys.stderr)
        return 1
    except StoreError as exc:
        where = "database at DATABASE_URL" if settings.streams_url is None else "server at STREAMKEEP_STREAMS_URL"
        print(f"streamkeep: the {where} cannot be used: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"streamkeep: {exc}", file=sys.stderr)
        return 1


def _streams_url(text: str) -> str:
    """As the variable is read. The parser's own complaint would quote what was given, password and all."""
    try:
        return streams_url(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def vendor_command(argv: Sequence[str]) -> int:
    """`streamkeep vendor`; returns the exit code."""
    from streamkeep.proxy.vendor import vendor_command as run_vendor

    return run_vendor(list(argv))


def keys_command(argv: Sequence[str]) -> int:
    """`streamkeep keys`; returns the exit code."""
    from streamkeep.proxy.keys_command import keys_command as run_keys

    return run_keys(argv, os.environ)


def tenants_command(argv: Sequence[str]) -> int:
    """`streamkeep tenants`; returns the exit code."""
    from streamkeep.proxy.tenants_command import tenants_command as run_tenants

    return run_tenants(argv, os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m streamkeep.proxy`: the server's subcommands alone."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"serve": serve_command, "keys": keys_command, "tenants": tenants_command, "vendor": vendor_command}
    if not arguments or arguments[0] not in commands:
        print(f"usage: python -m streamkeep.proxy {{{','.join(commands)}}} …", file=sys.stderr)
        return 2
    return commands[arguments[0]](arguments[1:])


def _serve(settings: Settings, *, first_key: bool) -> int:
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
            print(_NO_KEYS.format(host=host), file=sys.stderr)
            return 2
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def announce() -> None:
            _announce(base, where, settings, doors)

        if is_shared:
            return Supervisor(settings, (host, port)).run(announce)
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
    print("\n".join(lines), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Until the server handles signals itself, SIGTERM unwinds like Ctrl-C, so that Postgres is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
