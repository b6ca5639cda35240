"""What commands on a store share: which store it is, and what can go wrong with it. Works while servers run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from streamkeep.proxy.parameters import Parsed, complain
from streamkeep.proxy.rules import wire
from streamkeep.proxy.settings import InvalidSetting, Settings
from streamkeep.proxy.store import chosen_store, with_database
from streamkeep.storage import Store, StoreError
from streamkeep.storage.embedded import EmbeddedPostgresError

WHICH_STORE = """\
The database is the one at DATABASE_URL, else the embedded one in STREAMKEEP_DATA_DIR, also while a server runs on it.
"""

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The embedded Postgres' data (STREAMKEEP_DATA_DIR, .streamkeep).",
)


def run_on_store(environ: Mapping[str, str], data_dir: Path | None, action: Callable[[Store], Awaitable[int]]) -> int:
    """Run an action on the store that the environment names; returns the exit code."""
    try:
        settings = Settings.from_env(environ)
        if data_dir is not None:
            settings = replace(settings, data_dir=data_dir)
        with ExitStack() as stack:
            return asyncio.run(_run(with_database(settings, stack), action))
    except InvalidSetting as exc:
        complain(f"streamkeep: {exc}")
        return 2
    except StoreError as exc:
        complain(f"streamkeep: the store cannot be used: {exc}")
    except (EmbeddedPostgresError, OSError) as exc:
        complain(f"streamkeep: {exc}")
    return 1


async def _run(settings: Settings, action: Callable[[Store], Awaitable[int]]) -> int:
    store = chosen_store(replace(settings, database_pool_size=1))
    await store.open()
    try:
        return await action(store)
    finally:
        await store.close()


TENANT = Parsed("tenant", wire.check_tenant)
