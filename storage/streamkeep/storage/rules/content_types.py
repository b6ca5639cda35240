"""Content types as streams compare them: the media type alone, without parameters and without letter case."""

from __future__ import annotations

DEFAULT = "application/octet-stream"
JSON = "application/json"


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def is_same(content_type: str, other: str) -> bool:
    return content_type == other or media_type(content_type) == media_type(other)


def is_json(content_type: str) -> bool:
    """Whether a stream of this type keeps messages (JSON mode)."""
    return media_type(content_type) == JSON
