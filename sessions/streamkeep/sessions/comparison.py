"""Two sessions side by side: what they have in common, and what each has alone."""

from __future__ import annotations

from collections.abc import Sequence

from streamkeep.sessions.views import Message


def compared(ours: Sequence[Message], theirs: Sequence[Message]) -> dict[str, object]:
    """Messages that both begin with, and the rest of either. A message is the same with the same id and content."""
    common = next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if not _are_same(*pair)), None)
    if common is None:
        common = min(len(ours), len(theirs))
    return {
        "commonMessages": common,
        "lastCommonMessageId": ours[common - 1].id if common else None,
        "messages": tuple(ours[common:]),
        "otherMessages": tuple(theirs[common:]),
    }


def _are_same(one: Message, other: Message) -> bool:
    return (one.id, one.role, one.parts, one.ended_by) == (other.id, other.role, other.parts, other.ended_by)
