"""When a stream's life ends (protocol 5.1), and how little a sliding end needs to be written down.

A sliding TTL starts anew with every touch, and a busy stream is touched all the time. So its end is stored with some
slack on top, and moves only when a touch needs more than is stored: a stream never expires before its TTL is over, and
at most the slack later. A TTL too short to spare any has none, and every touch moves the end.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from streamkeep.storage._types import Expiry

_SLACK_SHARE = 10
_MAX_SLACK_SECONDS = 10.0
_MIN_SLACK_SECONDS = 1.0

# Longer than any stream lives, and an end that every calendar can still write down.
_MAX_TTL_SECONDS = 1000 * 365 * 24 * 3600


def slack_seconds(ttl_seconds: int) -> float:
    """How much later than necessary a stream with this TTL may expire: a tenth of it, between 1 s and 10 s, or none."""
    share = min(ttl_seconds, _MAX_TTL_SECONDS) / _SLACK_SHARE
    return min(share, _MAX_SLACK_SECONDS) if share >= _MIN_SLACK_SECONDS else 0.0


def life_seconds(ttl_seconds: int) -> float:
    """How far ahead the end is stored, slack and all."""
    return min(ttl_seconds, _MAX_TTL_SECONDS) + slack_seconds(ttl_seconds)


def first_end(expiry: Expiry, now: datetime) -> datetime | None:
    """When a stream made now expires; None: never."""
    if expiry.ttl_seconds is None:
        return expiry.expires_at
    return now + timedelta(seconds=life_seconds(expiry.ttl_seconds))


def moved_end(ttl_seconds: int | None, ends_at: datetime | None, now: datetime) -> datetime | None:
    """Where a touch moves the stored end to; None: the stored one will do."""
    if ttl_seconds is None:
        return None
    moved = now + timedelta(seconds=life_seconds(ttl_seconds))
    if ends_at is not None and moved - ends_at <= timedelta(seconds=slack_seconds(ttl_seconds)):
        return None
    return moved


def is_over(ends_at: datetime | None, now: datetime) -> bool:
    return ends_at is not None and ends_at <= now
