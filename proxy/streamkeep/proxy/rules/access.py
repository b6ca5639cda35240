"""Who asks, and what they may do: the values behind every route's first question.

A request carries at most one credential of ours: an API key, a bootstrap key or a JWT. Where it may stand depends on the
route, since on some of them `Authorization` is the vendor's. `access.py` turns it into a `Principal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Right(StrEnum):
    """What a signed URL may permit; the values are those on the wire."""

    READ = "read"
    CANCEL = "cancel"
    APPEND = "append"


class Credentials(Enum):
    """Where a request may carry our credential. `Streamkeep-Key` is ours everywhere, and wins over the others."""

    OURS = "ours"
    """Also `Authorization: Bearer`: routes on which no vendor is called."""

    VENDORS = "vendors"
    """Nowhere else: the other headers are the vendor's and go to upstream."""

    SDKS = "sdks"
    """Also in whichever header an SDK puts its key: routes where the vendor's key is configured here."""

    PROXY = "proxy"
    """Also `Authorization: Bearer` or the parameter `secret`: the open proxy protocol."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many generations at once, and how many begun within a minute; None: no limit."""

    max_running: int | None = None
    max_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """In whose name a request acts. `key_id` names the key that was used and `subject` the user that a JWT speaks of.

    `upstreams` are the named upstreams and URL globs that it may call; None: all that this proxy may.
    """

    tenant: str
    key_id: str | None = None
    subject: str | None = None
    upstreams: tuple[str, ...] | None = None
    limits: Limits = Limits()
    is_operator: bool = False

    @property
    def holder(self) -> str | None:
        """Under which name its generations are counted against its limits; None where nobody is known."""
        if self.key_id is not None:
            return f"key:{self.key_id}"
        return None if self.subject is None else f"subject:{self.subject}"
