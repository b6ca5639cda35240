"""One line of input, edited as terminals do: keys in, the line and what was meant out."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPE = "\x1b"
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|O[A-Za-z]|[^\[O])")
# It holds together what is one sign to whoever reads it.
_JOINER = "\u200d"
_MOST_REMEMBERED = 100
_MOST_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Submitted:
    """A line was finished."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """There will be no more lines."""


@dataclass(frozen=True, slots=True)
class Pressed:
    """A character that stands alone in an empty line. It is in the line only when `LineEditor.insert` puts it there."""

    character: str


Meant = Submitted | Ended | Pressed


class LineEditor:
    """The line, where its cursor is, and the lines before it."""

    def __init__(self) -> None:
        self.text: str = ""
        self.cursor: int = 0
        self._history: list[str] = []
        self._recalled = 0
        self._rest = ""
        self._is_pasting = False

    def feed(self, keys: str, *, watched: str = "") -> list[Meant]:
        """Take what was typed, in pieces of any size; `watched` are characters to be told of in an empty line."""
        keys, self._rest = self._rest + keys, ""
        meant: list[Meant] = []
        at = 0
        while at < len(keys):
            if keys[at] == _ESCAPE:
                sequence = _SEQUENCE.match(keys, at)
                if sequence is None:
                    # What may go on with the next piece waits for it; Escape alone does nothing anyway.
                    self._rest = keys[at:] if len(keys) - at < 32 else ""
                    break
                self._obey(sequence[0])
                at = sequence.end()
                continue
            found = self._type(keys[at], watched)
            if found is not None:
                meant.append(found)
            at += 1
        return meant

    def insert(self, text: str) -> None:
        """Put text where the cursor is."""
        if len(self.text) + len(text) <= _MOST_CHARACTERS:
            self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
            self.cursor += len(text)

    def _type(self, key: str, watched: str) -> Meant | None:
        if self._is_pasting and key in "\r\n":
            self.insert("\n")
            return None
        match key:
            case "\r" | "\n":
                return self._submit()
            case "\x7f" | "\x08":
                self._cut(self.cursor - 1, self.cursor)
            case "\x04" if not self.text:
                return Ended()
            case "\x04":
                self._cut(self.cursor, self.cursor + 1)
            case "\x01":
                self.cursor = 0
            case "\x05":
                self.cursor = len(self.text)
            case "\x15":
                self._cut(0, self.cursor)
            case "\x0b":
                self._cut(self.cursor, len(self.text))
            case "\x17":
                begin = len(self.text[: self.cursor].rstrip().rpartition(" ")[0])
                self._cut(begin + (begin > 0), self.cursor)
            case "\t":
                self.insert("    " if self._is_pasting else "")
            case _ if not (key.isprintable() or key == _JOINER):
                pass
            case _ if not self.text and not self._is_pasting and key.lower() in watched:
                return Pressed(key.lower())
            case _:
                self.insert(key)
        return None

    def _submit(self) -> Submitted | None:
        text, self.text, self.cursor = self.text, "", 0
        if not text.strip():
            return None
        self._history = [*self._history, text][-_MOST_REMEMBERED:]
        self._recalled = len(self._history)
        return Submitted(text)

    def _obey(self, sequence: str) -> None:
        match sequence:
            case "\x1b[D" | "\x1bOD":
                self.cursor = max(0, self.cursor - 1)
            case "\x1b[C" | "\x1bOC":
                self.cursor = min(len(self.text), self.cursor + 1)
            case "\x1b[H" | "\x1bOH" | "\x1b[1~":
                self.cursor = 0
            case "\x1b[F" | "\x1bOF" | "\x1b[4~":
                self.cursor = len(self.text)
            case "\x1b[3~":
                self._cut(self.cursor, self.cursor + 1)
            case "\x1b[A" | "\x1bOA":
                self._recall(-1)
            case "\x1b[B" | "\x1bOB":
                self._recall(1)
            case "\x1b[200~":
                self._is_pasting = True
            case "\x1b[201~":
                self._is_pasting = False

    def _recall(self, step: int) -> None:
        self._recalled = max(0, min(len(self._history), self._recalled + step))
        self.text = self._history[self._recalled] if self._recalled < len(self._history) else ""
        self.cursor = len(self.text)

    def _cut(self, begin: int, end: int) -> None:
        begin = max(0, begin)
        self.text = self.text[:begin] + self.text[end:]
        self.cursor = begin
