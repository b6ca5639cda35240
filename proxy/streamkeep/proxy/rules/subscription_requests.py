"""What requests about subscriptions may say: JSON in, values in normal form out (protocol 6, 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from streamkeep.proxy.rules import stream_paths
from streamkeep.proxy.rules.webhook_urls import WebhookRules, WebhookUrlRejected
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import MAX_EXPLICIT_LINKS, MAX_WAKE_STREAMS, Delivery, InvalidOffset, SubscriptionConfig
from streamkeep.storage.rules.offsets import NOW, START, parse_offset
from streamkeep.storage.rules.subscriptions import DEFAULT_LEASE_TTL_MS, MAX_LEASE_TTL_MS, MIN_LEASE_TTL_MS

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_DESCRIPTION_CHARACTERS = 2000
MAX_WORKER_CHARACTERS = 200

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
_MAX_GENERATION = 2**63 - 1


class SubscriptionRefused(Exception):
    """The request ends with this status and code; `extra` are further fields of the error."""

    def __init__(self, status: int, code: str, message: str, extra: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.extra = dict(extra or {})


def refused(message: str) -> SubscriptionRefused:
    """A request that cannot be understood."""
    return SubscriptionRefused(400, "INVALID_REQUEST", message)


@dataclass(frozen=True, slots=True)
class WakeRequest:
    """A callback, acknowledgement or release: which wake, and what for. `acks` are positions by path."""

    wake_id: str
    generation: int
    acks: tuple[tuple[str, int], ...]
    is_done: bool


def subscription_id(text: str) -> str:
    """Raises: SubscriptionRefused."""
    if not _ID.fullmatch(text):
        raise refused(
            "a subscription id has up to 200 letters, digits and . _ ~ : @ -, and begins with a letter or digit"
        )
    return text


def json_object(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises: SubscriptionRefused."""
    try:
        value = json.loads(body)
        # Half a surrogate pair is a legal escape in JSON and no text.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise refused("the body is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise refused("the body must be a JSON object")
    return value


def config(body: Mapping[str, Any], webhook_rules: WebhookRules) -> SubscriptionConfig:
    """A subscription's configuration. Raises: SubscriptionRefused."""
    try:
        delivery = Delivery(str(body.get("type")))
    except ValueError:
        raise refused("type must be webhook or pull-wake") from None
    pattern = body.get("pattern")
    if pattern is not None:
        pattern = _path(pattern, "pattern")
    named = stream_list(body) if body.get("streams") is not None else ()
    if pattern is None and not named:
        raise refused("a subscription needs a pattern, streams, or both")
    lease_ttl_ms = body.get("lease_ttl_ms", DEFAULT_LEASE_TTL_MS)
    if type(lease_ttl_ms) is not int or not MIN_LEASE_TTL_MS <= lease_ttl_ms <= MAX_LEASE_TTL_MS:
        raise refused(f"lease_ttl_ms must be a whole number from {MIN_LEASE_TTL_MS} to {MAX_LEASE_TTL_MS}")
    description = body.get("description")
    if description is not None:
        description = _text(description, "description", MAX_DESCRIPTION_CHARACTERS)
    webhook_url = wake_stream = None
    if delivery is Delivery.WEBHOOK:
        webhook_url = _webhook_url(body, webhook_rules)
    else:
        wake_stream = stream_path(body.get("wake_stream"), "wake_stream")
        if wake_stream in named:
            raise refused("a subscription cannot follow its own wake_stream")
    return SubscriptionConfig(delivery, pattern, named, lease_ttl_ms, webhook_url, wake_stream, description)


def stream_list(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The field `streams`, sorted, each path once. Raises: SubscriptionRefused."""
    streams = body.get("streams")
    if not isinstance(streams, list) or len(streams) > MAX_EXPLICIT_LINKS:
        raise refused(f"streams must be an array of up to {MAX_EXPLICIT_LINKS} paths")
    return tuple(sorted({stream_path(path, "streams") for path in streams}))


def stream_path(value: object, name: str) -> str:
    """The path of a stream that can be followed, relative to the stream root. Raises: SubscriptionRefused."""
    path = _path(value, name)
    if stream_paths.first_segment(path) in (stream_paths.OPERATIONS, stream_paths.GENERATIONS):
        raise refused(f"{name}: {stream_paths.first_segment(path)} holds no streams that can be followed")
    return path


def worker(body: Mapping[str, Any]) -> str:
    """Raises: SubscriptionRefused."""
    name = _text(body.get("worker"), "worker", MAX_WORKER_CHARACTERS)
    if not name:
        raise refused("worker must not be empty")
    return name


def wake_request(body: Mapping[str, Any]) -> WakeRequest:
    """Raises: SubscriptionRefused; INVALID_OFFSET for an offset that cannot be acknowledged at all."""
    generation, is_done, acks = body.get("generation"), body.get("done", False), body.get("acks")
    if type(generation) is not int or not 0 <= generation <= _MAX_GENERATION:
        raise refused("generation must be a whole number")
    if not isinstance(is_done, bool):
        raise refused("done must be true or false")
    acks = [] if acks is None else acks
    if not isinstance(acks, list) or len(acks) > MAX_WAKE_STREAMS:
        raise refused(f"acks must be an array of up to {MAX_WAKE_STREAMS}")
    taken = tuple(_ack(one) for one in acks)
    if len({path for path, _ in taken}) != len(taken):
        raise refused("acks names a stream twice")
    return WakeRequest(_text(body.get("wake_id"), "wake_id", 200), generation, taken, is_done)


def _ack(one: object) -> tuple[str, int]:
    if not isinstance(one, dict) or not isinstance(one.get("offset"), str):
        raise refused("each of acks is an object with stream and offset")
    path, offset = _path(one.get("stream"), "stream"), one["offset"]
    try:
        position = parse_offset(offset) if offset not in (START, NOW) else None
    except InvalidOffset:
        position = None
    if position is None:
        raise SubscriptionRefused(409, "INVALID_OFFSET", f"{path}: this is not an offset that can be acknowledged")
    return path, position


def _webhook_url(body: Mapping[str, Any], rules: WebhookRules) -> str:
    webhook = body.get("webhook")
    url = webhook.get("url") if isinstance(webhook, dict) else None
    if not isinstance(url, str):
        raise refused("a webhook subscription needs webhook.url")
    try:
        return rules.target(url).url
    except WebhookUrlRejected as exc:
        raise SubscriptionRefused(400, "WEBHOOK_URL_REJECTED", str(exc)) from None


def _path(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise refused(f"{name} must be text")
    try:
        return stream_paths.parse_path(quote(value, safe="/").encode())
    except BadRequest as exc:
        raise refused(f"{name}: {exc}") from None


def _text(value: object, name: str, max_characters: int) -> str:
    if not isinstance(value, str) or len(value) > max_characters or "\0" in value:
        raise refused(f"{name} must be text of up to {max_characters} characters")
    return value
