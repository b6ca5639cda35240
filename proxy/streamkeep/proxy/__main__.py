"""The server's part of the `streamkeep` command: `serve` and `vendor`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from streamkeep.proxy import logs
from streamkeep.proxy.settings import InvalidSetting, Settings, streams_url
from streamkeep.storage import StoreError
from streamkeep.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError

logger = logging.getLogger(__name__)

_SERVE_EPILOG = """\
Everything else is set by environment variables; the README lists them. With DATABASE_URL the proxy uses that
Postgres, without it an embedded one whose data lie in STREAMKEEP_DATA_DIR. With STREAMKEEP_STREAMS_URL there is no
database: everything is kept on another server of the Durable Streams protocol.

Ctrl-C or SIGTERM: stop taking new work, let running generations finish (STREAMKEEP_DRAIN_SECONDS), exit.
"""


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
        "--streams-url", type=streams_url, help="another stream server to keep everything on (STREAMKEEP_STREAMS_URL)"
    )
    chosen = parser.parse_args(argv)
    try:
        settings = Settings.from_env(os.environ)
    except InvalidSetting as exc:
        print(f"streamkeep: {exc}", file=sys.stderr)
        return 2
    overrides = {name: value for name, value in vars(chosen).items() if value is not None}
    settings = replace(settings, **overrides)
    logs.configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings)
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


def vendor_command(argv: Sequence[str]) -> int:
    """`streamkeep vendor`; returns the exit code."""
    from streamkeep.proxy.vendor import vendor_command as run_vendor

    return run_vendor(list(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m streamkeep.proxy`: the server's subcommands alone."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"serve": serve_command, "vendor": vendor_command}
    if not arguments or arguments[0] not in commands:
        print(f"usage: python -m streamkeep.proxy {{{','.join(commands)}}} …", file=sys.stderr)
        return 2
    return commands[arguments[0]](arguments[1:])


def _serve(settings: Settings) -> int:
    from streamkeep.proxy.server import bind, serve_proxy
    from streamkeep.proxy.workers import Supervisor
    from streamkeep.storage.postgres import migrate
    from streamkeep.storage.remote import check

    with ExitStack() as stack:
        is_shared = settings.workers > 1
        listener = stack.enter_context(bind(settings.host, settings.port, is_shared=is_shared))
        where = "the database at DATABASE_URL"
        # Before the server starts: what is wrong with a store is told in one line.
        if settings.streams_url is not None:
            where = "the stream server at STREAMKEEP_STREAMS_URL"
            asyncio.run(check(settings.streams_url, token=settings.streams_token))
        elif settings.database_url is None:
            where = f"an embedded Postgres in {settings.data_dir}"
            postgres = stack.enter_context(
                EmbeddedPostgres.start(settings.data_dir, bin_dir=settings.postgres_bin, on_progress=logger.info)
            )
            settings = replace(settings, database_url=postgres.dsn)
        else:
            asyncio.run(migrate(settings.direct_database_url or settings.database_url))
        host, port = listener.getsockname()[:2]
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def announce() -> None:
            _announce(base, where, settings)

        if is_shared:
            return Supervisor(settings, (host, port)).run(announce)
        return serve_proxy(settings, listener, announce=announce)


def _announce(base: str, where: str, settings: Settings) -> None:
    lines = [
        f"streamkeep is ready at {base}, on {where}.",
        f"May call: {', '.join(settings.allow.globs) or 'nothing'}  (STREAMKEEP_ALLOW)",
        "",
        "Try it, with the demo vendor in another terminal (`streamkeep vendor`; in a clone, `make vendor`):",
        f"  curl -X POST {base}/api/my-chat/1 -H 'X-Proxy-Url: http://127.0.0.1:4001/v1/chat/completions' \\",
        "    -H 'Content-Type: application/json' \\",
        '    -d \'{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hello"}]}\'',
        f"  curl -N '{base}/stream/data?sessionId=my-chat&requestId=1&offset=-1&live=sse'",
        "",
        f"API: {base}/docs   Stop: Ctrl-C",
    ]
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.insert(1, f"WARNING: listening on {settings.host}: everybody who can reach it may use it.")
    print("\n".join(lines), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Until the server handles signals itself, SIGTERM unwinds like Ctrl-C, so that Postgres is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
