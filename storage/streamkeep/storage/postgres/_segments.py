"""How bytes stand in a row of `chunks`: as they came, or compressed once their stream is closed.

A segment covers a range of positions; compressing it changes neither the range nor what is read from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from streamkeep.storage._errors import StoreError

RAW = 0
ZSTD = 1

SEGMENT_BYTES = 256 * 1024
_MIN_GAIN = 0.9
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """`size` raw bytes from `position` on; `data` is those bytes in `encoding`."""

    position: int
    size: int
    encoding: int
    data: bytes


def pack(position: int, data: bytes) -> list[Segment]:
    """Cut bytes into segments of at most `SEGMENT_BYTES`, compressed where that gains at least a tenth."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    segments = []
    for start in range(0, len(data), SEGMENT_BYTES):
        raw = data[start : start + SEGMENT_BYTES]
        packed = compressor.compress(raw)
        gains = len(packed) <= len(raw) * _MIN_GAIN
        segments.append(Segment(position + start, len(raw), ZSTD if gains else RAW, packed if gains else raw))
    return segments


def unpack(encoding: int, size: int, data: bytes) -> bytes:
    """The raw bytes of a row; never more than the row says it has.

    Raises:
        StoreError: the row does not hold what it says.
    """
    if encoding == RAW:
        return data
    try:
        # The library allocates whatever the frame announces, so the announcement is checked first.
        if encoding != ZSTD or zstandard.get_frame_parameters(data).content_size != size:
            raise StoreError(f"a segment of {size} bytes is damaged")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as exc:
        raise StoreError(f"a segment of {size} bytes is damaged") from exc
