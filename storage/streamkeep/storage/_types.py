"""The values that pass between a store and those who use it. Positions are byte indices; tokens are made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from streamkeep.storage.rules.generations import State, Terminal, Usage

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay. `data_seconds` counts from a generation's end, where neither its claim nor its tenant says
    otherwise; `row_seconds` from then on for the row, which guards against a second upstream call."""

    data_seconds: float = 24 * 3600
    row_seconds: float = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What a store knows of its engine without asking it: its connections, how many of them are at work and how many there
    may be, and whether news of other processes arrives at once or only by polling."""

    connections: int = 0
    busy_connections: int = 0
    max_connections: int = 0
    is_listening: bool = True


@dataclass(frozen=True, slots=True)
class GenerationKey:
    """What names a generation; at most one upstream call is ever accepted under it."""

    tenant: str
    session_id: str
    request_id: str

    @property
    def data_path(self) -> str:
        """Where the data stream lies, below the stream root."""
        return f"generations/{self.session_id}/{self.request_id}/data"

    @property
    def control_path(self) -> str:
        """Where the control stream lies, below the stream root."""
        return f"generations/{self.session_id}/{self.request_id}/control"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a claim asks for beside its key. `holder` is whom limits are counted for, within the tenant; both limits are
    at least 1, and None is none. `cancel_after_seconds` is how long the generation goes on without a reader, once it has
    had one; None: to its end. `retention_seconds` is how long its data stay after its end; None: as its tenant has it, or
    else the store. `upstream` is a name for whom it calls, for people to read."""

    holder: str | None = None
    max_running: int | None = None
    max_per_minute: int | None = None
    cancel_after_seconds: float | None = None
    retention_seconds: float | None = None
    upstream: str | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the claim is counted at all."""
        return self.holder is not None and (self.max_running is not None or self.max_per_minute is not None)


@dataclass(frozen=True, slots=True)
class Owner:
    """One incarnation of one process that records generations; fenced off when the stored epoch is another."""

    id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Lease:
    """An owner's sign of life as a scan saw it: `beat` changes with every renewal."""

    owner: Owner
    beat: int


@dataclass(frozen=True, slots=True)
class UpstreamHead:
    """Upstream's answer before its body: status, content type, content encoding and the headers worth keeping."""

    status: int
    content_type: str | None
    content_encoding: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Upstream's own error answer, kept for those who joined; `body` is cut at 64 KiB."""

    head: UpstreamHead
    body: bytes


class GoneReason(StrEnum):
    """Why there is nothing to read any more; the values are those on the wire."""

    RETENTION = "retention"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Gone:
    """Since when a generation's data cannot be read any more, and why."""

    reason: GoneReason
    at: datetime


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation's row. `epoch` grows each time a refused one is claimed anew; `fingerprint` is None while a large
    request body is still passing through; `data_stream` and `control_stream` are stream ids; `holder`, `upstream` and
    `cancel_after_seconds` are those of the claim's terms; `retention_seconds` is None where the store's applies.
    `message` may stand in the terminal event alone, where that is encrypted; `usage` is the event's."""

    id: int
    key: GenerationKey
    epoch: int
    state: State
    owner: Owner
    data_stream: int
    control_stream: int
    fingerprint: bytes | None
    created_at: datetime
    head: UpstreamHead | None = None
    refusal: Refusal | None = None
    code: str | None = None
    message: str | None = None
    is_cancel_requested: bool = False
    ended_at: datetime | None = None
    gone: Gone | None = None
    holder: str | None = None
    cancel_after_seconds: float | None = None
    retention_seconds: float | None = None
    upstream: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listing is to show: a tenant's, or with None everybody's; of these one session's; those of one request id;
    those in some states; and those whose ids or upstream hold a text, in whatever case."""

    tenant: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    states: frozenset[State] | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class GenerationPage:
    """A part of a listing. `next_before` leads on, and is None at the end; a page may be empty and yet lead on."""

    rows: list[Generation]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class Session:
    """A session, from its generations: how many there are, how many are live, and when the first and the last began."""

    tenant: str
    session_id: str
    generations: int
    live: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class SessionPage:
    """As `GenerationPage`."""

    rows: list[Session]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """What is to be deleted for good: one generation, a session's, or with neither id everything that a tenant has."""

    tenant: str
    session_id: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, key: GenerationKey) -> Erasure:
        """Just this generation."""
        return cls(key.tenant, key.session_id, key.request_id)


@dataclass(frozen=True, slots=True)
class Erased:
    """What a batch of an erasure did: how many generations it marked. `remaining` rows are still to go: streams, and a
    tenant's subscriptions and sessions."""

    generations: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim: the row, and whether this caller made it and so must call upstream."""

    generation: Generation
    is_new: bool


@dataclass(slots=True)
class Append:
    """Bytes for the tail of one stream of a tenant's, which is expected to be at `position`. Not frozen, which would take
    three times as long to make: there is one for nearly every chunk."""

    stream_id: int
    position: int
    data: bytes
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a generation: the event for its control stream, and the final positions of both streams."""

    generation: Generation
    terminal: Terminal
    data_position: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a stream ends now, and whether it can still grow."""

    position: int
    is_closed: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """What a read found: the bytes from `position` on, and the stream's tail in the same snapshot."""

    position: int
    data: bytes
    tail: Tail

    @property
    def end(self) -> int:
        """The position after the last byte that was read."""
        return self.position + len(self.data)

    @property
    def is_up_to_date(self) -> bool:
        """Whether the read reached the tail."""
        return self.end >= self.tail.position


# Streams of the open protocol: addressed by path, written by many


@dataclass(frozen=True, slots=True)
class StreamKey:
    """What names a stream: its tenant, and its path below the stream root, without a leading slash."""

    tenant: str
    path: str


GENERATIONS = "generations/"
"""The paths below this prefix are those of generations' streams; nobody creates, writes or deletes them by path."""


REGISTRY = "__registry__"
"""The path of each tenant's stream that tells which streams there are; the store writes it, see `write_registries`."""


@dataclass(frozen=True, slots=True)
class StreamChange:
    """A stream was made, or is gone: deleted by somebody, or expired. `created_at` is when it was made."""

    key: StreamKey
    content_type: str
    created_at: datetime
    is_deletion: bool


def generation_of(key: StreamKey) -> GenerationKey | None:
    """The generation whose data or control stream has this path, if it can be one's."""
    match key.path.split("/"):
        case ["generations", session_id, request_id, "data" | "control"]:
            return GenerationKey(key.tenant, session_id, request_id)
    return None


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a stream ends its life by itself: after `ttl_seconds` without a touch (sliding), or at an instant. At most
    one of the two is given."""

    ttl_seconds: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a new stream branches off: a source, and a position in it (None: its tail). `sub_offset` counts messages
    in a message stream and bytes in any other, from `position` on; None when the request names none."""

    source: StreamKey
    position: int | None = None
    sub_offset: int | None = None


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """What a creation asks for; a repeat with the same wishes finds the stream. `content_type` and `expiry` are None
    where the request says nothing: the defaults, or for a fork the source's. `schema` is a JSON Schema in its normal form,
    by which the creation's data were checked; a fork has its source's, and can ask for no other."""

    content_type: str | None = None
    expiry: Expiry | None = None
    is_closed: bool = False
    fork: ForkPoint | None = None
    schema: str | None = None


REGISTRY_CONFIG = StreamConfig("application/json")
"""What a registry is made with."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as it stands. `is_message_stream`: JSON mode, where stored messages end with a separator byte; the data
    stream of a generation, and a fork of one, holds upstream's bytes as they came even if they are JSON. `schema_id` is
    the digest of its schema, if it has one."""

    id: int
    key: StreamKey
    content_type: str
    is_message_stream: bool
    tail: Tail
    expiry: Expiry
    created_at: datetime
    schema_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to a creation: the stream, and whether this call made it."""

    stream: StreamInfo
    is_new: bool


@dataclass(frozen=True, slots=True)
class Producer:
    """An idempotent writer's name, incarnation and the number of this append (protocol 5.2.1)."""

    id: str
    epoch: int
    sequence: int


@dataclass(slots=True)
class StreamAppend:
    """One request to append: bytes in stored form (messages with their separators in a message stream), empty only with
    `is_close`. `content_type` is None when there is no body. `writer_sequence` is `Stream-Seq`: opaque, compared
    byte-wise, of the stream's scope. `schema_id` is the digest of the schema that the data were checked by."""

    key: StreamKey
    data: bytes
    content_type: str | None = None
    is_close: bool = False
    producer: Producer | None = None
    writer_sequence: str | None = None
    schema_id: bytes | None = None


@dataclass(slots=True)
class Appended:
    """What an append came to. `position` is where its bytes begin, `tail` the stream's after it. A duplicate stored
    nothing, as does closing once more without a producer; `producer` is then the last tuple accepted from it."""

    stream_id: int
    position: int
    tail: Tail
    is_duplicate: bool = False
    producer: Producer | None = None
