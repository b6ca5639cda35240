"""JSON mode at rest (design, traps in the core, 8): each message raw, then one byte that JSON text cannot hold.

So merging rows loses no message bounds, the text stays as it was written, and a legal offset is 0 or follows the byte.
"""

from __future__ import annotations

SEPARATOR = b"\x1e"


def encode_message(text: bytes) -> bytes:
    """A message as it is stored."""
    return text + SEPARATOR


def to_array(stored: bytes) -> bytes:
    """Stored messages as one JSON array; nothing stored is an empty array."""
    return b"[" + stored.removesuffix(SEPARATOR).replace(SEPARATOR, b",") + b"]"
