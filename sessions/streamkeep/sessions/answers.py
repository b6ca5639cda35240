"""Vendors' events in, the steps of an answer out: OpenAI's chat completions and Responses, Anthropic's messages.

A reader is fed the events of one answer, as JSON objects, in their order, and told when they are over. It gives steps:

    Began, then any number of blocks and calls, then Finished or Failed; nothing after that.
    A block is Said or Thought pieces with one number, until BlockEnded. One block is open at a time.
    A call is CallBegan, CallInput pieces, CallReady. Calls may overlap. Each has an id that no other one of the answer has,
    whatever the vendor calls it: some give several calls one id, or none.

`Finished` comes only after the format's own end mark: what ends without it has `Failed`. What is not known is left out:
new kinds of events, other choices than the first, signatures, citations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Event = Mapping[str, Any]

TRUNCATED = "the answer ended in the middle"


@dataclass(frozen=True, slots=True)
class Began:
    """The vendor's id of the answer, and the model, where it names them."""

    id: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Said:
    block: int
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning, as far as the vendor shows it."""

    block: int
    text: str


@dataclass(frozen=True, slots=True)
class BlockEnded:
    block: int


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A tool is called. `vendors_id` is what the vendor calls this call; it may be empty, or another call's too."""

    id: str
    name: str
    vendors_id: str


@dataclass(frozen=True, slots=True)
class CallInput:
    """A piece of a call's arguments: JSON, cut anywhere."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallReady:
    """All of a call's arguments have come."""

    id: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the vendor counts them; None where it does not say."""

    input: int | None
    output: int | None

    @property
    def total(self) -> int | None:
        return None if self.input is None or self.output is None else self.input + self.output


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole answer has come. `reason`: stop, length, tool_calls, content_filter, or other."""

    reason: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer broke off, or the vendor said that it failed."""

    message: str


Step = Began | Said | Thought | BlockEnded | CallBegan | CallInput | CallReady | Finished | Failed


class Reader(Protocol):
    """One vendor's format."""

    def feed(self, event: Event) -> Iterator[Step]: ...

    def end(self) -> Iterator[Step]:
        """The events are over."""


class AnswerReader:
    """Any of the formats: which one, the first event tells."""

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._is_over = False

    def feed(self, event: Event) -> Iterator[Step]:
        if not self._is_over:
            failure = _failure(event)
            if failure is None:
                self._reader = self._reader or _reader_for(event)
                yield from self._noted(self._reader.feed(event))
            else:
                yield from self._noted(iter([failure]))

    def end(self) -> Iterator[Step]:
        if not self._is_over:
            yield from self._noted(iter([Failed(TRUNCATED)]) if self._reader is None else self._reader.end())

    def _noted(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            self._is_over = isinstance(step, Finished | Failed)
            yield step


def _reader_for(event: Event) -> Reader:
    if "choices" in event:
        return _ChatReader()
    return _ResponsesReader() if str(event.get("type")).startswith("response.") else _MessagesReader()


def _failure(event: Event) -> Failed | None:
    """What all three say in band when they fail, but for `response.failed`."""
    error = event.get("error")
    if event.get("type") != "error" and not error:
        return None
    said = error.get("message") if isinstance(error, Mapping) else error or event.get("message")
    return Failed(str(said or "the vendor failed"))


class _Blocks:
    """Numbers blocks, and ends the open one before the next begins."""

    def __init__(self) -> None:
        self._count = 0
        self._open: tuple[object, type[Said | Thought]] | None = None

    def piece(self, kind: type[Said | Thought], text: str, key: object = None) -> Iterator[Step]:
        """`key` tells blocks of a kind apart."""
        if not text:
            return
        if self._open != (key, kind):
            yield from self.close()
            self._open = (key, kind)
        yield kind(self._count, text)

    def close(self) -> Iterator[Step]:
        if self._open is not None:
            self._open = None
            yield BlockEnded(self._count)
            self._count += 1


class _Calls:
    """Calls under way, by whatever the vendor tells their pieces apart with."""

    def __init__(self) -> None:
        self._begun: dict[object, tuple[CallBegan, list[str]]] = {}
        self._ids: set[str] = set()
        self._made_ids = 0

    @property
    def any(self) -> bool:
        return bool(self._ids)

    def vendors_id(self, key: object) -> str | None:
        """The vendor's id of the call under way; None where none is."""
        return self._begun[key][0].vendors_id if key in self._begun else None

    def may_be_whole(self, key: object) -> bool:
        """Whether what has come of the arguments of a call under way could be all."""
        _, pieces = self._begun[key]
        return bool(pieces) and pieces[-1].endswith("}")

    def begin(self, key: object, id: str, name: str) -> Iterator[Step]:
        if key not in self._begun:
            call = CallBegan(self._own_id(id), name, id)
            self._begun[key] = (call, [])
            yield call

    def input(self, key: object, text: str) -> Iterator[Step]:
        if key in self._begun and text:
            call, pieces = self._begun[key]
            pieces.append(text)
            yield CallInput(call.id, text)

    def ready(self, key: object) -> Iterator[Step]:
        if key in self._begun:
            call, pieces = self._begun.pop(key)
            yield CallReady(call.id, call.name, "".join(pieces))

    def all_ready(self) -> Iterator[Step]:
        for key in list(self._begun):
            yield from self.ready(key)

    def _own_id(self, id: str) -> str:
        own = id
        while not own or own in self._ids:
            self._made_ids += 1
            own = f"{id or 'call'}-{self._made_ids}"
        self._ids.add(own)
        return own


class _ChatReader:
    """Chat completions: `finish_reason` ends the answer, the usage may come behind it."""

    def __init__(self) -> None:
        self._has_begun = False
        self._blocks = _Blocks()
        self._calls = _Calls()
        self._reason: str | None = None
        self._usage: Usage | None = None

    def feed(self, event: Event) -> Iterator[Step]:
        if not self._has_begun:
            self._has_begun = True
            yield Began(event.get("id"), event.get("model"))
        usage = event.get("usage")
        if usage:
            self._usage = Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"))
        for choice in event.get("choices") or ():
            if not choice.get("index"):
                yield from self._delta(choice.get("delta") or {})
                self._reason = choice.get("finish_reason") or self._reason

    def end(self) -> Iterator[Step]:
        if self._reason is None:
            yield Failed(TRUNCATED)
            return
        yield from self._blocks.close()
        yield from self._calls.all_ready()
        yield Finished(_CHAT_REASONS.get(self._reason, "other"), self._usage)

    def _delta(self, delta: Event) -> Iterator[Step]:
        # Vendors who speak this format have two names for reasoning.
        yield from self._blocks.piece(Thought, delta.get("reasoning_content") or delta.get("reasoning") or "")
        yield from self._blocks.piece(Said, delta.get("content") or delta.get("refusal") or "")
        for position, call in enumerate(delta.get("tool_calls") or ()):
            function, index = call.get("function") or {}, call.get("index")
            id, name = _id(call.get("id")), function.get("name") or ""
            place = position if index is None else index
            if self._is_another(place, id, name, has_index=index is not None):
                yield from self._blocks.close()
                yield from self._calls.ready(place)
                yield from self._calls.begin(place, id, name)
            yield from self._calls.input(place, function.get("arguments") or "")

    def _is_another(self, place: object, id: str, name: str, *, has_index: bool) -> bool:
        """Whether a piece begins a call, rather than going on with the one at its place. Lax vendors repeat names, give each
        piece an id of its own, give all calls one index, or none."""
        before = self._calls.vendors_id(place)
        if before is None:
            return bool(id or name)
        if not has_index:
            return bool(name) and (not id or id != before)
        return bool(name and id) and id != before and self._calls.may_be_whole(place)


class _ResponsesReader:
    """The Responses API: `response.completed` or `response.incomplete` carries the usage, and ends the answer."""

    def __init__(self) -> None:
        self._has_begun = False
        self._blocks = _Blocks()
        self._calls = _Calls()

    def feed(self, event: Event) -> Iterator[Step]:
        if not self._has_begun:
            self._has_begun = True
            response = event.get("response") or {}
            yield Began(response.get("id"), response.get("model"))
        item = event.get("item") or {}
        place = (event.get("item_id"), event.get("content_index"), event.get("summary_index"))
        # Some vendors have one id for all items.
        at = event.get("output_index")
        match event.get("type"):
            case "response.output_text.delta" | "response.refusal.delta":
                yield from self._blocks.piece(Said, event["delta"], place)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                yield from self._blocks.piece(Thought, event["delta"], place)
            case "response.output_item.added" if item.get("type") == "function_call":
                yield from self._blocks.close()
                yield from self._calls.begin((item.get("id"), at), _id(item.get("call_id")), item["name"])
            case "response.function_call_arguments.delta":
                yield from self._calls.input((event.get("item_id"), at), event["delta"])
            case "response.output_item.done":
                yield from self._blocks.close()
                yield from self._calls.ready((item.get("id"), at))
            case "response.completed" | "response.incomplete":
                yield from self._finish(event["response"])
            case "response.failed":
                error = event["response"].get("error") or {}
                yield Failed(str(error.get("message") or "the vendor failed"))

    def end(self) -> Iterator[Step]:
        yield Failed(TRUNCATED)

    def _finish(self, response: Event) -> Iterator[Step]:
        yield from self._blocks.close()
        yield from self._calls.all_ready()
        usage = response.get("usage")
        counted = Usage(usage.get("input_tokens"), usage.get("output_tokens")) if usage else None
        why = (response.get("incomplete_details") or {}).get("reason")
        if response.get("status") == "incomplete" or why:
            yield Finished(_RESPONSES_REASONS.get(why or "", "other"), counted)
        else:
            yield Finished("tool_calls" if self._calls.any else "stop", counted)


class _MessagesReader:
    """Anthropic's messages: `message_delta` says why it stopped, and `message_stop` ends the answer."""

    def __init__(self) -> None:
        self._blocks = _Blocks()
        self._calls = _Calls()
        self._reason: str | None = None
        self._input: int | None = None
        self._output: int | None = None

    def feed(self, event: Event) -> Iterator[Step]:
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                message = event["message"]
                self._count(message.get("usage"))
                yield Began(message.get("id"), message.get("model"))
            case "content_block_start":
                block = event["content_block"]
                if block["type"] == "tool_use":
                    yield from self._calls.begin(index, _id(block.get("id")), block["name"])
                yield from self._blocks.piece(Said, block.get("text") or "", index)
                yield from self._blocks.piece(Thought, block.get("thinking") or "", index)
            case "content_block_delta":
                delta = event["delta"]
                yield from self._blocks.piece(Said, delta.get("text") or "", index)
                yield from self._blocks.piece(Thought, delta.get("thinking") or "", index)
                yield from self._calls.input(index, delta.get("partial_json") or "")
            case "content_block_stop":
                yield from self._blocks.close()
                yield from self._calls.ready(index)
            case "message_delta":
                self._reason = event["delta"].get("stop_reason") or self._reason
                self._count(event.get("usage"))
            case "message_stop":
                yield from self._finish()

    def end(self) -> Iterator[Step]:
        # Lax vendors leave the last event out.
        yield from self._finish() if self._reason is not None else iter([Failed(TRUNCATED)])

    def _finish(self) -> Iterator[Step]:
        yield from self._blocks.close()
        yield from self._calls.all_ready()
        is_counted = self._input is not None or self._output is not None
        usage = Usage(self._input, self._output) if is_counted else None
        yield Finished(_MESSAGES_REASONS.get(self._reason or "", "other"), usage)

    def _count(self, usage: Event | None) -> None:
        counted = usage or {}
        self._input = counted["input_tokens"] if counted.get("input_tokens") is not None else self._input
        self._output = counted["output_tokens"] if counted.get("output_tokens") is not None else self._output


def _id(given: object) -> str:
    return given if isinstance(given, str) else ""


_CHAT_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_RESPONSES_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
_MESSAGES_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
