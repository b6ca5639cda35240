"""An answer's bytes in, the message that they are out, at any moment: streamed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from streamkeep.adapters._rules.conversations import Turn, answer_of, as_written
from streamkeep.client import ProtocolError, ToolCall
from streamkeep.client._rules.messages import MAX_MESSAGE_CHARACTERS
from streamkeep.client._rules.sse import EventDecoder
from streamkeep.sessions.answers import AnswerReader, Began, CallBegan, CallInput, Failed, Finished, Said, Step

_MAX_BODY_BYTES = 8 * 1024 * 1024
# An event that does not have its format's shape is met as one of these, and skipped.
_ODD_SHAPES = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


class Fold(Protocol):
    """One answer. After what cannot be read, or is too large, nothing more is read."""

    @property
    def is_too_large(self) -> bool: ...

    def receive(self, data: bytes) -> None: ...

    def turn(self) -> Turn | None:
        """What has come so far; None where nothing of it can be read."""

    @property
    def is_whole(self) -> bool:
        """Whether the format's own end was reached."""


def fold_for(content_type: str | None) -> Fold:
    """What reads a body of this type."""
    is_streamed = (content_type or "").partition(";")[0].strip().lower() == "text/event-stream"
    return StreamedFold() if is_streamed else WholeFold()


class StreamedFold:
    """Server-sent events."""

    def __init__(self) -> None:
        self.is_too_large = False
        self.is_whole = False
        self._decoder = EventDecoder(max_event_bytes=_MAX_BODY_BYTES)
        self._reader = AnswerReader()
        self._is_deaf = False
        self._has_begun = False
        self._said: list[str] = []
        self._calls: dict[str, tuple[CallBegan, list[str]]] = {}
        self._room = MAX_MESSAGE_CHARACTERS

    def receive(self, data: bytes) -> None:
        if self._is_deaf:
            return
        try:
            events = self._decoder.feed(data)
        except ProtocolError:
            self._is_deaf = self.is_too_large = True
            return
        for event in events:
            with suppress(*_ODD_SHAPES):
                self._take(event.data)

    def turn(self) -> Turn | None:
        if not self._has_begun:
            return None
        # Arguments that are whole are written as they are everywhere; a piece of them stays what it is.
        calls = (ToolCall(call.vendors_id, call.name, as_written("".join(said))) for call, said in self._calls.values())
        return Turn("assistant", "".join(self._said), tuple(calls))

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._take_steps(self._reader.end())
            return
        event = json.loads(data)
        self._take_steps(self._reader.feed(event))
        if self._is_deaf:
            return
        # Who asked for a chat completion may stop reading here; the usage behind it is no part of the message.
        self.is_whole = self.is_whole or any(choice.get("finish_reason") for choice in event.get("choices") or ())

    def _take_steps(self, steps: Iterator[Step]) -> None:
        for step in steps:
            if self._is_deaf:
                return
            match step:
                case Began():
                    self._has_begun = True
                case Said():
                    self._keep(self._said, step.text)
                case CallBegan():
                    self._keep([], step.vendors_id + step.name)
                    self._calls[step.id] = (step, [])
                case CallInput():
                    self._keep(self._calls[step.id][1], step.text)
                case Finished():
                    self.is_whole = True
                case Failed():
                    self._is_deaf = True

    def _keep(self, kept: list[str], text: str) -> None:
        kept.append(text[: self._room])
        self._room -= len(kept[-1])
        if kept[-1] != text:
            self._is_deaf = self.is_too_large = True


class WholeFold:
    """One JSON body, which says nothing before its end."""

    def __init__(self) -> None:
        self.is_too_large = False
        self._body = bytearray()
        self._turn: Turn | None = None

    @property
    def is_whole(self) -> bool:
        return self.turn() is not None

    def receive(self, data: bytes) -> None:
        if len(self._body) + len(data) > _MAX_BODY_BYTES:
            self.is_too_large = True
            self._body.clear()
        if not self.is_too_large:
            self._body += data

    def turn(self) -> Turn | None:
        if self._turn is None:
            self._turn = answer_of(bytes(self._body))
        return self._turn
