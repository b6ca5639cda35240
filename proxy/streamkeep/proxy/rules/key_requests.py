"""What a request for an API key may say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from streamkeep.proxy.rules.access import check_upstreams
from streamkeep.proxy.rules.allowlist import AllowlistError
from streamkeep.proxy.rules.wire import BadRequest, check_tenant
from streamkeep.storage import DEFAULT_TENANT

MAX_BODY_BYTES = 16 * 1024

_FIELDS = frozenset({"tenant", "name", "isOperator", "upstreams", "maxRunning", "maxPerMinute", "seconds"})
_MAX_NAME_CHARACTERS = 200
_MAX_LIMIT = 2**31 - 1
_MAX_SECONDS = 100 * 365 * 86400


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key that is to be made; `lifetime` None: it does not expire."""

    tenant: str
    name: str | None
    is_operator: bool
    upstreams: tuple[str, ...] | None
    max_running: int | None
    max_per_minute: int | None
    lifetime: timedelta | None

    @classmethod
    def parse(cls, body: bytes) -> KeyRequest:
        """Read a JSON object, every field of which may be left out. Raises: BadRequest."""
        try:
            value = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise _bad("the body must be JSON") from None
        if not isinstance(value, dict) or not value.keys() <= _FIELDS:
            raise _bad(f"the body must be an object of {', '.join(sorted(_FIELDS))}")
        tenant, is_operator = value.get("tenant", DEFAULT_TENANT), value.get("isOperator", False)
        if not isinstance(tenant, str) or not isinstance(is_operator, bool):
            raise _bad("tenant is a text, and isOperator true or false")
        seconds = _number(value, "seconds", _MAX_SECONDS)
        return cls(
            tenant=check_tenant(tenant),
            name=_name(value.get("name")),
            is_operator=is_operator,
            upstreams=_upstreams(value.get("upstreams")),
            max_running=_number(value, "maxRunning", _MAX_LIMIT),
            max_per_minute=_number(value, "maxPerMinute", _MAX_LIMIT),
            lifetime=None if seconds is None else timedelta(seconds=seconds),
        )

    def expires_at(self, now: datetime) -> datetime | None:
        return None if self.lifetime is None else now + self.lifetime


def _name(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_NAME_CHARACTERS:
        raise _bad(f"name is a text of {_MAX_NAME_CHARACTERS} characters at most")
    return value


def _upstreams(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.isprintable() for entry in value):
        raise _bad("upstreams is a list of names and URL globs")
    try:
        return check_upstreams(value)
    except AllowlistError as exc:
        raise _bad(f"upstreams: {exc}") from None


def _number(value: dict[str, object], name: str, at_most: int) -> int | None:
    found = value.get(name)
    if found is not None and not (type(found) is int and 0 < found <= at_most):
        raise _bad(f"{name} is a number from 1 to {at_most}")
    return found if isinstance(found, int) else None


def _bad(message: str) -> BadRequest:
    return BadRequest("invalid_key", message)
