"""`streamkeep tenants`: how long tenants' data stay, new keys for them, and the end of a tenant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence

from streamkeep.proxy import deletion
from streamkeep.proxy.store_command import WHICH_STORE, complain, run_on_store, say, store_options, tenant
from streamkeep.storage import Erasure, Store

_EPILOG = f"""\
{WHICH_STORE}A retention counts for what is begun from now on. A deletion and a rekeying may
be broken off and repeated at any time; rekeying needs STREAMKEEP_ENCRYPTION_KEYS as servers have it.
"""
_RETENTION = re.compile(r"([1-9][0-9]{0,8})([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_BATCH_SECONDS = 5.0


def tenants_command(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """`streamkeep tenants`; returns the exit code."""
    return run_on_store(_parser().parse_args(argv), environ)


async def _list(store: Store, chosen: argparse.Namespace) -> int:
    say("TENANT\tRETENTION")
    for name, seconds in sorted((await store.retentions()).items()):
        say(f"{name}\t{seconds:g} s")
    return 0


async def _set(store: Store, chosen: argparse.Namespace) -> int:
    await store.set_retention(chosen.tenant, chosen.retention)
    if chosen.retention is None:
        say(f"Data of {chosen.tenant} stay as long as STREAMKEEP_RETENTION_SECONDS says.")
    else:
        say(
            f"Data of {chosen.tenant} stay for {chosen.retention:g} s after a generation's end, where a request says nothing."
        )
    return 0


async def _delete(store: Store, chosen: argparse.Namespace) -> int:
    active = [key for key in await store.keys.all(chosen.tenant) if key.revoked_at is None]
    if not chosen.yes:
        complain(f"streamkeep: this deletes all data of {chosen.tenant} for good; say --yes")
        return 2
    generations = 0
    while True:
        deleted = await deletion.delete(store, Erasure(chosen.tenant), within_seconds=_BATCH_SECONDS)
        generations += deleted.generations
        if not deleted.rows_remaining:
            break
        complain(f"{deleted.rows_remaining} rows remain")
    say(f"All data of {chosen.tenant} are deleted, of {generations} generations among them.")
    if active:
        ids = ", ".join(f"stk_{key.id}" for key in active)
        complain(f"It still has keys, and what they are used for is recorded again: {ids}")
    return 0


async def _rekey(store: Store, chosen: argparse.Namespace) -> int:
    streams = await store.rekey(chosen.tenant)
    say(f"{streams} streams of {chosen.tenant} are encrypted anew …")
    while await store.merge():
        pass
    say("Done. Streams that are still written get the newest key when they are closed.")
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="streamkeep tenants", description="Whose data stay, and how long.", epilog=_EPILOG, formatter_class=raw
    )
    store = store_options()
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    listing = actions.add_parser("list", parents=[store], help="show the tenants that have a retention of their own")
    listing.set_defaults(action=_list)

    setting = actions.add_parser("set", parents=[store], help="say how long a tenant's data stay")
    setting.add_argument("tenant", type=tenant)
    setting.add_argument(
        "--retention", type=_retention, required=True, metavar="TIME", help="3600, 12h, 30d, … or default"
    )
    setting.set_defaults(action=_set)

    rekeying = actions.add_parser(
        "rekey", parents=[store], help="encrypt what is stored for a tenant with the first of its keys"
    )
    rekeying.add_argument("tenant", type=tenant)
    rekeying.set_defaults(action=_rekey)

    deleting = actions.add_parser("delete", parents=[store], help="delete all data of a tenant, for good")
    deleting.add_argument("tenant", type=tenant)
    deleting.add_argument("--yes", action="store_true", help="it is meant")
    deleting.set_defaults(action=_delete)
    return parser


def _retention(text: str) -> float | None:
    if text == "default":
        return None
    match = _RETENTION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("must be a number of seconds, or like 12h or 30d, or default")
    return int(match[1]) * _UNITS[match[2]]
