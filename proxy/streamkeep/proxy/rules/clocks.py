"""How long upstream may take, and what of it a request may choose for itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from streamkeep.proxy.rules.wire import BadRequest

_FIELDS = {
    "connect": "connect_seconds",
    "first_byte": "first_byte_seconds",
    "idle": "idle_seconds",
    "total": "total_seconds",
}
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Clocks:
    """Upstream's time for a connection, for the head of its answer, between two pieces of content, and for all of it."""

    connect_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    total_seconds: float

    def with_times(self, times: Mapping[str, object]) -> Clocks:
        """These clocks with other times, by the names that `shortened` takes. Raises: ValueError."""
        if not times:
            return self
        chosen: dict[str, float] = {}
        for name, seconds in times.items():
            if name not in _FIELDS:
                raise ValueError(f"{name[:64]!r} is not one of {', '.join(_FIELDS)}")
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be a positive number of seconds")
            chosen[_FIELDS[name]] = float(seconds)
        return replace(self, **chosen)

    def shortened(self, text: str) -> Clocks:
        """These clocks with some that run out sooner: `first_byte=30, idle=10.5`. Raises: BadRequest."""
        chosen: dict[str, float] = {}
        for part in text.split(","):
            name, _, seconds = (word.strip() for word in part.partition("="))
            field = _FIELDS.get(name)
            if field is None or field in chosen or not _SECONDS.fullmatch(seconds):
                raise BadRequest("invalid_timeout", f"{part.strip()[:64]!r} is not one of {_FORMS}, each given once")
            chosen[field] = float(seconds)
            limit: float = getattr(self, field)
            if not 0 < chosen[field] <= limit:
                raise BadRequest("invalid_timeout", f"{name} may be up to {limit:g} seconds here")
        return replace(self, **chosen)


_FORMS = ", ".join(f"{name}=SECONDS" for name in _FIELDS)
