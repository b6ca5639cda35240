"""`streamkeep keys`: make, list and revoke API keys, and rotate the key that signs URLs. Works while servers run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from streamkeep.proxy.parameters import Parsed, complain, say
from streamkeep.proxy.rules import access
from streamkeep.proxy.store_command import TENANT, WHICH_STORE, data_dir_option, run_on_store
from streamkeep.storage import DEFAULT_TENANT, ApiKey, KeyStore, Store

_EPILOG = f"""\
{WHICH_STORE}Servers learn of every change within five seconds.
"""
_LIFETIME = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ID_BYTES, _SECRET_BYTES = 8, 32
_MAX_LIMIT = 2**31 - 1


async def make_key(keys: KeyStore, template: ApiKey, *, if_first: bool = False) -> str | None:
    """Add a key like the template, with an id and a secret of its own; the text that its owner needs, which nobody can
    learn again. None, with `if_first`, when there was a key before."""
    id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
    key = replace(template, id=id, digest=access.digest(secret), created_at=datetime.now(UTC))
    return access.format_api_key(id, secret) if await keys.create(key, if_first=if_first) else None


def key_template(tenant: str = DEFAULT_TENANT, *, name: str | None = None, is_operator: bool = False) -> ApiKey:
    """A key without id and secret, for `make_key`."""
    return ApiKey("", tenant, b"", datetime.now(UTC), name, is_operator=is_operator)


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > 200:
        raise ValueError("must be one line of at most 200 characters")
    return text


def _upstream(text: str) -> str:
    (found,) = access.check_upstreams([text])
    return found


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MAX_LIMIT:
        raise ValueError("must be a number above 0")
    return int(text)


def _expiry(text: str) -> datetime:
    match = _LIFETIME.fullmatch(text)
    try:
        if match is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError("must be like 30d, 12h, or an ISO 8601 instant") from None
    return instant if instant.tzinfo is not None else instant.astimezone()


def _id(text: str) -> str:
    match = re.fullmatch(r"(?:stk_)?([0-9a-f]{16})(?:_[0-9a-f]{64})?", text)
    if match is None:
        raise ValueError("must be an id, as `streamkeep keys list` shows it")
    return match[1]


@click.group("keys", epilog=_EPILOG)
def keys_command() -> None:
    """Who may use the proxy: make, list and revoke API keys."""


@keys_command.command("create")
@click.option("--tenant", type=TENANT, default=DEFAULT_TENANT, show_default=True, help="Whose it is.")
@click.option("--name", type=Parsed("text", _name), help="What it is for, shown in lists.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    type=Parsed("name or glob", _upstream),
    help="A named upstream or URL glob that it may call; repeatable (all).",
)
@click.option("--max-running", type=Parsed("N", _limit), help="Generations at once.")
@click.option("--max-per-minute", type=Parsed("N", _limit), help="Generations begun within a minute.")
@click.option(
    "--expires",
    "expires_at",
    type=Parsed("when", _expiry),
    help="After 30d, 12h, …, or at an ISO 8601 instant.",
)
@click.option("--operator", "is_operator", is_flag=True, help="It may also do what concerns all tenants.")
@data_dir_option
@click.pass_obj
def _create(
    environ: Mapping[str, str],
    data_dir: Path | None,
    tenant: str,
    name: str | None,
    upstreams: tuple[str, ...],
    max_running: int | None,
    max_per_minute: int | None,
    expires_at: datetime | None,
    is_operator: bool,
) -> int:
    """Make a key and print it, once."""
    template = replace(
        key_template(tenant, name=name, is_operator=is_operator),
        upstreams=upstreams or None,
        max_running=max_running,
        max_per_minute=max_per_minute,
        expires_at=expires_at,
    )

    async def create(store: Store) -> int:
        say(str(await make_key(store.keys, template)))
        complain("Keep it: it is stored as a hash, and cannot be shown again.")
        return 0

    return run_on_store(environ, data_dir, create)


@keys_command.command("list")
@click.option("--tenant", type=TENANT, help="One tenant's (everybody's).")
@data_dir_option
@click.pass_obj
def _list(environ: Mapping[str, str], data_dir: Path | None, tenant: str | None) -> int:
    """Show keys, without their secrets."""

    async def show(store: Store) -> int:
        say("ID\tTENANT\tSTATE\tNAME\tUPSTREAMS\tLIMITS\tCREATED\tEXPIRES")
        for key in await store.keys.all(tenant):
            say("\t".join(_columns(key)))
        return 0

    return run_on_store(environ, data_dir, show)


@keys_command.command("revoke")
@click.argument("id", type=Parsed("ID", _id))
@data_dir_option
@click.pass_obj
def _revoke(environ: Mapping[str, str], data_dir: Path | None, id: str) -> int:
    """Make a key useless. ID is as `list` shows it, or the whole key."""

    async def revoke(store: Store) -> int:
        if await store.keys.revoke(id) is None:
            complain(f"streamkeep: there is no key stk_{id}")
            return 1
        say(f"stk_{id} is revoked; the last server refuses it within five seconds.")
        return 0

    return run_on_store(environ, data_dir, revoke)


@keys_command.command("rotate-signing-key")
@click.option("--only", is_flag=True, help="A key has leaked: what older ones signed is good no more.")
@data_dir_option
@click.pass_obj
def _rotate(environ: Mapping[str, str], data_dir: Path | None, only: bool) -> int:
    """Sign URLs with a new key from now on."""
    until = "URLs signed before that are good no more" if only else "URLs signed before stay good until they expire"

    async def rotate(store: Store) -> int:
        made = await store.keys.rotate_signing_key(secrets.token_bytes(_SECRET_BYTES), is_only=only)
        say(f"Key {made.id} signs URLs from ten seconds on; {until}.")
        return 0

    return run_on_store(environ, data_dir, rotate)


def _columns(key: ApiKey) -> tuple[str, ...]:
    limits = [f"{key.max_running} at once"] if key.max_running else []
    limits += [f"{key.max_per_minute} a minute"] if key.max_per_minute else []
    return (
        f"stk_{key.id}",
        key.tenant + (" (operator)" if key.is_operator else ""),
        _state(key),
        key.name or "-",
        "all" if key.upstreams is None else ", ".join(key.upstreams),
        ", ".join(limits) or "-",
        _shown(key.created_at),
        _shown(key.expires_at) if key.expires_at else "-",
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "active"


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
