"""How many generations one holder may have at once, and begin within a minute.

Generations at once are counted by their rows: whatever ends a generation, its owner's death too, gives its place back.
The minute slides. A refused generation that is claimed anew counts at its last claim.
"""

from __future__ import annotations

from streamkeep.storage._errors import RateLimited, StoreError, TooManyGenerations
from streamkeep.storage._types import Terms

WINDOW_SECONDS = 60.0


def exceeded(terms: Terms, *, running: int, age_seconds: float | None) -> StoreError | None:
    """Why a holder may not begin another generation, if it may not.

    `running` is how many it has at once; `age_seconds` how long ago the last but `max_per_minute - 1` of its claims was
    made, None if it made fewer.
    """
    if terms.max_running is not None and running >= terms.max_running:
        return TooManyGenerations(terms.max_running)
    if terms.max_per_minute is not None and age_seconds is not None and age_seconds < WINDOW_SECONDS:
        return RateLimited(terms.max_per_minute, WINDOW_SECONDS - age_seconds)
    return None
