"""Caching of reads (protocol 10): entity tags, `If-None-Match`, `Cache-Control`, and when a body is compressed."""

from __future__ import annotations

import re
from enum import StrEnum

# Below this a compressed body saves less than its header costs.
MIN_GZIP_BYTES = 1024

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TEXTUAL = re.compile(r"text/.*|application/(?:.+\+)?(?:json|xml)|application/(?:javascript|x-ndjson|yaml)")


class CachePolicy(StrEnum):
    """What caches may do with an answer."""

    SHARED = "public, max-age=60, stale-while-revalidate=300"
    BRIEF = "public, max-age=1"
    NONE = "no-store"


_BY_URL_SECONDS = 10


def by_url_seconds(policy: CachePolicy, *, is_final: bool, expires_at: int, now: float) -> int:
    """For how long a cache that tells whole URLs apart may keep what a signed URL reads, at unix time `now`; 0: not at all.

    `is_final`: whoever gets it later misses nothing. It is not kept beyond the URL's own life, a second less since caches
    count in whole ones, and for so short that what is deleted, or whose signing key is revoked, is soon unreadable.
    """
    if policy is CachePolicy.NONE:
        return 0
    return max(0, min(_BY_URL_SECONDS if is_final else 1, int(expires_at - now) - 1))


def entity_tag(
    stream_id: int, start: int, end: int, *, is_closed: bool, is_gzip: bool = False, is_view: bool = False
) -> str:
    """The tag of the bytes from `start` to `end`: another stream at the same path has another, and so has the same
    range once a reader learns from it that the stream is closed, and in the JSON view. A compressed body is the same
    only weakly."""
    tag = f'"{stream_id}:{start}:{end}{":c" if is_closed else ""}{":j" if is_view else ""}"'
    return f"W/{tag}" if is_gzip else tag


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a condition, `*` or a list of tags, weak or strong, holds for a tag."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag.removeprefix("W/") in _TAG.findall(if_none_match)


def is_gzip_wanted(accept_encoding: str | None, content_type: str, size_bytes: int) -> bool:
    """Whether a body goes out compressed: the client takes gzip, it is text, and it is large enough to gain."""
    if size_bytes < MIN_GZIP_BYTES or accept_encoding is None:
        return False
    if not _TEXTUAL.fullmatch(content_type.partition(";")[0].strip().lower()):
        return False
    offered = dict(_weighted(part) for part in accept_encoding.lower().split(","))
    return offered.get("gzip", offered.get("*", 0.0)) > 0


def _weighted(part: str) -> tuple[str, float]:
    coding, _, parameter = part.partition(";")
    name, _, weight = parameter.partition("=")
    try:
        return coding.strip(), float(weight) if name.strip() == "q" else 1.0
    except ValueError:
        return coding.strip(), 0.0
