"""Which call of an SDK repeats an earlier one of its own.

An SDK that met an error sends its request again by itself, under new ids, since it knows of none; upstream would be paid
twice. It does say in a header that this is a repeat. So the ids of a call that failed without an answer are remembered
by what was asked, and the repeat takes them over: it joins the generation of the first attempt.

A first attempt forgets what is remembered of the same question: whoever asks again on his own wants another answer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

RETRY_COUNT_HEADER = "x-stainless-retry-count"

_REMEMBERED_SECONDS = 300.0
_REMEMBERED_CALLS = 1000


@dataclass(frozen=True, slots=True)
class Ids:
    session_id: str
    request_id: str


class FailedAttempts:
    """The ids of calls that failed, by question. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, tuple[Ids, float]] = OrderedDict()

    def failed(self, question: bytes, ids: Ids, *, now: float) -> None:
        """A call with this question had no answer, or lost it half way."""
        self._ids[question] = (ids, now)
        self._ids.move_to_end(question)
        while len(self._ids) > _REMEMBERED_CALLS:
            self._ids.popitem(last=False)

    def begins(self, question: bytes, *, is_repeat: bool, now: float) -> Ids | None:
        """The ids for an attempt that begins; None when it needs new ones."""
        ids, failed_at = self._ids.pop(question, (None, now))
        return ids if is_repeat and now - failed_at <= _REMEMBERED_SECONDS else None


def is_repeat(retry_count: str | None) -> bool:
    """Whether the header's value says that this is not the first attempt."""
    return retry_count is not None and retry_count.strip() not in ("", "0")
