"""From the pieces of a stream to what its reader wants: text, lines, messages, events. However the bytes are split."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from streamkeep.client._errors import ProtocolError
from streamkeep.client._rules import protocol
from streamkeep.client._rules.reading import Piece
from streamkeep.client._rules.sse import EventDecoder

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """Bytes of a stream, or none where only the tail was reached. After it, read on from `offset`."""

    data: bytes
    offset: str
    is_up_to_date: bool
    is_closed: bool


@dataclass(frozen=True, slots=True)
class JsonBatch(Generic[T]):
    """Messages that came together. After them, read on from `offset`."""

    items: tuple[T, ...]
    offset: str
    is_up_to_date: bool
    is_closed: bool


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream whose content is server-sent events. `id` is None where the event has none of its own."""

    event: str
    data: str
    id: str | None = None


class Decoder(Protocol[T_co]):
    """Pieces in, what they complete out. `holds_back` while the beginning of something waits for its rest."""

    @property
    def holds_back(self) -> bool: ...

    def feed(self, piece: Piece) -> Iterable[T_co]:
        """Raises: ProtocolError."""

    def end(self) -> Iterable[T_co]:
        """What is left at the end of the stream."""


class Chunks:
    """Every piece as it came, also those that only tell of the tail."""

    holds_back = False

    def feed(self, piece: Piece) -> Iterable[StreamChunk]:
        yield StreamChunk(b"".join(piece.parts), piece.offset, piece.is_up_to_date, piece.is_closed)

    def end(self) -> Iterable[StreamChunk]:
        return ()


class Bytes:
    """The bytes as they came."""

    holds_back = False

    def feed(self, piece: Piece) -> Iterable[bytes]:
        return piece.parts

    def end(self) -> Iterable[bytes]:
        return ()


class Text:
    """Whole characters; what is none in this encoding becomes U+FFFD. Raises: LookupError: no such encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")

    @property
    def holds_back(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def feed(self, piece: Piece) -> Iterable[str]:
        return filter(None, (self._decoder.decode(part) for part in piece.parts))

    def end(self) -> Iterable[str]:
        return filter(None, (self._decoder.decode(b"", final=True),))


class Lines:
    """Lines of UTF-8 without their ends, LF or CR LF; a last one needs no end."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    @property
    def holds_back(self) -> bool:
        return self._rest_bytes > 0

    def feed(self, piece: Piece) -> Iterable[str]:
        for part in piece.parts:
            *whole, rest = part.split(b"\n")
            for line in whole:
                yield b"".join([*self._rest, line]).removesuffix(b"\r").decode("utf-8", "replace")
                self._rest, self._rest_bytes = [], 0
            self._rest.append(rest)
            self._rest_bytes += len(rest)
            if self._rest_bytes > _MAX_LINE_BYTES:
                raise ProtocolError(f"a line has more than {_MAX_LINE_BYTES} bytes")

    def end(self) -> Iterable[str]:
        if self._rest_bytes:
            yield b"".join(self._rest).decode("utf-8", "replace")


class Batches:
    """The messages of a JSON stream, as they came together; a batch without any tells that the tail was reached."""

    holds_back = False

    def feed(self, piece: Piece) -> Iterable[JsonBatch[Any]]:
        items = tuple(item for part in piece.parts for item in protocol.messages(part))
        yield JsonBatch(items, piece.offset, piece.is_up_to_date, piece.is_closed)

    def end(self) -> Iterable[JsonBatch[Any]]:
        return ()


class Messages:
    """The messages of a JSON stream, one by one."""

    holds_back = False

    def feed(self, piece: Piece) -> Iterable[Any]:
        return (item for part in piece.parts for item in protocol.messages(part))

    def end(self) -> Iterable[Any]:
        return ()


class Events:
    """The events of a stream whose content is server-sent events."""

    def __init__(self) -> None:
        self._decoder = EventDecoder()

    @property
    def holds_back(self) -> bool:
        return self._decoder.is_inside_event

    def feed(self, piece: Piece) -> Iterable[ServerSentEvent]:
        for part in piece.parts:
            for event in self._decoder.feed(part):
                yield ServerSentEvent(event.name, event.data.decode("utf-8", "replace"), event.id)

    def end(self) -> Iterable[ServerSentEvent]:
        return ()
