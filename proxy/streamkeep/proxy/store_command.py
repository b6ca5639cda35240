"""What commands on a store share: which store it is, what can go wrong with it, and how they speak. Works while servers run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.proxy.settings import InvalidSetting, Settings
from streamkeep.proxy.store import chosen_store, with_database
from streamkeep.storage import Store, StoreError
from streamkeep.storage.embedded import EmbeddedPostgresError

WHICH_STORE = """\
The database is the one at DATABASE_URL, else the embedded one in STREAMKEEP_DATA_DIR, also while a server runs on it.
"""

Action = Callable[[Store, argparse.Namespace], Awaitable[int]]


def store_options() -> argparse.ArgumentParser:
    """A parent for the parsers of such commands' actions."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-dir", type=Path, help="the embedded Postgres' data (STREAMKEEP_DATA_DIR, .streamkeep)")
    return parser


def run_on_store(chosen: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run `chosen.action` on the store that the environment names; returns the exit code."""
    try:
        settings = Settings.from_env(environ)
        if chosen.data_dir is not None:
            settings = replace(settings, data_dir=chosen.data_dir)
        with ExitStack() as stack:
            return asyncio.run(_run(with_database(settings, stack), chosen))
    except InvalidSetting as exc:
        complain(f"streamkeep: {exc}")
        return 2
    except StoreError as exc:
        complain(f"streamkeep: the store cannot be used: {exc}")
    except (EmbeddedPostgresError, OSError) as exc:
        complain(f"streamkeep: {exc}")
    except KeyboardInterrupt:
        pass
    return 1


async def _run(settings: Settings, chosen: argparse.Namespace) -> int:
    store = chosen_store(replace(settings, database_pool_size=1))
    await store.open()
    try:
        action: Action = chosen.action
        return await action(store, chosen)
    finally:
        await store.close()


def tenant(text: str) -> str:
    """A tenant's name, as a parser's type."""
    try:
        return wire.check_tenant(text)
    except BadRequest as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")
