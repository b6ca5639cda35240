"""`RedisStore`: records of generations in Redis, for backends of several machines. Needs `streamkeep[redis]`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import cast

try:
    import redis
except ImportError as _missing:
    raise ImportError("RedisStore needs the package redis: pip install 'streamkeep[redis]'") from _missing

from streamkeep.client._errors import LocalStoreFailed
from streamkeep.client._stores import KEEP_SECONDS, GenerationRecord, RecordState, checked_record, reading_records


class RedisStore:
    """Records in Redis, one hash for each session, which is dropped when none of it was touched for `keep_seconds`.

    `url` is one that the package `redis` takes: `redis://…`, `rediss://…` or `unix://…`. Keys begin with `prefix`. Threads
    and processes may share a store. Redis that cannot be used is a `LocalStoreFailed`.
    """

    def __init__(self, url: str, *, prefix: str = "streamkeep:", keep_seconds: float = KEEP_SECONDS) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)
        self._prefix = prefix
        self._keep_seconds = keep_seconds

    def __repr__(self) -> str:
        return f"RedisStore(prefix={self._prefix!r})"

    def put(self, record: GenerationRecord) -> None:
        key = self._key(record.proxy_url, record.session_id)
        try:
            with self._redis.pipeline(transaction=True) as commands:
                commands.hset(key, record.request_id, _encoded(record))
                commands.expire(key, int(self._keep_seconds) + 1)
                commands.execute()
        except redis.RedisError as exc:
            raise _failed(exc) from exc

    def records(self, proxy_url: str, session_id: str) -> list[GenerationRecord]:
        try:
            found = cast("dict[bytes, bytes]", self._redis.hgetall(self._key(proxy_url, session_id)))
        except redis.RedisError as exc:
            raise _failed(exc) from exc
        oldest = datetime.now(UTC) - timedelta(seconds=self._keep_seconds)
        with reading_records(session_id):
            records = [_decoded(proxy_url, session_id, name.decode(), value) for name, value in found.items()]
        kept = [record for record in records if record.updated_at >= oldest]
        return sorted(kept, key=lambda record: (record.created_at, record.request_id), reverse=True)

    def remove(self, proxy_url: str, session_id: str, request_id: str) -> None:
        try:
            self._redis.hdel(self._key(proxy_url, session_id), request_id)
        except redis.RedisError as exc:
            raise _failed(exc) from exc

    def close(self) -> None:
        """Close the connections. They are opened again when they are needed."""
        self._redis.close()

    def _key(self, proxy_url: str, session_id: str) -> str:
        # Ids hold no spaces.
        return f"{self._prefix}{session_id} {proxy_url}"


def _encoded(record: GenerationRecord) -> str:
    times = (record.created_at.isoformat(), record.updated_at.isoformat())
    return json.dumps([*times, record.state.value, record.position, record.handed_position])


def _decoded(proxy_url: str, session_id: str, request_id: str, value: bytes) -> GenerationRecord:
    created_at, updated_at, state, position, handed_position = json.loads(value)
    return checked_record(
        GenerationRecord(
            proxy_url,
            session_id,
            request_id,
            datetime.fromisoformat(created_at),
            datetime.fromisoformat(updated_at),
            RecordState(state),
            position,
            handed_position,
        )
    )


def _failed(error: redis.RedisError) -> LocalStoreFailed:
    return LocalStoreFailed(f"Redis does not keep records: {type(error).__name__}")
