"""`streamkeep keys`: make, list and revoke API keys, and rotate the key that signs URLs. Works while servers run."""

from __future__ import annotations

import argparse
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from streamkeep.proxy.rules import access
from streamkeep.proxy.rules.allowlist import AllowlistError
from streamkeep.proxy.store_command import WHICH_STORE, complain, run_on_store, say, store_options, tenant
from streamkeep.storage import DEFAULT_TENANT, ApiKey, KeyStore, Store

_EPILOG = f"""\
{WHICH_STORE}Servers learn of every change within five seconds.
"""
_LIFETIME = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ID_BYTES, _SECRET_BYTES = 8, 32
_MAX_LIMIT = 2**31 - 1


def keys_command(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """`streamkeep keys`; returns the exit code."""
    return run_on_store(_parser().parse_args(argv), environ)


async def make_key(keys: KeyStore, template: ApiKey, *, if_first: bool = False) -> str | None:
    """Add a key like the template, with an id and a secret of its own; the text that its owner needs, which nobody can
    learn again. None, with `if_first`, when there was a key before."""
    id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
    key = replace(template, id=id, digest=access.digest(secret), created_at=datetime.now(UTC))
    return access.format_api_key(id, secret) if await keys.create(key, if_first=if_first) else None


def key_template(tenant: str = DEFAULT_TENANT, *, name: str | None = None, is_operator: bool = False) -> ApiKey:
    """A key without id and secret, for `make_key`."""
    return ApiKey("", tenant, b"", datetime.now(UTC), name, is_operator=is_operator)


async def _create(store: Store, chosen: argparse.Namespace) -> int:
    template = replace(
        key_template(chosen.tenant, name=chosen.name, is_operator=chosen.operator),
        upstreams=None if chosen.upstream is None else tuple(chosen.upstream),
        max_running=chosen.max_running,
        max_per_minute=chosen.max_per_minute,
        expires_at=chosen.expires,
    )
    say(str(await make_key(store.keys, template)))
    complain("Keep it: it is stored as a hash, and cannot be shown again.")
    return 0


async def _list(store: Store, chosen: argparse.Namespace) -> int:
    say("ID\tTENANT\tSTATE\tNAME\tUPSTREAMS\tLIMITS\tCREATED\tEXPIRES")
    for key in await store.keys.all(chosen.tenant):
        limits = [f"{key.max_running} at once"] if key.max_running else []
        limits += [f"{key.max_per_minute} a minute"] if key.max_per_minute else []
        columns = (
            f"stk_{key.id}",
            key.tenant + (" (operator)" if key.is_operator else ""),
            _state(key),
            key.name or "-",
            "all" if key.upstreams is None else ", ".join(key.upstreams),
            ", ".join(limits) or "-",
            _shown(key.created_at),
            _shown(key.expires_at) if key.expires_at else "-",
        )
        say("\t".join(columns))
    return 0


async def _revoke(store: Store, chosen: argparse.Namespace) -> int:
    if await store.keys.revoke(chosen.id) is None:
        complain(f"streamkeep: there is no key stk_{chosen.id}")
        return 1
    say(f"stk_{chosen.id} is revoked; the last server refuses it within five seconds.")
    return 0


async def _rotate(store: Store, chosen: argparse.Namespace) -> int:
    made = await store.keys.rotate_signing_key(secrets.token_bytes(_SECRET_BYTES), is_only=chosen.only)
    until = (
        "URLs signed before that are good no more" if chosen.only else "URLs signed before stay good until they expire"
    )
    say(f"Key {made.id} signs URLs from ten seconds on; {until}.")
    return 0


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "active"


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="streamkeep keys", description="Who may use the proxy.", epilog=_EPILOG, formatter_class=raw
    )
    database = store_options()
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    create = actions.add_parser("create", parents=[database], help="make a key and print it, once")
    create.add_argument("--tenant", type=tenant, default=DEFAULT_TENANT, help="whose it is (%(default)s)")
    create.add_argument("--name", type=_name, help="what it is for, shown in lists")
    create.add_argument(
        "--upstream", action="append", type=_upstream, help="a named upstream or URL glob it may call; repeatable (all)"
    )
    create.add_argument("--max-running", type=_limit, metavar="N", help="generations at once")
    create.add_argument("--max-per-minute", type=_limit, metavar="N", help="generations begun within a minute")
    create.add_argument("--expires", type=_expiry, metavar="WHEN", help="after 30d, 12h, …, or at an ISO 8601 instant")
    create.add_argument("--operator", action="store_true", help="it may also do what concerns all tenants")
    create.set_defaults(action=_create)

    listing = actions.add_parser("list", parents=[database], help="show keys, without their secrets")
    listing.add_argument("--tenant", type=tenant, help="one tenant's (everybody's)")
    listing.set_defaults(action=_list)

    revoke = actions.add_parser("revoke", parents=[database], help="make a key useless")
    revoke.add_argument("id", type=_id, help="as `list` shows it, or the whole key")
    revoke.set_defaults(action=_revoke)

    rotate = actions.add_parser("rotate-signing-key", parents=[database], help="sign URLs with a new key from now on")
    rotate.add_argument("--only", action="store_true", help="a key has leaked: what older ones signed is good no more")
    rotate.set_defaults(action=_rotate)
    return parser


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > 200:
        raise argparse.ArgumentTypeError("must be one line of at most 200 characters")
    return text


def _upstream(text: str) -> str:
    try:
        (found,) = access.check_upstreams([text])
    except AllowlistError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return found


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MAX_LIMIT:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return int(text)


def _expiry(text: str) -> datetime:
    match = _LIFETIME.fullmatch(text)
    try:
        if match is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be like 30d, 12h, or an ISO 8601 instant") from None
    return instant if instant.tzinfo is not None else instant.astimezone()


def _id(text: str) -> str:
    match = re.fullmatch(r"(?:stk_)?([0-9a-f]{16})(?:_[0-9a-f]{64})?", text)
    if match is None:
        raise argparse.ArgumentTypeError("must be an id, as `streamkeep keys list` shows it")
    return match[1]
