"""Subscriptions on the wire: what is asked, and what the server's answers say (protocol 6, 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from streamkeep.client._errors import ProtocolError
from streamkeep.client._rules import protocol

FENCED = "FENCED"
ALREADY_CLAIMED = "ALREADY_CLAIMED"
NO_PENDING_WORK = "NO_PENDING_WORK"


@dataclass(frozen=True, slots=True)
class SubscribedStream:
    """A stream of a subscription: read on from `acked_offset`. What is not told is None."""

    path: str
    acked_offset: str
    tail_offset: str | None = None
    has_pending: bool | None = None
    link_type: str | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as its server tells of it. `type` is "webhook" or "pull-wake"; `status` "active" or "failed"."""

    id: str
    type: str
    status: str
    streams: tuple[SubscribedStream, ...]
    lease_seconds: float
    pattern: str | None
    description: str | None
    wake_stream: str | None
    webhook_url: str | None
    jwks_url: str | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed wake; `token` is a secret."""

    wake_id: str
    generation: int
    token: str
    streams: tuple[SubscribedStream, ...]
    lease_seconds: float

    def __repr__(self) -> str:
        return f"<Lease {self.wake_id} {self.generation}>"


def url(root: str, *segments: str) -> str:
    """Where something of a subscription stands."""
    return "/".join((root.rstrip("/"), "__ds", "subscriptions", *(quote(segment, safe="") for segment in segments)))


def config(
    *,
    pattern: str | None,
    streams: Sequence[str],
    webhook_url: str | None,
    wake_stream: str | None,
    lease_seconds: float | None,
    description: str | None,
) -> dict[str, object]:
    """What creates a subscription. Raises: ValueError: it is delivered in neither way, or in both."""
    if (webhook_url is None) == (wake_stream is None):
        raise ValueError("a subscription has either a webhook_url or a wake_stream")
    found: dict[str, object] = {"type": "pull-wake" if webhook_url is None else "webhook"}
    if pattern is not None:
        found["pattern"] = pattern
    if streams:
        found["streams"] = list(streams)
    if webhook_url is not None:
        found["webhook"] = {"url": webhook_url}
    if wake_stream is not None:
        found["wake_stream"] = wake_stream
    if lease_seconds is not None:
        found["lease_ttl_ms"] = round(lease_seconds * 1000)
    if description is not None:
        found["description"] = description
    return found


def parse_subscription(content: bytes) -> Subscription:
    """Raises: ProtocolError."""
    fields = _fields(content, "the subscription")
    webhook = fields.get("webhook")
    webhook = webhook if isinstance(webhook, dict) else {}
    signing = webhook.get("signing")
    return Subscription(
        id=_text(fields, "id"),
        type=_text(fields, "type"),
        status=_text(fields, "status"),
        streams=_streams(fields),
        lease_seconds=_number(fields, "lease_ttl_ms") / 1000,
        pattern=_optional(fields, "pattern"),
        description=_optional(fields, "description"),
        wake_stream=_optional(fields, "wake_stream"),
        webhook_url=_optional(webhook, "url"),
        jwks_url=_optional(signing, "jwks_url") if isinstance(signing, dict) else None,
    )


def parse_lease(content: bytes) -> Lease:
    """Raises: ProtocolError."""
    fields = _fields(content, "the claim")
    return Lease(
        wake_id=_text(fields, "wake_id"),
        generation=_number(fields, "generation"),
        token=_text(fields, "token"),
        streams=_streams(fields),
        lease_seconds=_number(fields, "lease_ttl_ms") / 1000,
    )


def parse_next_wake(content: bytes) -> bool:
    """Whether there is more to do at once. Raises: ProtocolError."""
    return _fields(content, "the acknowledgement").get("next_wake") is True


def acknowledgement(lease: Lease, offsets: Mapping[str, str], *, is_done: bool) -> dict[str, object]:
    """What extends a lease, and with `is_done` ends it."""
    acks = [{"stream": path, "offset": offset} for path, offset in offsets.items()]
    return {
        "wake_id": lease.wake_id,
        "generation": lease.generation,
        "acks": acks,
        **({"done": True} if is_done else {}),
    }


def _fields(content: bytes, what: str) -> dict[str, object]:
    found = protocol.parse_json(content, what)
    if not isinstance(found, dict):
        raise ProtocolError(f"{what} is not a JSON object")
    return found


def _streams(fields: Mapping[str, object]) -> tuple[SubscribedStream, ...]:
    found = fields.get("streams")
    if not isinstance(found, list) or not all(isinstance(stream, dict) for stream in found):
        raise ProtocolError("streams of a subscription are not a list of objects")
    return tuple(
        SubscribedStream(
            path=_text(stream, "path"),
            acked_offset=_text(stream, "acked_offset"),
            tail_offset=_optional(stream, "tail_offset"),
            has_pending=stream["has_pending"] if isinstance(stream.get("has_pending"), bool) else None,
            link_type=_optional(stream, "link_type"),
        )
        for stream in found
    )


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} of a subscription is not a text")
    return value


def _optional(fields: Mapping[str, object], name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"{name} of a subscription is not a number")
    return value
