"""`streamkeep tenants`: how long tenants' data stay, new keys for them, and the end of a tenant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click

from streamkeep.proxy import deletion
from streamkeep.proxy.parameters import Parsed, complain, say
from streamkeep.proxy.store_command import TENANT, WHICH_STORE, data_dir_option, run_on_store
from streamkeep.storage import Erasure, Store

_EPILOG = f"""\
{WHICH_STORE}A retention counts for what is begun from now on. A deletion and a rekeying may
be broken off and repeated at any time; rekeying needs STREAMKEEP_ENCRYPTION_KEYS as servers have it.
"""
_RETENTION = re.compile(r"([1-9][0-9]{0,8})([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_BATCH_SECONDS = 5.0
_DEFAULT = "default"


def _retention(text: str) -> str | float:
    if text == _DEFAULT:
        return text
    match = _RETENTION.fullmatch(text)
    if match is None:
        raise ValueError("must be a number of seconds, or like 12h or 30d, or default")
    return float(int(match[1]) * _UNITS[match[2]])


@click.group("tenants", epilog=_EPILOG)
def tenants_command() -> None:
    """Whose data stay, and how long."""


@tenants_command.command("list")
@data_dir_option
@click.pass_obj
def _list(environ: Mapping[str, str], data_dir: Path | None) -> int:
    """Show the tenants that have a retention of their own."""

    async def show(store: Store) -> int:
        say("TENANT\tRETENTION")
        for name, seconds in sorted((await store.retentions()).items()):
            say(f"{name}\t{seconds:g} s")
        return 0

    return run_on_store(environ, data_dir, show)


@tenants_command.command("set")
@click.argument("tenant", type=TENANT)
@click.option("--retention", type=Parsed("time", _retention), required=True, help="3600, 12h, 30d, … or default.")
@data_dir_option
@click.pass_obj
def _set(environ: Mapping[str, str], data_dir: Path | None, tenant: str, retention: str | float) -> int:
    """Say how long a tenant's data stay."""
    seconds = None if isinstance(retention, str) else retention

    async def change(store: Store) -> int:
        await store.set_retention(tenant, seconds)
        if seconds is None:
            say(f"Data of {tenant} stay as long as STREAMKEEP_RETENTION_SECONDS says.")
        else:
            say(f"Data of {tenant} stay for {seconds:g} s after a generation's end, where a request says nothing.")
        return 0

    return run_on_store(environ, data_dir, change)


@tenants_command.command("rekey")
@click.argument("tenant", type=TENANT)
@data_dir_option
@click.pass_obj
def _rekey(environ: Mapping[str, str], data_dir: Path | None, tenant: str) -> int:
    """Encrypt what is stored for a tenant with the first of its keys."""

    async def rekey(store: Store) -> int:
        streams = await store.rekey(tenant)
        say(f"{streams} streams of {tenant} are encrypted anew …")
        while await store.merge():
            pass
        say("Done. Streams that are still written get the newest key when they are closed.")
        return 0

    return run_on_store(environ, data_dir, rekey)


@tenants_command.command("delete")
@click.argument("tenant", type=TENANT)
@click.option("--yes", is_flag=True, help="It is meant.")
@data_dir_option
@click.pass_obj
def _delete(environ: Mapping[str, str], data_dir: Path | None, tenant: str, yes: bool) -> int:
    """Delete all data of a tenant, for good."""
    if not yes:
        complain(f"streamkeep: this deletes all data of {tenant} for good; say --yes")
        return 2

    async def delete(store: Store) -> int:
        active = [key for key in await store.keys.all(tenant) if key.revoked_at is None]
        generations = 0
        while True:
            deleted = await deletion.delete(store, Erasure(tenant), within_seconds=_BATCH_SECONDS)
            generations += deleted.generations
            if not deleted.rows_remaining:
                break
            complain(f"{deleted.rows_remaining} rows remain")
        say(f"All data of {tenant} are deleted, of {generations} generations among them.")
        if active:
            ids = ", ".join(f"stk_{key.id}" for key in active)
            complain(f"It still has keys, and what they are used for is recorded again: {ids}")
        return 0

    return run_on_store(environ, data_dir, delete)
