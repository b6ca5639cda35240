"""Recognise a vendor's end mark, in-band error, token usage and signs of life in a response's body, from the side.

Beside `genai.py`, which names calls in traces, this is the one place of the proxy that knows vendors' formats. It only
labels: it never changes a byte, what it does not know is unknown, and a generation without an observer differs in its
label alone.

How it keeps off the hot path. `feed` collects chunks. When a few KiB have gathered, they are cut at the last end of an
event. The first such blocks, which are smaller, are read event by event until the dialect is known. From then on a block
is kept until the next one displaces it, and a displaced block is read only if it contains one of a few words that end
marks consist of: a search, not a parse. What a stream ends with (end mark, error, usage) stands in its last block and
what came after it, which `finish` reads in full. An event that grows past a limit is not kept: its name, or the `type` that its data begin
with, still counts once the event is complete.

Beside that, each chunk is looked at for whether it holds content, or only what keeps a connection open: comments, empty
lines, pings. For content that mostly means its first line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from streamkeep.proxy.rules.genai import clean_name
from streamkeep.storage import Usage

# An event takes as long to read as twenty to search: the end of a stream is read whole, so what is kept for it is small,
# and its beginning only as far as the first events that tell the dialect.
_BATCH_BYTES = 4 * 1024
_FIRST_BATCH_BYTES = 512
_MAX_EVENT_BYTES = 1024 * 1024
_LABEL_BYTES = 1024
_HEAD_BYTES = 64 * 1024
_MAX_MESSAGE_LENGTH = 500

FINAL = "provider_final"
PARTIAL = "provider_partial"


class Dialect(StrEnum):
    """The wire formats that are told apart."""

    OPENAI_CHAT = "openai-chat"
    OPENAI_COMPLETION = "openai-completion"
    OPENAI_RESPONSES = "openai-responses"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    AI_SDK = "ai-sdk"
    GEMINI = "gemini"


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen. `ended` is True when the end mark was there, False when the dialect has one and it was not, None
    where the format is unknown or has none; `failed` is the vendor's own message about an error inside the body; `model`
    and `finish_reasons` are the vendor's own words."""

    dialect: Dialect | None = None
    ended: bool | None = None
    failed: str | None = None
    usage: Usage | None = None
    model: str | None = None
    finish_reasons: tuple[str, ...] = ()


class EndingObserver:
    """Watches one body. `content_encoding` other than identity makes the body unreadable, hence unknown."""

    __slots__ = ("_observation", "_watched")

    def __init__(
        self, content_type: str | None, content_encoding: str | None = None, *, batch_bytes: int = _BATCH_BYTES
    ) -> None:
        self._watched = _watch(content_type, content_encoding, batch_bytes)
        self._observation: Observation | None = None

    def feed(self, data: bytes) -> bool:
        """Look at the next bytes of the body. Never raises, whatever they are.

        Returns whether they hold content, and not only what keeps the connection open; a format that is not known holds
        nothing else.
        """
        return True if self._watched is None else self._watched.feed(data)

    @property
    def has_ended(self) -> bool:
        """Whether the end mark has passed. Reads what has gathered: ask when it matters, not after each chunk."""
        return self._watched is not None and self._watched.has_ended()

    @property
    def usage_so_far(self) -> Usage | None:
        """Tokens, as far as the vendor has told them. Reads what has gathered, as `has_ended` does."""
        return None if self._watched is None else self._watched.usage_so_far()

    def finish(self) -> Observation:
        """Say what was seen, after the last byte. A second call returns the same."""
        if self._observation is None:
            self._observation = Observation() if self._watched is None else self._watched.finish()
        return self._observation


def _watch(content_type: str | None, content_encoding: str | None, batch_bytes: int) -> _EventStream | _JsonBody | None:
    if (content_encoding or "identity").strip().lower() != "identity":
        return None
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == "text/event-stream":
        return _EventStream(batch_bytes)
    return _JsonBody() if media_type == "application/json" else None


class _JsonBody:
    """A body that is one JSON value: it has no end mark, and tells its usage at the top level."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bool:
        self._size += len(data)
        if self._size <= _MAX_EVENT_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        return not data.isspace()

    def has_ended(self) -> bool:
        return False

    def usage_so_far(self) -> Usage | None:
        return None

    def finish(self) -> Observation:
        body = _json_object(b"".join(self._parts))
        if body is None:
            return Observation()
        dialect = _dialect_of_whole(body)
        usage = body.get("usageMetadata" if dialect is Dialect.GEMINI else "usage")
        return Observation(
            dialect,
            usage=_Tokens.of(usage).usage(FINAL),
            model=_name(body, "model", "modelVersion"),
            finish_reasons=_reasons_of_whole(body),
        )


class _EventStream:
    """Collects server-sent events and gives those that matter to `_Signs`; see the module's text."""

    __slots__ = (
        "_batch_bytes",
        "_fresh",
        "_fresh_size",
        "_head_size",
        "_later_batch_bytes",
        "_open",
        "_open_size",
        "_pulse",
        "_recent",
        "_signs",
    )

    def __init__(self, batch_bytes: int) -> None:
        self._batch_bytes = min(batch_bytes, _FIRST_BATCH_BYTES)
        self._later_batch_bytes = batch_bytes
        self._signs = _Signs()
        self._pulse = _Pulse()
        self._head_size = 0
        # In the body's order: the last block of whole events, the event that is still open, and what came just now.
        self._recent = b""
        self._open: list[bytes] = []
        self._open_size = 0
        self._fresh: list[bytes] = []
        self._fresh_size = 0

    def feed(self, data: bytes) -> bool:
        self._fresh.append(data)
        self._fresh_size += len(data)
        if self._fresh_size >= self._batch_bytes:
            self._gather()
        return self._pulse.feed(data)

    def has_ended(self) -> bool:
        self._read_all()
        return self._signs.ended

    def usage_so_far(self) -> Usage | None:
        self._read_all()
        return self._signs.observation().usage

    def finish(self) -> Observation:
        self._read_all()
        # The last event may lack its empty line; it counts if what it holds is complete.
        if self._open_size <= _MAX_EVENT_BYTES:
            for name, data in _events(b"".join(self._open)):
                self._signs.note(name, data, is_whole=False)
        return self._signs.observation()

    def _gather(self) -> None:
        """Take what came: cut it at the last end of an event, and keep the rest as the open event."""
        # The open event's last byte may be the first half of what separates it from the next.
        seam = self._open[-1][-1:] if self._open else b""
        batch = b"".join((seam, *self._fresh))
        self._fresh, self._fresh_size = [], 0
        end = _last_event_end(batch)
        if end is None:
            self._keep_open(batch[len(seam) :])
            return
        if self._open_size > _MAX_EVENT_BYTES:
            # The rest of a huge event ends at the first end there is, and other events may follow in this batch.
            first = _first_event_end(batch)
            self._read_recent()
            self._signs.note_label(*_label(b"".join(self._open)))
            self._block(batch[first:end])
        else:
            self._block(b"".join((*self._open, batch[len(seam) : end])))
        self._open, self._open_size = [], 0
        self._keep_open(batch[end:])

    def _keep_open(self, data: bytes) -> None:
        if not data:
            return
        self._open_size += len(data)
        self._open.append(data)
        if self._open_size > _MAX_EVENT_BYTES:
            # Enough to tell its name, and the last byte, for the seam.
            self._open = [b"".join(self._open)[:_LABEL_BYTES], data[-1:]]

    def _block(self, block: bytes) -> None:
        """Take a block of whole events: the newest is kept for `finish`, the one before it is read as far as needed."""
        displaced, self._recent = self._recent, block
        if self._signs.dialect is None and self._head_size < _HEAD_BYTES:
            self._head_size += len(block)
            self._read_recent()
            return
        self._batch_bytes = self._later_batch_bytes
        if displaced:
            self._signs.forget_unconfirmed()
            if any(word in displaced for word in self._signs.words):
                self._read(displaced)

    def _read_all(self) -> None:
        # First what is kept, which what comes next would displace.
        self._read_recent()
        self._gather()
        self._read_recent()

    def _read_recent(self) -> None:
        self._read(self._recent)
        self._recent = b""

    def _read(self, block: bytes) -> None:
        for name, data in _events(block):
            self._signs.note(name, data)


class _Pulse:
    """Tells the content of server-sent events from comments, empty lines and pings.

    It reads lines, and of those no further than to the first with content. What is kept between two chunks is the start of
    the line that is still open; such a line counts as soon as enough of it is there to judge by.
    """

    __slots__ = ("_is_in_ping", "_line")

    def __init__(self) -> None:
        self._line = b""
        self._is_in_ping = False

    def feed(self, data: bytes) -> bool:
        if self._line:
            data = self._line + data
        elif (
            data.endswith(b"}\n\n")
            and data.startswith(b'data: {"')
            and len(data) > _MAX_PING_BYTES
            and not self._is_in_ping
        ):
            # What most chunks are, in a quarter of the time.
            return True
        if b"\r" in data:
            # The last one may be half a line end.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end == start:
                # Some send nothing else, and much of it.
                self._is_in_ping = False
            elif self._is_content(data[start:end]):
                start = data.rfind(b"\n") + 1
                self._line = data[start : start + _LINE_BYTES]
                return True
            start = end + 1
        self._line = data[start : start + _LINE_BYTES]
        return len(self._line) == _LINE_BYTES and self._is_content(self._line)

    def _is_content(self, line: bytes) -> bool:
        if line.startswith(b"data:"):
            return not self._is_in_ping and (len(line) > _MAX_PING_BYTES or not _PING_DATA.match(line))
        if line.startswith(b"event:"):
            self._is_in_ping = line[6:].strip() in _PING_NAMES
            return not self._is_in_ping
        return not self._is_in_ping and not line.startswith((b":", b"id:", b"retry:"))


class _Signs:
    """What the events of one stream say, put together event by event."""

    __slots__ = ("_failed", "_is_confirmed", "_is_final", "_model", "_reasons", "_tokens", "dialect", "ended")

    def __init__(self) -> None:
        self.dialect: Dialect | None = None
        self.ended = False
        self._failed: str | None = None
        self._is_confirmed = False
        self._is_final = False
        self._tokens = _Tokens()
        self._model: str | None = None
        self._reasons: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[bytes, ...]:
        """One of these stands in every event that has an end mark or an error of the dialect."""
        return _EVERY_WORD if self.dialect is None else _WORDS[self.dialect]

    def observation(self) -> Observation:
        ended = True if self.ended else None if self.dialect is None else False
        usage = self._tokens.usage(FINAL if self._is_final or self.ended else PARTIAL)
        return Observation(self.dialect, ended, self._failed, usage, self._model, self._reasons)

    def note(self, name: str, data: bytes, *, is_whole: bool = True) -> None:
        """Take one event. Of what is not JSON only the name counts, and that only of an event that is known to be whole."""
        if data.strip() == b"[DONE]":
            self.ended = True
            return
        self.forget_unconfirmed()
        event = _json_object(data)
        if event is None:
            if is_whole:
                self.note_label(name, "")
            return
        kind = event.get("type")
        kind = kind if isinstance(kind, str) else name
        if self.dialect is None:
            self.dialect = _dialect(kind, event)
        match self.dialect:
            case Dialect.OPENAI_CHAT | Dialect.OPENAI_COMPLETION:
                self._note_choices(event)
            case Dialect.OPENAI_RESPONSES:
                self._note_response(kind, event)
            case Dialect.ANTHROPIC_MESSAGES:
                self._note_message(kind, event)
            case Dialect.AI_SDK:
                self._note_part(kind, event)
            case Dialect.GEMINI:
                self._note_candidates(event)
            case None:
                self._fail(event if event.get("type") == "error" else event.get("error"), is_confirmed=False)

    def note_label(self, name: str, kind: str) -> None:
        """Take a whole event of which only the name, or the type that its data begin with, could be read."""
        label = kind or name
        if self.dialect is None:
            self.dialect = _dialect(label, {})
        if self.dialect is Dialect.OPENAI_RESPONSES:
            self._note_response(label, {})
        elif self.dialect is Dialect.ANTHROPIC_MESSAGES:
            self._note_message(label, {})

    def forget_unconfirmed(self) -> None:
        """An error in an unknown format counts only as the last thing that is said."""
        if not self._is_confirmed:
            self._failed = None

    def _note_choices(self, event: Mapping[str, object]) -> None:
        choices = event.get("choices")
        choices = choices if isinstance(choices, list) else []
        if any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices):
            self.ended = True
            self._reasons = _reasons(choices, "finish_reason")
        self._model = self._model or _name(event, "model")
        if event.get("error"):
            self._fail(event["error"])
        if isinstance(event.get("usage"), dict):
            self._tokens = self._tokens.updated(_Tokens.of(event["usage"]))
            # Some vendors count along in every chunk; the last word comes in a chunk of its own.
            self._is_final = not choices

    def _note_response(self, kind: str, event: Mapping[str, object]) -> None:
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        self._model = self._model or _name(response, "model")
        if kind in ("response.completed", "response.incomplete"):
            self.ended = True
            self._reasons = _reasons([response], "status")
        elif kind == "response.failed":
            self._fail(response.get("error") or kind)
        elif kind == "error":
            self._fail(event)
        if isinstance(response.get("usage"), dict):
            self._tokens = _Tokens.of(response["usage"])

    def _note_message(self, kind: str, event: Mapping[str, object]) -> None:
        if kind == "message_stop":
            self.ended = True
        elif kind == "error":
            self._fail(event)
        elif kind == "message_start":
            message = event.get("message")
            message = message if isinstance(message, dict) else {}
            self._tokens = _Tokens.of(message.get("usage"))
            self._model = _name(message, "model")
        elif kind == "message_delta" and isinstance(event.get("usage"), dict):
            self._tokens = self._tokens.updated(_Tokens.of(event["usage"]))
            self._reasons = _reasons([event.get("delta")], "stop_reason") or self._reasons
            self._is_final = True

    def _note_part(self, kind: str, event: Mapping[str, object]) -> None:
        if kind == "finish":
            self.ended = True
            self._reasons = _reasons([event], "finishReason")
        elif kind == "error":
            self._fail(event.get("errorText") or kind)
        elif kind == "abort":
            self._fail(event.get("reason") or kind)

    def _note_candidates(self, event: Mapping[str, object]) -> None:
        candidates, feedback = event.get("candidates"), event.get("promptFeedback")
        if isinstance(candidates, list) and any(isinstance(c, dict) and c.get("finishReason") for c in candidates):
            self.ended = True
            self._reasons = _reasons(candidates, "finishReason")
        self._model = self._model or _name(event, "modelVersion")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self.ended = True
        if event.get("error"):
            self._fail(event["error"])
        if isinstance(event.get("usageMetadata"), dict):
            self._tokens = self._tokens.updated(_Tokens.of(event["usageMetadata"]))

    def _fail(self, error: object, *, is_confirmed: bool = True) -> None:
        if isinstance(error, dict) and isinstance(error.get("error"), dict):
            error = error["error"]
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str):
            if not is_confirmed:
                return
            message = "upstream reported an error"
        # JSON can spell half of a surrogate pair, which no encoder of ours would take.
        clean = message.encode(errors="replace").decode()
        self._failed, self._is_confirmed = clean[:_MAX_MESSAGE_LENGTH], is_confirmed


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Counts as a vendor gave them; None is unknown."""

    input: int | None = None
    output: int | None = None

    @classmethod
    def of(cls, usage: object) -> _Tokens:
        """Read a vendor's usage object, whichever of the known names it uses."""
        if not isinstance(usage, dict):
            return cls()
        given = _count(usage, "prompt_tokens", "input_tokens", "promptTokenCount")
        made = _count(usage, "completion_tokens", "output_tokens", "candidatesTokenCount")
        # Gemini counts, and bills, what was thought beside what was said; the others count it in.
        thought = _count(usage, "thoughtsTokenCount")
        return cls(given, made if thought is None else (made or 0) + thought)

    def updated(self, later: _Tokens) -> _Tokens:
        """These counts with those that a later event knows better."""
        return _Tokens(
            self.input if later.input is None else later.input, self.output if later.output is None else later.output
        )

    def usage(self, source: str) -> Usage | None:
        return None if self.input is None and self.output is None else Usage(self.input, self.output, source)


_MAX_REASONS = 16


def _name(event: Mapping[str, object], *names: str) -> str | None:
    return next((name for name in (clean_name(event.get(key)) for key in names) if name), None)


def _reasons(choices: object, name: str) -> tuple[str, ...]:
    """Why each choice ended, in the vendor's words, as far as they did."""
    if not isinstance(choices, list):
        return ()
    given = (clean_name(choice.get(name)) for choice in choices[:_MAX_REASONS] if isinstance(choice, dict))
    return tuple(reason for reason in given if reason)


def _reasons_of_whole(body: Mapping[str, object]) -> tuple[str, ...]:
    return (
        _reasons(body.get("choices"), "finish_reason")
        or _reasons(body.get("candidates"), "finishReason")
        or _reasons([body], "stop_reason")
        or (_reasons([body], "status") if body.get("object") == "response" else ())
    )


_MAX_COUNT = 2**53


def _count(usage: Mapping[str, object], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        # True is an int to Python, but nobody's count.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT:
            return value
    return None


_MESSAGE_KINDS = frozenset(
    f"{noun}_{verb}" for noun in ("message", "content_block") for verb in ("start", "delta", "stop")
)
# Only those that nobody else would choose: a bare `finish` may be anyone's.
_PART_KINDS = frozenset(
    ["start-step", "finish-step", "tool-input-available"]
    + [f"{noun}-{verb}" for noun in ("text", "reasoning", "tool-input") for verb in ("start", "delta", "end")]
)

_WORDS: Mapping[Dialect, tuple[bytes, ...]] = {
    Dialect.OPENAI_CHAT: (b'"finish_reason":"', b'"finish_reason": "', b"[DONE]", b'"error"'),
    Dialect.OPENAI_COMPLETION: (b'"finish_reason":"', b'"finish_reason": "', b"[DONE]", b'"error"'),
    Dialect.OPENAI_RESPONSES: (b"response.completed", b"response.incomplete", b"response.failed", b'"error"'),
    Dialect.ANTHROPIC_MESSAGES: (b"message_stop", b'"error"', b"message_delta"),
    Dialect.AI_SDK: (b'"finish"', b"[DONE]", b'"error"', b'"abort"'),
    Dialect.GEMINI: (b'"finishReason"', b'"blockReason"', b'"error"'),
}
_EVERY_WORD = tuple({word for words in _WORDS.values() for word in words})


def _dialect(kind: str, event: Mapping[str, object]) -> Dialect | None:
    """Whose event this is, by what only that dialect has."""
    if kind in _MESSAGE_KINDS:
        return Dialect.ANTHROPIC_MESSAGES
    if kind.startswith("response."):
        return Dialect.OPENAI_RESPONSES
    if kind in _PART_KINDS or (kind == "start" and "messageId" in event) or (kind == "error" and "errorText" in event):
        return Dialect.AI_SDK
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if event.get("object") == "chat.completion.chunk" or (isinstance(choice, dict) and "delta" in choice):
        return Dialect.OPENAI_CHAT
    if event.get("object") == "text_completion" and isinstance(choices, list):
        return Dialect.OPENAI_COMPLETION
    if isinstance(event.get("candidates"), list) or isinstance(event.get("usageMetadata"), dict):
        return Dialect.GEMINI
    return None


def _dialect_of_whole(body: Mapping[str, object]) -> Dialect | None:
    match body.get("object"), body.get("type"):
        case "chat.completion", _:
            return Dialect.OPENAI_CHAT
        case "text_completion", _:
            return Dialect.OPENAI_COMPLETION
        case "response", _:
            return Dialect.OPENAI_RESPONSES
        case _, "message":
            return Dialect.ANTHROPIC_MESSAGES
    return Dialect.GEMINI if isinstance(body.get("usageMetadata"), dict) else None


def _json_object(data: bytes) -> Mapping[str, object] | None:
    """The object that the text is; None for all else, broken text, broken UTF-8 and bottomless nesting included."""
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# Server-sent events. A line ends with CR LF, CR or LF, and an empty line ends the event: so two line ends meet there.
_EVENT_END = re.compile(rb"\n\n|\r\r|\n\r")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_PING_NAMES = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})
_PING_DATA = re.compile(rb'data:\s*(?:\{\s*"type"\s*:\s*"(?:ping|keepalive)"|\Z)')
_MAX_PING_BYTES = 128
_LINE_BYTES = 64
_DATA_TYPE = re.compile(rb'data: ?\s*\{\s*"type"\s*:\s*"([^"\\]{1,64})"')


def _last_event_end(batch: bytes) -> int | None:
    """The index after the last end of an event, or after one of the last; None if there is none."""
    for end in (b"\n\n", b"\n\r", b"\r\r"):
        index = batch.rfind(end)
        if index >= 0:
            return index + len(end)
    return None


def _first_event_end(batch: bytes) -> int:
    match = _EVENT_END.search(batch)
    return match.end() if match else len(batch)


def _events(block: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and data of each event in a block, as far as they have data; the last one need not be ended."""
    name = ""
    data: list[bytes] = []
    for line in (*_LINE_END.split(block.removeprefix(b"\xef\xbb\xbf")), b""):
        if line.startswith(b"data:"):
            data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode(errors="replace")
        elif not line:
            if data:
                yield name, b"\n".join(data)
            name, data = "", []


def _label(start: bytes) -> tuple[str, str]:
    """The name of the event that begins so, and the type that its data begin with."""
    name = next((name for name, _ in _events(start)), "")
    kind = _DATA_TYPE.search(start)
    return name, kind[1].decode(errors="replace") if kind else ""
