"""The fake vendor: OpenAI's and Anthropic's streaming APIs without a model, for the demo and the tests.

It answers `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses` and `/v1/messages` in the vendors' own formats,
`GET /v1/models`, `GET /v1/bytes` (a body of any size and type) and `/v1/echo` (any method). Any API key will do.

What a call does is said by its headers, by query parameters or in the body's `metadata`, all under the same names:

    Fake-Tokens: 200        length of the answer              Fake-Rate: 50           tokens a second; 0 is at once
    Fake-Seed: any text     another answer                    Fake-First-Delay: 0.5   seconds from headers to first event
    Fake-Split: 7           bytes in a chunk on the wire      Fake-Headers-Delay: 2   seconds before the headers
    Fake-Ping: 1            seconds between comment pings     Fake-Retry-After: 1     the header of a refusal
    Fake-Key: any text      a label, to find the call again   Fake-Fault: KIND@N      what goes wrong, after N tokens
    Fake-Text: markdown     text for people, instead of words

Faults; N is half of the answer where nothing is said, and for `cut` it may be `end`, which is after the end mark:

    cut@N        the connection is reset                      silent          no answer at all until the client goes
    truncate@N   a clean end without the end mark             drop            the connection is reset before any answer
    stall@N      silent until the client goes                 empty           200 and no byte
    pings@N      nothing but comments until it goes           no-content      204
    error@N      an error inside the stream                   gzip            an encoded body although none was asked for
    no-finish    the end without its `finish_reason`          status:429      a refusal; `status:429x2` lets the third
    no-done      the end without its `[DONE]`                                 equal request pass

Where a format has no such mark, `no-finish` and `no-done` leave out the one it has, except that Responses ignores
`no-done`. `GET /_fake/calls` tells what the vendor saw and sent, in order; `DELETE` forgets it.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import re
import secrets
import signal
import socket
import struct
import sys
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import FrameType
from typing import Any, Generic, TypeVar

import anyio
import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkeep.proxy.vendor_formats import (
    AnthropicMessages,
    Dialect,
    Event,
    Marks,
    OpenAIChat,
    OpenAICompletion,
    OpenAIResponses,
    Reply,
    anthropic_error,
    make_reply,
    openai_error,
)

DEFAULT_PORT = 4001
_KEPT_CALLS = 10_000
_MAX_TOKENS = 1_000_000
_MAX_BYTES = 256 * 1024 * 1024
_NEVER_SECONDS = 365 * 24 * 3600.0

_T = TypeVar("_T")
_N = TypeVar("_N", int, float)


class FaultKind(StrEnum):
    """What may go wrong; see the module's text."""

    CUT = "cut"
    TRUNCATE = "truncate"
    STALL = "stall"
    PINGS = "pings"
    ERROR = "error"
    NO_FINISH = "no-finish"
    NO_DONE = "no-done"
    SILENT = "silent"
    DROP = "drop"
    EMPTY = "empty"
    NO_CONTENT = "no-content"
    GZIP = "gzip"
    STATUS = "status"

    @property
    def interrupts(self) -> bool:
        """Whether it strikes in the middle of an answer."""
        return self in {FaultKind.CUT, FaultKind.TRUNCATE, FaultKind.STALL, FaultKind.PINGS, FaultKind.ERROR}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `after` counts tokens, None is half of the answer; the first `times` equal requests are refused with
    `status`, None is every one."""

    kind: FaultKind
    after: int | None = None
    is_after_end: bool = False
    status: int = 500
    times: int | None = None

    _FORM = re.compile(r"([a-z-]+)(?::([3-5][0-9]{2})(?:x([0-9]{1,6}))?)?(?:@([0-9]{1,9}|end))?", re.ASCII)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `KIND[:STATUS[xTIMES]][@AFTER]`.

        Raises:
            ValueError: it has another form, or names no fault.
        """
        match = cls._FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"not a fault: {text[:60]!r}")
        kind, status, times, after = match.groups()
        return cls(
            FaultKind(kind),
            after=int(after) if after not in (None, "end") else None,
            is_after_end=after == "end",
            status=int(status or 500),
            times=int(times) if times else None,
        )

    def strikes_at(self, count: int) -> int | None:
        """The number of parts, of `count`, that are sent before the fault; None where it does not interrupt them."""
        if not self.kind.interrupts or self.is_after_end:
            return None
        return min(count // 2 if self.after is None else self.after, count)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is to be answered. `rate` is in tokens a second, 0 is at once, None is what suits the endpoint."""

    tokens: int = 64
    rate: float | None = None
    seed: str = ""
    key: str = ""
    first_delay_seconds: float = 0.0
    headers_delay_seconds: float = 0.0
    split_bytes: int = 0
    ping_seconds: float = 0.0
    retry_after: str = "1"
    is_markdown: bool = False
    fault: Fault | None = None

    def with_wishes(self, wishes: Mapping[str, str]) -> Plan:
        """This plan with what a request asked for, by the lower-case names of the module's text.

        Raises:
            ValueError: a value has the wrong form.
        """
        plan = self
        for name, value in wishes.items():
            match name:
                case "fake-tokens":
                    plan = replace(plan, tokens=_number(name, value, int, _MAX_TOKENS))
                case "fake-rate":
                    plan = replace(plan, rate=_number(name, value, float, 1e6))
                case "fake-seed":
                    plan = replace(plan, seed=value)
                case "fake-key":
                    plan = replace(plan, key=value)
                case "fake-first-delay":
                    plan = replace(plan, first_delay_seconds=_number(name, value, float, _NEVER_SECONDS))
                case "fake-headers-delay":
                    plan = replace(plan, headers_delay_seconds=_number(name, value, float, _NEVER_SECONDS))
                case "fake-split":
                    plan = replace(plan, split_bytes=_number(name, value, int, _MAX_BYTES))
                case "fake-ping":
                    plan = replace(plan, ping_seconds=_number(name, value, float, _NEVER_SECONDS))
                case "fake-retry-after":
                    plan = replace(plan, retry_after=value)
                case "fake-text":
                    plan = replace(plan, is_markdown=_choice(name, value, words=False, markdown=True))
                case "fake-fault":
                    plan = replace(plan, fault=Fault.parse(value) if value else None)
                case _:
                    raise ValueError(f"there is no setting {name!r}")
        return plan

    @property
    def fault_kind(self) -> FaultKind | None:
        return self.fault.kind if self.fault else None


class CallState(StrEnum):
    RUNNING = "running"
    COMPLETE = "complete"
    ABORTED = "aborted"
    BROKEN = "broken"


@dataclass(slots=True)
class Call:
    """One request as the vendor saw it, and what was sent for it. `aborted` is the client's doing, `broken` is ours."""

    id: str
    plan: Plan
    method: str
    path: str
    headers: dict[str, str]
    request_bytes: int = 0
    request_sha256: str = ""
    status: int | None = None
    tokens: int = 0
    sent_bytes: int = 0
    state: CallState = CallState.RUNNING
    digest: Any = field(default_factory=hashlib.sha256)

    def end(self, state: CallState) -> None:
        """Note how it ended; the first end is the true one."""
        if self.state is CallState.RUNNING:
            self.state = state

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id,
            "key": self.plan.key,
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "requestBytes": self.request_bytes,
            "requestSha256": self.request_sha256,
            "status": self.status,
            "tokens": self.tokens,
            "bytes": self.sent_bytes,
            "sha256": self.digest.hexdigest(),
            "state": self.state.value,
            "aborted": self.state is CallState.ABORTED,
        }


class Connection:
    """The socket under one request, as far as a server lets an application at it."""

    def __init__(self, receive: Receive) -> None:
        # ASGI has no word for a reset. uvicorn's `receive` is a method of an object that holds the transport.
        self._transport: asyncio.Transport | None = getattr(getattr(receive, "__self__", None), "transport", None)
        self.closed = anyio.Event()

    async def reset(self) -> None:
        """Send what is written, then break the connection with a TCP reset; returns never, the call is cancelled."""
        if self._transport is None:
            raise RuntimeError("only uvicorn gives the connection to reset")
        sock = self._transport.get_extra_info("socket")
        # Neither the transport nor the kernel tells when everything has arrived, and a reset drops what has not.
        while (self._transport.get_write_buffer_size() or _unsent_bytes(sock)) and not self._transport.is_closing():  # noqa: ASYNC110
            await anyio.sleep(0.001)
        # Lingering for zero seconds makes the close a reset.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        await anyio.sleep_forever()


def _unsent_bytes(sock: socket.socket) -> int:
    """What the kernel holds that the peer has not acknowledged; only Linux says."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return count


@dataclass(frozen=True, slots=True)
class _Script(Generic[_T]):
    """An answer in parts: what comes before, between and after the counted ones, and what stands in for the rest."""

    opening: Sequence[_T]
    count: int
    part: Callable[[int], _T]
    ending: Sequence[_T]
    failure: Callable[[int], Sequence[_T]]
    comment: _T


async def _play(script: _Script[_T], call: Call, connection: Connection, rate: float) -> AsyncIterator[_T]:
    """Give the script's parts at their time, as far as the call's fault lets it come."""
    fault = call.plan.fault
    strike = fault.strikes_at(script.count) if fault else None
    for opening in script.opening:
        yield opening
    began = anyio.current_time() + call.plan.first_delay_seconds
    for index in range(script.count if strike is None else strike):
        await anyio.sleep_until(began + (index / rate if rate else 0))
        call.tokens += 1
        yield script.part(index)
    if strike is None:
        for ending in script.ending:
            yield ending
    if fault is None or (strike is None and not fault.is_after_end):
        return
    if fault.kind is FaultKind.CUT:
        call.end(CallState.BROKEN)
        await connection.reset()
    if fault.kind is FaultKind.ERROR:
        for failure in script.failure(call.tokens):
            yield failure
    if fault.kind is FaultKind.STALL:
        await anyio.sleep_forever()
    while fault.kind is FaultKind.PINGS:
        await anyio.sleep(call.plan.ping_seconds or 1)
        yield script.comment


class Vendor:
    """Around the routes: keeps the record of calls, plays the faults outside of a body, watches for the client's going.

    Only what is under `/v1/` counts as a call. The request's body is read first and the connection is watched all the
    while, so that a client's going is seen at once, in the middle of a silence too.
    """

    def __init__(self, app: ASGIApp, *, defaults: Plan, calls: deque[Call], refusals: Counter[bytes]) -> None:
        self._app = app
        self._defaults = defaults
        self._calls = calls
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        headers = dict(request.headers)
        call = Call(f"req_{secrets.token_hex(16)}", self._defaults, request.method, request.url.path, headers)
        self._calls.append(call)
        body = await _read_body(receive)
        if body is None:
            call.end(CallState.ABORTED)
            return
        call.request_bytes, call.request_sha256 = len(body), hashlib.sha256(body).hexdigest()
        connection = Connection(receive)
        scope.setdefault("state", {}).update(call=call, connection=connection)
        outgoing = _Outgoing(call, send)
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, call, connection, receive, group.cancel_scope)
            try:
                call.plan = self._defaults.with_wishes(_wishes(request, body))
            except ValueError as exc:
                await _error_response(call.path, 400, str(exc))(scope, receive, outgoing.send)
            else:
                await self._answer(scope, body, connection, call, outgoing)
            if call.state is CallState.RUNNING:
                # The server is stopping: go without a word, as a process that dies.
                call.end(CallState.BROKEN)
                await connection.reset()
            group.cancel_scope.cancel()

    async def _answer(self, scope: Scope, body: bytes, connection: Connection, call: Call, outgoing: _Outgoing) -> None:
        await anyio.sleep(call.plan.headers_delay_seconds)
        response: Response | None = None
        match call.plan.fault_kind:
            case FaultKind.SILENT:
                await anyio.sleep_forever()
            case FaultKind.DROP:
                call.end(CallState.BROKEN)
                await connection.reset()
            case FaultKind.EMPTY:
                response = Response(media_type="text/event-stream")
            case FaultKind.NO_CONTENT:
                response = Response(status_code=204)
            case FaultKind.STATUS if self._is_refused(call):
                response = _refusal(call)
        given = _BodyOnce(body, connection)
        await (response or self._app)(scope, given.receive, outgoing.send)

    def _is_refused(self, call: Call) -> bool:
        fault = call.plan.fault
        if fault is None or fault.times is None:
            return True
        same = hashlib.sha256(f"{call.path}\n{call.plan.key}\n{fault}\n{call.request_sha256}".encode()).digest()
        self._refusals[same] += 1
        return self._refusals[same] <= fault.times


class _BodyOnce:
    """`receive` for the routes: the body that was read already, then the news that the client has gone."""

    def __init__(self, body: bytes, connection: Connection) -> None:
        self._body: bytes | None = body
        self._connection = connection

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._connection.closed.wait()
        return {"type": "http.disconnect"}


class _Outgoing:
    """`send` for the routes: adds the vendor's headers, encodes and splits the body, and counts what is sent."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._gzip: zlib._Compress | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            self._add_headers(MutableHeaders(scope=message), is_success=message["status"] < 300)
            await self._send(message)
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._gzip is not None:
            body = self._gzip.compress(body) + self._gzip.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)
        if self._call.method != "HEAD":
            self._call.sent_bytes += len(body)
            self._call.digest.update(body)
        if is_last:
            self._call.end(CallState.COMPLETE)
        pieces = _split(body, self._call.plan.split_bytes)
        for number, piece in enumerate(pieces, 1):
            await self._send({**message, "body": piece, "more_body": not is_last or number < len(pieces)})

    def _add_headers(self, headers: MutableHeaders, *, is_success: bool) -> None:
        for name, value in _vendor_headers(self._call):
            headers[name] = value
        if is_success and self._call.plan.fault_kind is FaultKind.GZIP:
            self._gzip = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            headers["content-encoding"] = "gzip"
            del headers["content-length"]


async def _read_body(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def _watch(call: Call, connection: Connection, receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.end(CallState.ABORTED)
    connection.closed.set()
    scope.cancel()


def _wishes(request: Request, body: bytes) -> dict[str, str]:
    """What a request asks of the vendor; its headers have the last word."""
    wishes: dict[str, str] = {}
    if b"ake-" in body:
        try:
            metadata = json.loads(body)["metadata"]
            wishes |= {str(name).lower(): str(value) for name, value in metadata.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
    wishes |= {name.lower(): value for name, value in request.query_params.items()}
    wishes |= request.headers
    return {name: value for name, value in wishes.items() if name.startswith("fake-")}


def _number(name: str, value: str, kind: Callable[[str], _N], most: float) -> _N:
    number = kind(value)
    if not 0 <= number <= most:
        raise ValueError(f"{name} must lie between 0 and {most:g}, not at {value}")
    return number


def _choice(name: str, value: str, **choices: bool) -> bool:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}")
    return choices[value]


def _split(body: bytes, size: int) -> list[bytes]:
    if not size or len(body) <= size:
        return [body]
    return [body[start : start + size] for start in range(0, len(body), size)]


def _is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def _vendor_headers(call: Call) -> list[tuple[str, str]]:
    if _is_anthropic(call.path):
        return [
            ("request-id", call.id),
            ("anthropic-organization-id", "00000000-fake-4000-8000-000000000000"),
            ("anthropic-ratelimit-requests-limit", "4000"),
            ("anthropic-ratelimit-requests-remaining", "3999"),
            ("anthropic-ratelimit-requests-reset", "2030-01-01T00:00:00Z"),
        ]
    return [
        ("x-request-id", call.id),
        ("openai-organization", "fake"),
        ("openai-processing-ms", "12"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-reset-requests", "6ms"),
    ]


_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_KINDS = {401: "invalid_request_error", 429: "requests"}
_OPENAI_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def _error_response(path: str, status: int, message: str) -> JSONResponse:
    """An error in the form of the vendor whose path it is."""
    if _is_anthropic(path):
        return JSONResponse(anthropic_error(message, _ANTHROPIC_KINDS.get(status, "api_error")), status)
    kind = _OPENAI_KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse(openai_error(message, kind, code=_OPENAI_CODES.get(status)), status)


def _refusal(call: Call) -> Response:
    status = call.plan.fault.status if call.plan.fault else 500
    response = _error_response(call.path, status, f"The fake vendor was asked to answer {status}.")
    if status in (429, 503, 529) and call.plan.retry_after:
        response.headers["retry-after"] = call.plan.retry_after
    if 300 <= status < 400:
        response.headers["location"] = "/v1/models"
    return response


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class _StreamOptions(BaseModel):
    include_usage: bool | None = False


class ChatBody(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class CompletionBody(_Body):
    prompt: str | list[Any]
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None


class ResponsesBody(_Body):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None


class MessagesBody(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int
    system: str | list[dict[str, Any]] | None = None


def create_vendor_app(defaults: Plan | None = None) -> FastAPI:
    """Build the vendor; `defaults` hold for whatever a request does not ask for."""
    calls: deque[Call] = deque(maxlen=_KEPT_CALLS)
    refusals: Counter[bytes] = Counter()
    app = FastAPI(title="A fake vendor", openapi_url=None)
    app.add_middleware(Vendor, defaults=defaults or Plan(), calls=calls, refusals=refusals)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, exc: RequestValidationError) -> JSONResponse:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _error_response(request.url.path, 400, f"{where}: {first['msg']}")

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Response:
        reply = _reply(request, body, body.messages, body.max_completion_tokens or body.max_tokens)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await _respond(request, body, OpenAIChat(reply, include_usage=include_usage), reply)

    @app.post("/v1/completions")
    async def completion(request: Request, body: CompletionBody) -> Response:
        reply = _reply(request, body, body.prompt, body.max_tokens)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await _respond(request, body, OpenAICompletion(reply, include_usage=include_usage), reply)

    @app.post("/v1/responses")
    async def responses(request: Request, body: ResponsesBody) -> Response:
        reply = _reply(request, body, [body.instructions, body.input], body.max_output_tokens)
        return await _respond(request, body, OpenAIResponses(reply), reply)

    @app.post("/v1/messages")
    async def messages(request: Request, body: MessagesBody) -> Response:
        reply = _reply(request, body, [body.system, *body.messages], body.max_tokens)
        return await _respond(request, body, AnthropicMessages(reply), reply)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        names = ("gpt-fake", "claude-fake")
        data = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"} for name in names]
        return {"object": "list", "data": data}

    @app.api_route("/v1/bytes", methods=["GET", "HEAD"])
    async def some_bytes(
        request: Request,
        n: int = 1024,
        seed: int = 0,
        chunk: int = 64 * 1024,
        type: str = "application/octet-stream",
        chunked: bool = False,
        encoding: str = "",
    ) -> Response:
        """Give `n` bytes that follow from `seed`, `chunk` at a time, with a length unless `chunked`; maybe in gzip."""
        if not (0 <= n <= _MAX_BYTES and 1 <= chunk <= _MAX_BYTES and encoding in ("", "gzip")):
            return _error_response(request.url.path, 400, "n, chunk or encoding is out of its range")
        data = random.Random(seed).randbytes(n)
        headers = {"content-type": type}
        if encoding:
            data = gzip.compress(data, mtime=0)
            headers["content-encoding"] = encoding
        if not chunked:
            headers["content-length"] = str(len(data))
        return _raw_response(request, data, chunk, headers)

    @app.api_route("/v1/echo", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    async def echo(request: Request) -> dict[str, object]:
        body = await request.body()
        return {"method": request.method, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    @app.get("/_fake/calls")
    async def show_calls(key: str | None = None) -> dict[str, object]:
        shown = [call.to_json() for call in calls if key is None or call.plan.key == key]
        return {"count": len(shown), "calls": shown}

    @app.delete("/_fake/calls", status_code=204, response_model=None)
    async def forget_calls() -> None:
        calls.clear()
        refusals.clear()

    return app


def _reply(request: Request, body: _Body, prompt: object, max_tokens: int | None) -> Reply:
    plan: Plan = request.state.call.plan
    choice = body.tool_choice
    if isinstance(choice, dict):
        # `{"type": "function", "function": {"name": …}}`, or `{"type": "tool" | "function" | "any", "name": …}`
        function = choice.get("function")
        choice = str(function["name"] if isinstance(function, dict) else choice.get("name") or choice.get("type"))
    return make_reply(
        model=body.model,
        prompt=json.dumps(prompt, ensure_ascii=False, sort_keys=True),
        question=_question(prompt),
        seed=plan.seed,
        tokens=plan.tokens,
        max_tokens=max_tokens,
        tools=_tools(body.tools or []),
        tool_choice="required" if choice == "any" else choice,
        is_markdown=plan.is_markdown,
    )


def _question(prompt: object) -> str:
    """The last thing said, if a user said it; the result of a tool is not a question."""
    last = prompt
    while isinstance(last, list):
        last = last[-1] if last else ""
    if not isinstance(last, dict):
        return str(last)
    text = json.dumps(last.get("content"), ensure_ascii=False)
    return text if last.get("role") == "user" and "tool_result" not in text else ""


def _tools(tools: list[dict[str, Any]]) -> dict[str, Mapping[str, object]]:
    """The schemas of arguments by name, wherever each vendor puts them."""
    found: dict[str, Mapping[str, object]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            schema = function.get("parameters") or function.get("input_schema")
            found[function["name"]] = schema if isinstance(schema, dict) else {"type": "object"}
    return found


async def _respond(request: Request, body: _Body, dialect: Dialect, reply: Reply) -> Response:
    call: Call = request.state.call
    rate = 50.0 if call.plan.rate is None else call.plan.rate
    if body.stream:
        return _event_response(request, dialect, reply, rate)
    # Without streaming the vendor is silent until it has the whole answer.
    await anyio.sleep(call.plan.first_delay_seconds + (len(reply.tokens) / rate if rate else 0))
    if call.plan.fault_kind is FaultKind.ERROR:
        return _error_response(call.path, 500, "The fake vendor was asked to fail.")
    data = json.dumps(dialect.whole(), ensure_ascii=False, separators=(",", ":")).encode()
    if call.plan.fault and call.plan.fault.kind.interrupts:
        return _raw_response(request, data, 16, {"content-type": "application/json"})
    call.tokens = len(reply.tokens)
    return Response(data, media_type="application/json")


def _event_response(request: Request, dialect: Dialect, reply: Reply, rate: float) -> EventSourceResponse:
    call: Call = request.state.call
    marks = {FaultKind.NO_FINISH: Marks.NO_FINISH_REASON, FaultKind.NO_DONE: Marks.NO_DONE}
    script = _Script(
        opening=[_sse(event) for event in dialect.opening()],
        count=len(reply.tokens),
        part=lambda index: _sse(dialect.token(index)),
        ending=[_sse(event) for event in dialect.ending(marks.get(call.plan.fault_kind or FaultKind.CUT, Marks.ALL))],
        failure=lambda after: [_sse(event) for event in dialect.failure("The fake vendor broke.", after=after)],
        comment=ServerSentEvent(comment="ping", sep="\n"),
    )
    events: AsyncIterator[ServerSentEvent] = _play(script, call, request.state.connection, rate)
    return EventSourceResponse(
        events,
        headers={"cache-control": "no-cache"},
        ping=call.plan.ping_seconds or _NEVER_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        sep="\n",
    )


def _raw_response(request: Request, data: bytes, chunk: int, headers: dict[str, str]) -> Response:
    call: Call = request.state.call
    pieces = _split(data, chunk)
    script = _Script(
        opening=[], count=len(pieces), part=pieces.__getitem__, ending=[], failure=lambda after: [], comment=b" "
    )
    parts: AsyncIterator[bytes] = _play(script, call, request.state.connection, call.plan.rate or 0)
    return StreamingResponse(parts, headers=headers)


def _sse(event: Event) -> ServerSentEvent:
    return ServerSentEvent(event.data, event=event.name, sep="\n")


@click.command("vendor")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0 for a free one."
)
@click.option("--rate", type=float, default=50.0, show_default=True, help="Tokens a second; 0 is at once.")
@click.option("--tokens", type=int, default=200, show_default=True, help="Length of an answer.")
def vendor_command(host: str, port: int, rate: float, tokens: int) -> int:
    """Serve a fake OpenAI and Anthropic API, until SIGINT or SIGTERM."""
    app = create_vendor_app(Plan(tokens=tokens, rate=rate))
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as exc:
        click.echo(f"streamkeep vendor: {host}:{port}: {exc}", err=True)
        return 1
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    # uvicorn raises the signal again after its shutdown; with these in place the command then returns.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _already_handled)
    with listener:
        host, port = listener.getsockname()[:2]
        click.echo(f"The fake vendor answers at http://{host}:{port}   Stop: Ctrl-C")
        server = uvicorn.Server(config)
        server.run(sockets=[listener])
    return 0 if server.started else 1


def _already_handled(number: int, frame: FrameType | None) -> None: ...
