"""What every system under test is asked for, and what a chunk looks like.

All chunks of a stream have the same size, so a receiver finds their bounds by counting, however they were split or
merged on the way, and each carries the instant at which upstream wrote it. `time.monotonic_ns` is one clock for all
processes of a machine. The format is OpenAI's chat stream, since that is what the proxy looks at most closely.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

_START = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":"'
)
_END = b'"},"finish_reason":null}]}\n\n'
_STAMP_DIGITS = 19

STAMP = slice(len(_START), len(_START) + _STAMP_DIGITS)
"""Where in a chunk its time stands, as decimal nanoseconds."""

MIN_CHUNK_BYTES = len(_START) + _STAMP_DIGITS + len(_END)

LAST = b"data: [DONE]\n\n"
"""What ends every stream, after its chunks. Shorter than any chunk."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`generations` streams, started evenly over `ramp_seconds`, each of `rate` chunks a second for `seconds`."""

    generations: int
    rate: float
    chunk_bytes: int
    seconds: float
    ramp_seconds: float

    @property
    def chunks_per_generation(self) -> int:
        return max(1, round(self.rate * self.seconds))

    @property
    def expected_seconds(self) -> float:
        """From the first start to the last end, when nothing is late."""
        return self.ramp_seconds + (self.chunks_per_generation - 1) / self.rate

    def target(self, stream_id: str) -> str:
        """Path and query under which the fake upstream plays one of these streams."""
        query = urlencode(
            {
                "id": stream_id,
                "rate": self.rate,
                "chunk_bytes": self.chunk_bytes,
                "chunks": self.chunks_per_generation,
            }
        )
        return f"/v1/chat/completions?{query}"


class ChunkWriter:
    """Makes the chunks of one stream. Its id fills them up, so that bytes of two streams never look alike."""

    def __init__(self, stream_id: str, chunk_bytes: int) -> None:
        filler = chunk_bytes - MIN_CHUNK_BYTES
        if filler < 0:
            raise ValueError(f"a chunk has at least {MIN_CHUNK_BYTES} bytes")
        text = f" {stream_id}".encode()
        self._end = (text * (filler // len(text) + 1))[:filler] + _END

    def chunk(self, at_ns: int) -> bytes:
        return b"%b%019d%b" % (_START, at_ns, self._end)
