"""How bytes stand in a row of `chunks`: as they came, or compressed once their stream is closed; encrypted where the tenant
has a key, what is compressed after that.

A segment covers a range of positions; neither changes the range, nor what is read from it. Of a row that is not raw no
part can be read alone, so such rows are kept small.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import zstandard

from streamkeep.storage._errors import StoreError
from streamkeep.storage.encryption import OVERHEAD_BYTES, Keyring, Sealer

RAW = 0
ZSTD = 1
SEALED = 2
SEALED_ZSTD = SEALED | ZSTD

SEGMENT_BYTES = 256 * 1024
_MIN_GAIN = 0.9
_LEVEL = 3


@dataclass(slots=True)
class Segment:
    """`size` raw bytes from `position` on; `data` is those bytes in `encoding`."""

    position: int
    size: int
    encoding: int
    data: bytes


def size_of(data: str, is_sealed: str) -> str:
    """How many raw bytes a value holds that was written just now, as an expression; null, which no row may have, if none."""
    return f"nullif(length({data}) - case when {is_sealed} then {OVERHEAD_BYTES} else 0 end, 0)"


def encoding_of(is_sealed: str) -> str:
    """The encoding of a value that was written just now, as an expression."""
    return f"(case when {is_sealed} then {SEALED} else {RAW} end)"


class Codec:
    """From bytes to rows and back, with the keys of a ring."""

    def __init__(self, keyring: Keyring) -> None:
        self.sealer = Sealer(keyring)
        self.is_plain = keyring.is_empty

    def written(self, tenant: str, stream_id: int, position: int, data: bytes) -> list[Segment]:
        """Rows for bytes that have just come: one as it is, or sealed ones; the encoding is RAW or SEALED."""
        if self.is_plain or not self.sealer.seals(tenant):
            return [Segment(position, len(data), RAW, data)]
        return [self._sealed(tenant, stream_id, segment) for segment in _cut(position, data)]

    def row(self, tenant: str, stream_id: int, position: int, data: bytes) -> Segment:
        """As `written`, for few bytes that are always read as a whole."""
        segment = Segment(position, len(data), RAW, data)
        if self.is_plain or not self.sealer.seals(tenant):
            return segment
        return self._sealed(tenant, stream_id, segment)

    def packed(self, tenant: str, stream_id: int, position: int, data: bytes) -> list[Segment]:
        """Rows for bytes that nothing will be added to: cut into segments, compressed where that gains at least a tenth."""
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        segments = [_compressed(compressor, segment) for segment in _cut(position, data)]
        if self.is_plain or not self.sealer.seals(tenant):
            return segments
        return [self._sealed(tenant, stream_id, segment) for segment in segments]

    def unpacked(self, tenant: str, stream_id: int, segment: Segment) -> bytes:
        """The raw bytes of a row; never more than the row says it has.

        Raises:
            KeyUnavailable: it is sealed with a key that is not here.
            StoreError: the row does not hold what it says.
        """
        data, encoding = segment.data, segment.encoding
        if encoding & SEALED:
            encoding ^= SEALED
            data = self.sealer.open(tenant, stream_id, _place(segment.position, segment.size, encoding), data)
        return data if encoding == RAW else _decompressed(encoding, segment.size, data)

    def _sealed(self, tenant: str, stream_id: int, segment: Segment) -> Segment:
        place = _place(segment.position, segment.size, segment.encoding)
        data = self.sealer.seal(tenant, stream_id, place, segment.data)
        return Segment(segment.position, segment.size, SEALED | segment.encoding, data)


def _place(position: int, size: int, encoding: int) -> bytes:
    return struct.pack(">qqB", position, size, encoding)


def _cut(position: int, data: bytes) -> list[Segment]:
    pieces = [data[start : start + SEGMENT_BYTES] for start in range(0, len(data), SEGMENT_BYTES)]
    return [Segment(position + i * SEGMENT_BYTES, len(piece), RAW, piece) for i, piece in enumerate(pieces)]


def _compressed(compressor: zstandard.ZstdCompressor, segment: Segment) -> Segment:
    data = compressor.compress(segment.data)
    if len(data) > segment.size * _MIN_GAIN:
        return segment
    return Segment(segment.position, segment.size, ZSTD, data)


def _decompressed(encoding: int, size: int, data: bytes) -> bytes:
    try:
        # The library allocates whatever the frame announces, so the announcement is checked first.
        if encoding != ZSTD or zstandard.get_frame_parameters(data).content_size != size:
            raise StoreError(f"a segment of {size} bytes is damaged")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as exc:
        raise StoreError(f"a segment of {size} bytes is damaged") from exc
