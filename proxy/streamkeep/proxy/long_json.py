"""JSON answers of any length: written value by value, so that nobody has to wait for the whole, and sent in parts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping

from fastapi.responses import StreamingResponse

from streamkeep.sessions.views import json_pieces
from streamkeep.storage.pauses import Pauses

_PART_CHARACTERS = 64 * 1024


async def written(value: object) -> list[bytes]:
    """An object, or anything that `json_pieces` takes, as parts of one JSON text. Iterators are looked at as it is written,
    while others have their turn: what they give must not change."""
    parts: list[bytes] = []
    gathered: list[str] = []
    characters, pauses = 0, Pauses()
    for piece in _pieces(value):
        gathered.append(piece)
        characters += len(piece)
        if characters >= _PART_CHARACTERS:
            parts.append(_part(gathered))
            gathered, characters = [], 0
        await pauses.take()
    return [*parts, _part(gathered)]


async def long_json(value: object) -> StreamingResponse:
    """The answer that holds what `written` makes of a value."""
    parts = await written(value)
    headers = {"Cache-Control": "no-store", "Content-Length": str(sum(map(len, parts)))}
    return StreamingResponse(_one_by_one(parts), media_type="application/json", headers=headers)


async def _one_by_one(parts: list[bytes]) -> AsyncIterator[bytes]:
    """Each is let go of before it is sent: a peer may take long."""
    parts.reverse()
    while parts:
        yield parts.pop()


def _pieces(value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield from json_pieces(value)
        return
    separator = "{"
    for name, one in value.items():
        yield f"{separator}{json.dumps(name)}:"
        yield from json_pieces(one)
        separator = ","
    yield "{}" if separator == "{" else "}"


def _part(pieces: list[str]) -> bytes:
    # Half of a surrogate pair has no other form in UTF-8, and this one is JSON's own.
    return "".join(pieces).encode(errors="backslashreplace")
