"""Paths of streams (protocol 6, 12): which are refused, and which belong to the server."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import REGISTRY

ROOT = "/v1/stream/"
GENERATIONS = "generations"
OPERATIONS = "__ds"
_MAX_PATH_BYTES = 1024
_ENCODED_SLASHES = (b"%2f", b"%5c")
# What nearly every path is; it needs none of the checks.
_ORDINARY = re.compile(rb"[A-Za-z0-9_~:@-][A-Za-z0-9._~:@-]*(?:/[A-Za-z0-9_~:@-][A-Za-z0-9._~:@-]*)*")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_path(raw: bytes) -> str:
    """The stream path of a raw, percent-encoded one below the root.

    Raises:
        BadRequest: it is empty or too long, has an empty, `.` or `..` segment, an encoded slash, a percent sign that
            encodes nothing, a backslash, a control character, or is not UTF-8.
    """
    if len(raw) <= _MAX_PATH_BYTES and _ORDINARY.fullmatch(raw):
        return raw.decode()
    if any(slash in raw.lower() for slash in _ENCODED_SLASHES):
        raise _bad("a slash inside a segment cannot be encoded")
    if _BROKEN_ESCAPE.search(raw):
        raise _bad("a percent sign is followed by two hexadecimal digits")
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("the path is not UTF-8") from None
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise _bad(f"a path may have up to {_MAX_PATH_BYTES} bytes")
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        raise _bad("a path has no empty segments, and none that are . or ..")
    if "\\" in path or any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in path):
        raise _bad("a path has no backslash and no control characters")
    return path


def parse_source(value: str) -> str:
    """The stream path that `Stream-Forked-From` names by a URL path of this server. Raises: BadRequest."""
    if not value.startswith(ROOT):
        raise BadRequest("invalid_fork", f"Stream-Forked-From must be a path on this server: {ROOT}…")
    return parse_path(value.removeprefix(ROOT).encode("latin-1"))


def url_path(path: str) -> str:
    """The URL path of a stream, percent-encoded."""
    return ROOT + quote(path, safe="/-._~!$&'()*+,;=:@")


def first_segment(path: str) -> str:
    return path.partition("/")[0]


def is_read_only(path: str) -> bool:
    """Whether only the server writes there."""
    return first_segment(path) == GENERATIONS or path == REGISTRY


def _bad(message: str) -> BadRequest:
    return BadRequest("invalid_path", message)
