"""A long durable session: what opening it reads, and what one more event costs whoever follows it."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.bars import Figure, RowComparison
from bench.systems import OURS, STREAM_SERVERS, Place, StreamServer
from streamkeep.client.sessions import Author, DurableChat, SessionCache, SessionFold, chunk_row, whole_message

_ROWS_OF_AN_ANSWER = 100
_AT_ONCE = 1000
_MISSED = 20
_TIMED = 2000
_ROUNDS = 5
_MOST_READ_KIB = 64
_MOST_TIMES_A_SHORT_SESSION = 1.5
_SHORT = 1000
_AT = "2030-01-01T00:00:00.000Z"

Event = dict[str, object]


@dataclass(frozen=True, slots=True)
class Opening:
    """How long it took until all messages were there, in milliseconds, and the bytes of answers that it read."""

    milliseconds: float
    size: int


async def compare_sessions(place: Place, events: int, say: Callable[[str], None]) -> RowComparison:
    """A session of so many events: opened anew, opened with what was kept of it, and followed."""
    say(f"session: {events:,} events …")
    async with STREAM_SERVERS[OURS](place) as server:
        with tempfile.TemporaryDirectory(dir=place.folder) as folder:
            anew, again, faults = await asyncio.to_thread(_opened, server, events, Path(folder))
    short, long = await asyncio.to_thread(_live_costs, events)
    figures = [
        Figure("opened anew: read", "KiB", None, anew.size / 1024),
        Figure("opened anew: all messages there", "ms", None, anew.milliseconds),
        Figure(f"opened with what was kept, {_MISSED} events later: read", "KiB", _MOST_READ_KIB, again.size / 1024),
        Figure("opened with what was kept: all messages there", "ms", None, again.milliseconds),
        Figure("a live event and the message that it changes", "µs", None, long),
        Figure(f"the same, of one after {_SHORT:,} events", "times", _MOST_TIMES_A_SHORT_SESSION, long / short),
    ]
    title = f"{events:,} events in answers of {_ROWS_OF_AN_ANSWER} chunks, opened and followed from Python"
    return RowComparison("session", title, figures, faults)


def _opened(server: StreamServer, events: int, folder: Path) -> tuple[Opening, Opening, list[str]]:
    """Both openings, and what was wrong with what was shown."""
    rows = _session()
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def write(count: int) -> None:
            for start in range(0, count, _AT_ONCE):
                batch = [next(rows) for _ in range(min(_AT_ONCE, count - start))]
                client.post("/v1/stream/sessions/bench", json=batch).raise_for_status()

        client.put("/v1/sessions/bench").raise_for_status()
        write(events)
        cache = SessionCache(folder / "kept.sqlite3")
        anew, first = _open(server.url, cache)
        write(_MISSED)
        again, shown = _open(server.url, cache)
        exported = client.get("/v1/sessions/bench/export").json()["messages"]
    wanted = [message["id"] for message in exported]
    faults = [] if shown[: len(first)] == first and shown == wanted else ["a session was not shown whole"]
    return anew, again, faults


def _open(url: str, cache: SessionCache) -> tuple[Opening, list[str]]:
    transport = _Counting()
    began = time.perf_counter()
    with DurableChat(url, "bench", actor_id="reader", cache=cache, http=transport) as chat:
        shown = [message.id for message in chat.messages]
        taken = 1000 * (time.perf_counter() - began)
    return Opening(taken, transport.size), shown


def _live_costs(events: int) -> tuple[float, float]:
    """Microseconds of one event in a short and in a long session."""
    costs: dict[int, list[float]] = {_SHORT: [], events: []}
    for size, taken in costs.items():
        rows = _session()
        fold = SessionFold()
        for start in range(0, size, _AT_ONCE):
            fold.apply([next(rows) for _ in range(_AT_ONCE)], str(start))
        for _ in range(_ROUNDS):
            live = [next(rows) for _ in range(_TIMED)]
            began = time.process_time()
            for number, event in enumerate(live):
                for message_id in fold.apply([event], str(number)).message_ids:
                    fold.message(message_id)
            taken.append(1e6 * (time.process_time() - began) / _TIMED)
    return statistics.median(costs[_SHORT]), statistics.median(costs[events])


def _session() -> Iterator[Event]:
    """Questions and answers without end."""
    ann, gpt = Author("ann", "Ann"), Author("gpt", "GPT")
    number = 0
    while True:
        number += 1
        question, answer = f"question-{number}", f"answer-{number}"
        said = [{"type": "text", "content": "What is a stream?"}]
        yield whole_message(question, said, author=ann, role="user", at=_AT)
        for seq in range(_ROWS_OF_AN_ANSWER):
            is_last = seq == _ROWS_OF_AN_ANSWER - 1
            chunk = {"type": "done", "finishReason": "stop"} if is_last else {"type": "content", "delta": "word "}
            yield chunk_row(answer, seq, chunk, author=gpt, role="assistant", at=_AT)


class _Counting(httpx.HTTPTransport):
    """Counts the bytes of all answers' bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        counted = _Counted(response.stream, self)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=counted, extensions=response.extensions
        )


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, counting: _Counting) -> None:
        self._stream = stream
        self._counting = counting

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._counting.size += len(piece)
            yield piece

    def close(self) -> None:
        self._stream.close()
