"""An agent's answer: its bytes in, the chunks of its message out, the same ones however the bytes were cut.

Two processes that read the same bytes write the same chunks, and whoever reads them again goes on where another one stopped.
The last chunk says how it ended. An answer that ends without its format's own end mark is an error, whatever else was well:
it may lack its rest.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from streamkeep.sessions.agents.chunks import ChunkWriter
from streamkeep.sessions.agents.formats import AgentFormat, Format, failure_of, format_for
from streamkeep.sessions.agents.framing import AnswerEvents, EndMark, Event
from streamkeep.sessions.answers import TRUNCATED
from streamkeep.sessions.events import EndReason

# An event that does not have its format's shape is met as one of these, and left out.
_ODD_SHAPES = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """How the bytes ended: all of them came, somebody stopped them, or they broke off. `code` and `message` say why."""

    reason: EndReason
    code: str = ""
    message: str = ""


class AgentAnswer:
    """One answer. `format` names its format where that is known, else the first event tells it."""

    def __init__(self, format: AgentFormat | None = None) -> None:
        self._wanted = format
        self._events = AnswerEvents()
        self._writer = ChunkWriter()
        self._format: Format | None = None
        self._held: list[str] = []

    @property
    def is_too_large(self) -> bool:
        """Whether it was ended for its size; nothing more of it is read."""
        return self._writer.is_too_large

    @property
    def held_bytes(self) -> int:
        """How much is held of what is not complete; to read it takes place with its last bytes."""
        return self._events.held_bytes

    @property
    def is_last_word(self) -> bool:
        """Whether it is whole, and waits for nobody to run a tool or to approve of one."""
        return self._writer.ended_by == "done" and not self._writer.has_open_calls

    @property
    def ended_by(self) -> EndReason | None:
        return self._writer.ended_by

    def feed(self, data: bytes) -> list[str]:
        """The chunks that the next bytes complete, as JSON. The one that ends the message comes with `end`, so that it can be
        written together with what follows from it."""
        if self._writer.ended_by is not None:
            return []
        for event in self._events.feed(data):
            self._take(event)
        if self._events.is_too_large:
            self._writer.refuse_more()
        taken = self._writer.taken()
        if self._writer.ended_by is not None:
            self._held = taken[-1:]
            return taken[:-1]
        return taken

    def end(self, end: AnswerEnd) -> list[str]:
        """The last chunks. An answer that was whole before its bytes broke off is whole."""
        if self._writer.ended_by is None and end.reason != "stop":
            for event in self._events.end():
                self._take(event)
        if self._writer.ended_by is None:
            self._finish(end)
        return [*self._held, *self._writer.taken(), f'{{"type":"message-end","reason":"{self._writer.ended_by}"}}']

    def _take(self, event: Event | EndMark) -> None:
        if self._writer.ended_by is not None:
            return
        if isinstance(event, str):
            self._take_end_mark()
            return
        with suppress(*_ODD_SHAPES):
            failure = failure_of(event)
            if failure is not None:
                message, code = failure
                self._writer.fail(message, code or "agent_failed")
                return
            self._format = self._format or format_for(event, self._wanted, self._writer)
            if self._format is not None:
                self._format.take(event)

    def _take_end_mark(self) -> None:
        if self._format is None:
            self._writer.finish(None)
        else:
            self._format.end(is_clean=True, is_marked=True)

    def _finish(self, end: AnswerEnd) -> None:
        writer, is_clean = self._writer, end.reason == "done"
        if end.reason == "stop":
            writer.stop()
            return
        if self._format is not None:
            self._format.end(is_clean=is_clean, is_marked=False)
        if writer.ended_by is not None:
            return
        if not is_clean:
            writer.fail(end.message, end.code)
        elif self._format is None:
            writer.fail("the agent's answer is in no format that is known", "unknown_format")
        else:
            writer.fail(TRUNCATED, "truncated")
