"""Cursors (protocol 10): the token on live answers by which caches collapse readers, and which never goes back."""

from __future__ import annotations

import re
from datetime import UTC, datetime

INTERVAL_SECONDS = 20
_EPOCH = datetime(2024, 10, 9, tzinfo=UTC).timestamp()
_MAX_JITTER_INTERVALS = 3600 // INTERVAL_SECONDS
_FORM = re.compile(r"[0-9]{1,15}")


def next_cursor(client_cursor: str | None, *, now: float, jitter: float) -> str:
    """The cursor for an answer at unix time `now`: the interval's number, or one beyond the client's own.

    `jitter` in [0, 1) spreads clients whose cursor is not behind the clock. A cursor that is no number counts as none.
    """
    current = int((now - _EPOCH) // INTERVAL_SECONDS)
    if client_cursor is None or not _FORM.fullmatch(client_cursor) or int(client_cursor) < current:
        return str(current)
    return str(int(client_cursor) + 1 + int(jitter * _MAX_JITTER_INTERVALS))
