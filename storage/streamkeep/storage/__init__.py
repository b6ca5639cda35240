"""The stream store: an append-only log of bytes with offsets, and the generations that write to it."""

from streamkeep.storage._errors import (
    FingerprintMismatch,
    GenerationEnded,
    GenerationNotFound,
    InvalidOffset,
    ItemRefused,
    OwnerFenced,
    StoreError,
    StoreUnavailable,
    StreamNotFound,
)
from streamkeep.storage._store import Listener, Store
from streamkeep.storage._types import (
    DEFAULT_TENANT,
    Append,
    Claim,
    Ending,
    Generation,
    GenerationKey,
    Lease,
    Owner,
    Refusal,
    Retention,
    Slice,
    Tail,
    UpstreamHead,
)
from streamkeep.storage.memory import MemoryStore
from streamkeep.storage.rules.generations import Code, State, Terminal, Usage

__all__ = [
    "DEFAULT_TENANT",
    "Append",
    "Claim",
    "Code",
    "Ending",
    "FingerprintMismatch",
    "Generation",
    "GenerationEnded",
    "GenerationKey",
    "GenerationNotFound",
    "InvalidOffset",
    "ItemRefused",
    "Lease",
    "Listener",
    "MemoryStore",
    "Owner",
    "OwnerFenced",
    "Refusal",
    "Retention",
    "Slice",
    "State",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "StreamNotFound",
    "Tail",
    "Terminal",
    "UpstreamHead",
    "Usage",
]
