"""The schemas of streams: read once, compiled once, and asked before what is written is stored.

The store compares what an append was checked by with what the stream has, in the transaction that stores it. So what is
remembered here is a guess: for a stream that has no schema, nothing is remembered and nothing asked; where the guess is
wrong, the append comes back, and is checked anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from streamkeep.proxy.errors import Problem, problem
from streamkeep.proxy.rules.schemas import InvalidSchema, Schema, TooDear, Violation, compiled, schema_of_header
from streamkeep.storage import Store, StreamInfo, StreamKey

_MAX_REMEMBERED = 4096

# What takes no longer than a few milliseconds is checked in the loop.
_MAX_BYTES_AT_ONCE = 4096
_UNITS_AT_ONCE = 500

# A hostile schema's whole share; a sound one needs one or two units for each byte.
_UNITS = 100_000
_UNITS_PER_BYTE = 2

_THREADS = 2


class Schemas:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: OrderedDict[StreamKey, Schema] = OrderedDict()
        self._working = asyncio.Semaphore(_THREADS)

    def __repr__(self) -> str:
        return f"Schemas({len(self._remembered)})"

    async def asked_for(self, header: str | None) -> Schema | None:
        """The schema that a creation's header carries. Raises: ApiError (400)."""
        if header is None:
            return None
        try:
            async with self._working:
                return await asyncio.to_thread(schema_of_header, header)
        except InvalidSchema as exc:
            raise problem(400, "invalid_schema", str(exc)) from None

    def guess(self, key: StreamKey) -> Schema | None:
        """What the stream's schema was when it was last seen here."""
        found = self._remembered.get(key)
        if found is not None:
            self._remembered.move_to_end(key)
        return found

    async def of(self, stream: StreamInfo) -> Schema | None:
        """A stream's schema, remembered for the next time."""
        text = None if stream.schema_id is None else await self._store.schema(stream.id)
        if text is None:
            self._remembered.pop(stream.key, None)
            return None
        async with self._working:
            found = await asyncio.to_thread(compiled, text)
        self.remember(stream.key, found)
        return found

    def remember(self, key: StreamKey, schema: Schema) -> None:
        self._remembered[key] = schema
        self._remembered.move_to_end(key)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def violation(self, schema: Schema, messages: Sequence[bytes]) -> Problem | None:
        """What is to be answered to who sent these messages, if they are not as the schema says."""
        size = sum(map(len, messages))
        try:
            found = await self._violation(schema, messages, size)
        except TooDear:
            return Problem(422, "schema_violation", "to check this by the stream's schema takes too long")
        return None if found is None else _problem(found, len(messages))

    async def _violation(self, schema: Schema, messages: Sequence[bytes], size: int) -> Violation | None:
        if size <= _MAX_BYTES_AT_ONCE:
            try:
                return schema.violation(messages, _UNITS_AT_ONCE)
            except TooDear:
                pass
        async with self._working:
            return await asyncio.to_thread(schema.violation, messages, _UNITS + _UNITS_PER_BYTE * size)


def _problem(found: Violation, messages: int) -> Problem:
    where = found.path if messages == 1 else f"message {found.index}, {found.path}"
    extra = {"index": found.index, "path": found.path, "reason": found.reason}
    return Problem(422, "schema_violation", f"{where}: {found.reason}", extra=extra)
