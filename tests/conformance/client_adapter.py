"""The adapter that the open protocol's client conformance suite drives: one JSON object a line in, one a line out.

python tests/conformance/client_adapter.py sync
python tests/conformance/client_adapter.py async

The suite tells it what to do with a stream, and compares what it answers with what its reference server has. Everything goes
through the public client, by the shell that the argument names. CONTRIBUTING says how the suite is run.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar, cast

import httpx

from streamkeep.client import (
    AsyncDurableStream,
    AsyncIdempotentProducer,
    AsyncStreamResponse,
    ConnectionFailed,
    DeliveryFailed,
    DurableStream,
    IdempotentProducer,
    InvalidOffset,
    Patience,
    ProtocolError,
    ServerError,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    StreamResponse,
    astream,
    stream,
)

T = TypeVar("T")
Json = dict[str, Any]

_OCTETS = "application/octet-stream"
_FEATURES = (
    *("batching", "sse", "longPoll", "auto", "streaming", "dynamicHeaders", "retryOptions", "batchItems"),
    "strictZeroValidation",
)
_PATIENCE = Patience(send_seconds=10, silence_seconds=10, max_reconnects=6, pause_seconds=1)
_APPEND_ATTEMPTS = 5

# The suite's names of options, in the order in which a message may have to be translated.
_RETRY_OPTIONS = {
    "maxRetries": ("max_reconnects", 1),
    "initialDelayMs": ("first_pause_seconds", 1000),
    "maxDelayMs": ("pause_seconds", 1000),
    "multiplier": ("growth", 1),
}
_PRODUCER_OPTIONS = {"epoch": "epoch", "maxBatchBytes": "max_batch_bytes", "maxBatchItems": "max_batch_items"}


@dataclass
class Dynamic:
    """A header or parameter whose value is made for each request; `sent` is the last one."""

    kind: str
    text: str = ""
    count: int = 0
    sent: str | None = None

    def __call__(self) -> str:
        self.count += 1
        values = {"counter": str(self.count), "timestamp": str(time.time_ns() // 1_000_000), "token": self.text}
        self.sent = values[self.kind]
        return self.sent


@dataclass
class State:
    """What has to be remembered from one command to the next."""

    server_url: str = ""
    content_types: dict[str, str] = field(default_factory=dict)
    sequences: dict[tuple[str, str, int], int] = field(default_factory=dict)
    headers: dict[str, Dynamic] = field(default_factory=dict)
    params: dict[str, Dynamic] = field(default_factory=dict)


class Adapter:
    """Answer the suite's commands with the client's sync or async shell."""

    def __init__(self, shell: str) -> None:
        self._is_async = shell == "async"
        self._name = f"streamkeep-{shell}"
        self._state = State()

    async def reply(self, command: Json) -> Json:
        """The answer to one command; an exception becomes the error that the suite knows."""
        kind = command["type"]
        try:
            handler: Callable[[Json], Awaitable[Json]] = getattr(self, "_" + kind.replace("-", "_"))
            return {"type": kind, "success": True, **await handler(command)}
        except Exception as exc:  # noqa: BLE001  # the suite is told of it
            return {"type": "error", "success": False, "commandType": kind, **_error(exc)}

    async def _init(self, command: Json) -> Json:
        self._state = State(server_url=command["serverUrl"])
        return {
            "clientName": self._name,
            "clientVersion": version("streamkeep"),
            "features": dict.fromkeys(_FEATURES, True),
        }

    async def _create(self, command: Json) -> Json:
        path, content_type = command["path"], command.get("contentType", _OCTETS)
        probe = self._handle(command)
        try:
            await self._call(probe.head)
            status = 200
        except StreamNotFound:
            status = 201
        finally:
            await self._call(probe.disconnect)
        create: Callable[..., Any] = AsyncDurableStream.create if self._is_async else DurableStream.create
        handle = await self._call(
            create,
            self._state.server_url + path,
            content_type=content_type,
            ttl_seconds=command.get("ttlSeconds"),
            expires_at=command.get("expiresAt"),
            data=command.get("data") or None,
            closed=command.get("closed", False),
            headers=self._headers(command),
            params=self._state.params,
            patience=_PATIENCE,
        )
        try:
            offset = (await self._call(handle.head)).offset
        finally:
            await self._call(handle.disconnect)
        self._state.content_types[path] = content_type
        return {"status": status, "offset": offset}

    async def _connect(self, command: Json) -> Json:
        head = await self._head(command)
        return {"status": 200, "offset": head["offset"]}

    async def _head(self, command: Json) -> Json:
        handle = self._handle(command)
        try:
            info = await self._call(handle.head)
        finally:
            await self._call(handle.disconnect)
        self._state.content_types[command["path"]] = info.content_type
        return {
            "status": 200,
            "offset": info.offset,
            "contentType": info.content_type,
            "streamClosed": info.is_closed,
        }

    async def _append(self, command: Json) -> Json:
        seq = None if command.get("seq") is None else str(command["seq"])
        handle = self._handle(command)
        try:
            appended = await self._append_patiently(handle, _data(command), seq)
        finally:
            await self._call(handle.disconnect)
        return {"status": 200, "offset": appended.offset, **self._sent()}

    async def _append_patiently(self, handle: Any, data: bytes | str, seq: str | None) -> Any:
        """The client does not repeat an append that may be stored; the suite's server stores none that it fails."""
        for _ in range(_APPEND_ATTEMPTS - 1):
            try:
                return await self._call(handle.append, data, seq=seq)
            except ServerError as exc:
                if exc.status < 500:
                    raise
        return await self._call(handle.append, data, seq=seq)

    async def _close(self, command: Json) -> Json:
        path = command["path"]
        self._state.content_types.setdefault(path, command.get("contentType") or _OCTETS)
        handle = self._handle(command)
        try:
            return {"finalOffset": await self._call(handle.close, command.get("data") or None)}
        finally:
            await self._call(handle.disconnect)

    async def _delete(self, command: Json) -> Json:
        handle = self._handle(command)
        try:
            await self._call(handle.delete)
        finally:
            await self._call(handle.disconnect)
        path = command["path"]
        self._state.content_types.pop(path, None)
        self._state.sequences = {key: found for key, found in self._state.sequences.items() if key[0] != path}
        return {"status": 200}

    async def _read(self, command: Json) -> Json:
        live, seconds = command.get("live", False), command.get("timeoutMs", 5000) / 1000
        options: dict[str, Any] = {
            "offset": command.get("offset"),
            "live": live,
            "headers": self._headers(command),
            "params": self._state.params,
            "timeout": httpx.Timeout(5.0, read=seconds),
            "patience": _PATIENCE,
        }
        url = self._state.server_url + command["path"]
        opened = _Opened(self, astream(url, **options) if self._is_async else stream(url, **options))
        limit, stops_at_tail = command.get("maxChunks", 100), command.get("waitForUpToDate", False)
        try:
            await opened.collect(limit=limit, stops_at_tail=stops_at_tail, until=time.monotonic() + seconds)
        except httpx.ReadTimeout:
            pass  # what came until then is the answer
        finally:
            await opened.close()
        chunks = (
            [{"data": "".join(opened.parts)}]
            if live is False and opened.parts
            else [{"data": part} for part in opened.parts]
        )
        status = 204 if live == "long-poll" and not chunks else 200
        return {"status": status, "chunks": chunks, **opened.state(), **self._sent()}

    async def _idempotent_append(self, command: Json) -> Json:
        async def produce(producer: Any) -> None:
            await self._call(producer.append, command["data"])

        await self._produce(command, produce)
        return {"status": 200}

    async def _idempotent_append_batch(self, command: Json) -> Json:
        is_concurrent = command.get("maxInFlight", 1) > 1
        options = {"max_batch_items": 1} if is_concurrent else {"linger_seconds": 10.0}

        async def produce(producer: Any) -> None:
            for item in command["items"]:
                await self._call(producer.append, item)

        # Each batch of commands begins its producer anew: a repeat of it must be found to be one.
        await self._produce(command, produce, sequence=0, max_in_flight=command.get("maxInFlight", 1), **options)
        return {"status": 200}

    async def _idempotent_close(self, command: Json) -> Json:
        final_offset = ""

        async def produce(producer: Any) -> None:
            nonlocal final_offset
            final_offset = await self._call(producer.close, command.get("data") or None)

        # The sequence stays where it was, so that a repeated closing is the same one to the server.
        await self._produce(command, produce, keeps_sequence=True)
        return {"status": 200, "finalOffset": final_offset}

    async def _idempotent_detach(self, command: Json) -> Json:
        async def produce(producer: Any) -> None:
            pass

        await self._produce(command, produce)
        return {"status": 200}

    async def _produce(
        self,
        command: Json,
        produce: Callable[[Any], Awaitable[None]],
        *,
        sequence: int | None = None,
        keeps_sequence: bool = False,
        **options: Any,
    ) -> None:
        path, producer_id, epoch = command["path"], command["producerId"], command.get("epoch", 0)
        if sequence is None:
            sequence = self._state.sequences.get((path, producer_id, epoch), 0)
        handle = self._handle(command)
        made: type[Any] = AsyncIdempotentProducer if self._is_async else IdempotentProducer
        producer = made(
            handle,
            producer_id,
            epoch=epoch,
            sequence=sequence,
            auto_claim=command.get("autoClaim", False),
            **options,
        )
        try:
            try:
                await produce(producer)
            finally:
                await self._call(producer.detach)
        finally:
            await self._call(handle.disconnect)
        if not keeps_sequence:
            self._state.sequences[path, producer_id, producer.epoch] = producer.next_sequence

    async def _set_dynamic_header(self, command: Json) -> Json:
        self._state.headers[command["name"]] = Dynamic(command["valueType"], command.get("initialValue", ""))
        return {}

    async def _set_dynamic_param(self, command: Json) -> Json:
        self._state.params[command["name"]] = Dynamic(command["valueType"])
        return {}

    async def _clear_dynamic(self, command: Json) -> Json:
        self._state.headers.clear()
        self._state.params.clear()
        return {}

    async def _validate(self, command: Json) -> Json:
        target = command["target"]
        if target["target"] == "retry-options":
            known = {ours: target[name] / unit for name, (ours, unit) in _RETRY_OPTIONS.items() if name in target}
            names = {ours: name for name, (ours, _) in _RETRY_OPTIONS.items()}
            with_names(names, lambda: Patience(**known))
        else:
            options = {ours: target[name] for name, ours in _PRODUCER_OPTIONS.items() if name in target}
            names = {ours: name for name, ours in _PRODUCER_OPTIONS.items()}
            handle = DurableStream("http://127.0.0.1/never-asked")
            with_names(names, lambda: IdempotentProducer(handle, target.get("producerId", "x"), **options))
        return {}

    async def _shutdown(self, command: Json) -> Json:
        return {}

    def _handle(self, command: Json) -> Any:
        made: type[Any] = AsyncDurableStream if self._is_async else DurableStream
        return made(
            self._state.server_url + command["path"],
            content_type=self._state.content_types.get(command["path"], _OCTETS),
            headers=self._headers(command),
            params=self._state.params,
            patience=_PATIENCE,
        )

    def _headers(self, command: Json) -> Mapping[str, Any]:
        return {**self._state.headers, **command.get("headers", {})}

    def _sent(self) -> Json:
        """The dynamic values of the last request."""
        return {
            "headersSent": {name: value.sent for name, value in self._state.headers.items()},
            "paramsSent": {name: value.sent for name, value in self._state.params.items()},
        }

    async def _call(self, method: Callable[..., T | Awaitable[T]], *args: Any, **options: Any) -> Any:
        found = method(*args, **options)
        return await found if inspect.isawaitable(found) else found


class _Opened:
    """A stream that is read as its content type asks for."""

    def __init__(self, adapter: Adapter, response: StreamResponse | AsyncStreamResponse) -> None:
        self.parts: list[str] = []
        self._adapter = adapter
        self._response = response
        self._is_up_to_date = False

    async def collect(self, *, limit: int, stops_at_tail: bool, until: float) -> None:
        """Read until the end, the limit, the tail, or a time."""
        response = self._response
        await _entered(response)
        is_json = (response.content_type or "").startswith("application/json")
        pieces = response.iter_json_batches() if is_json else response.iter_chunks()
        while (piece := await _next(pieces)) is not None:
            self._is_up_to_date = piece.is_up_to_date
            if is_json and piece.items:
                self.parts.append(json.dumps(piece.items, separators=(",", ":"), ensure_ascii=False))
            elif not is_json and piece.data:
                self.parts.append(piece.data.decode("utf-8", "replace"))
            if len(self.parts) >= limit or (stops_at_tail and piece.is_up_to_date) or time.monotonic() >= until:
                return

    def state(self) -> Json:
        response = self._response
        return {
            "offset": response.offset,
            "upToDate": self._is_up_to_date,
            "streamClosed": response.is_closed,
        }

    async def close(self) -> None:
        if isinstance(self._response, AsyncStreamResponse):
            await self._response.aclose()
        else:
            self._response.close()


async def _entered(response: StreamResponse | AsyncStreamResponse) -> None:
    if isinstance(response, AsyncStreamResponse):
        await response.__aenter__()
    else:
        response.__enter__()


async def _next(iterator: Any) -> Any:
    return await anext(iterator, None) if hasattr(iterator, "__anext__") else next(iterator, None)


def with_names(names: Mapping[str, str], make: Callable[[], object]) -> None:
    """Make something, and put the suite's names of options into what is said against it."""
    try:
        make()
    except ValueError as exc:
        message = str(exc)
        for ours, name in names.items():
            message = message.replace(ours, name)
        raise ValueError(message) from exc


def _data(command: Json) -> bytes | str:
    return base64.b64decode(command["data"]) if command.get("binary") else cast("str", command["data"])


def _error(error: BaseException) -> Json:
    if isinstance(error, DeliveryFailed) and error.__cause__ is not None:
        return _error(error.__cause__)
    found: Json = {"errorCode": _code(error), "message": str(error) or type(error).__name__}
    return {**found, "status": error.status} if isinstance(error, ServerError) else found


def _code(error: BaseException) -> str:
    codes: tuple[tuple[type[BaseException], str], ...] = (
        (StreamNotFound, "NOT_FOUND"),
        (StreamClosed, "STREAM_CLOSED"),
        (StreamExists, "CONFLICT"),
        (InvalidOffset, "INVALID_OFFSET"),
        (ProtocolError, "PARSE_ERROR"),
        (ConnectionFailed, "NETWORK_ERROR"),
        (httpx.TimeoutException, "TIMEOUT"),
        (ValueError, "INVALID_ARGUMENT"),
        (TypeError, "INVALID_ARGUMENT"),
        (AttributeError, "NOT_SUPPORTED"),
    )
    if isinstance(error, ServerError) and error.status == 409 and not isinstance(error, StreamClosed | StreamExists):
        return "SEQUENCE_CONFLICT"
    if isinstance(error, ServerError) and type(error) is ServerError:
        return "UNEXPECTED_STATUS"
    return next((code for kind, code in codes if isinstance(error, kind)), "INTERNAL_ERROR")


def main() -> None:
    adapter = Adapter(sys.argv[1] if len(sys.argv) > 1 else "sync")
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            command = json.loads(line)
            answer = json.dumps(runner.run(adapter.reply(command)))
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()
            if command["type"] == "shutdown":
                break


if __name__ == "__main__":
    main()
