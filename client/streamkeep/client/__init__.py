"""The client of streamkeep: `fetch` through the proxy, and an httpx transport for the SDKs you already use."""

from streamkeep.client._errors import (
    BodyConsumed,
    ConnectionFailed,
    GenerationCancelled,
    GenerationError,
    LocalStoreFailed,
    NothingToResume,
    OwnerLost,
    ProtocolError,
    ResumeReason,
    ServerError,
    Shutdown,
    Stalled,
    StorageUnavailable,
    StreamkeepError,
    TimedOut,
    TooLarge,
    Truncated,
    UpstreamFailed,
)
from streamkeep.client._fetch import AsyncFetchClient, FetchClient, GenerationInfo
from streamkeep.client._retry import Patience
from streamkeep.client._stores import GenerationRecord, GenerationStore, MemoryStore, RecordState, SQLiteStore
from streamkeep.client._transport import DurableTransport

__all__ = [  # noqa: RUF022  # in groups
    # Ways in
    "AsyncFetchClient",
    "DurableTransport",
    "FetchClient",
    "GenerationInfo",
    "Patience",
    # Local stores
    "GenerationRecord",
    "GenerationStore",
    "MemoryStore",
    "RecordState",
    "SQLiteStore",
    # Errors
    "BodyConsumed",
    "ConnectionFailed",
    "GenerationCancelled",
    "GenerationError",
    "LocalStoreFailed",
    "NothingToResume",
    "OwnerLost",
    "ProtocolError",
    "ResumeReason",
    "ServerError",
    "Shutdown",
    "Stalled",
    "StorageUnavailable",
    "StreamkeepError",
    "TimedOut",
    "TooLarge",
    "Truncated",
    "UpstreamFailed",
]
