"""`streamkeep.adapters.messages`: what the SDKs ask and are answered, kept as messages."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from streamkeep.adapters._rules.conversations import answer_of, question_of
from streamkeep.adapters._rules.folding import fold_for
from streamkeep.adapters.anthropic import durable_async_anthropic, resume_message
from streamkeep.adapters.messages import Messages
from streamkeep.adapters.openai import durable_async_openai, durable_openai, resume_chat, resume_response
from streamkeep.client import (
    AsyncFetchClient,
    MemoryMessageStore,
    MemoryStore,
    Message,
    SQLiteMessageStore,
    Truncated,
)
from tests.adapters.test_anthropic import QUESTION as ANTHROPIC_QUESTION
from tests.adapters.test_anthropic import TOOLS as ANTHROPIC_TOOLS
from tests.adapters.test_openai import ANSWER, ANSWER_TOOLS, CHAT_TOOLS, FAST, QUESTION
from tests.serving import Proxy

EVENTS = "text/event-stream"


class Sdk:
    """One API of one package over a durable client, asked in the same way."""

    def __init__(self, api: str, proxy: Proxy, vendor: str, session: str, messages: Messages, **headers: str) -> None:
        options: Any = {"api_key": "any", "default_headers": {**FAST, **headers}, "max_retries": 0}
        options |= {"session": session, "store": MemoryStore(), "messages": messages}
        self.api = api
        if api == "anthropic":
            self.client: Any = durable_async_anthropic(proxy.url, base_url=vendor, **options)
        else:
            self.client = durable_async_openai(proxy.url, base_url=f"{vendor}/v1", **options)

    async def ask(self, *, tools: bool = False, **more: Any) -> Any:
        if self.api == "anthropic":
            return await self.client.messages.create(**ANTHROPIC_QUESTION | (ANTHROPIC_TOOLS if tools else {}) | more)
        if self.api == "chat":
            return await self.client.chat.completions.create(**QUESTION | (CHAT_TOOLS if tools else {}) | more)
        return await self.client.responses.create(**ANSWER | (ANSWER_TOOLS if tools else {}) | more)

    async def resume(self, session: str, request_id: str | None = None) -> Any:
        resume: Any = {"anthropic": resume_message, "chat": resume_chat, "responses": resume_response}[self.api]
        return await resume(self.client, session, request_id=request_id)


def text_of(event: Any) -> str:
    """What one event of any of the three says."""
    if hasattr(event, "choices"):
        return (event.choices[0].delta.content or "") if event.choices else ""
    delta = getattr(event, "delta", None)
    return delta if isinstance(delta, str) else getattr(delta, "text", None) or ""


APIS = ["chat", "responses", "anthropic"]
ASKED = {"chat": "What does the river say?", "responses": "And the sea?", "anthropic": "What does the river say?"}


@pytest.mark.parametrize("api", APIS)
async def test_a_question_and_its_streamed_answer_are_kept(proxy: Proxy, vendor: str, session: str, api: str) -> None:
    messages = Messages(MemoryMessageStore())
    sdk = Sdk(api, proxy, vendor, session, messages)
    async with sdk.client:
        answer = "".join([text_of(event) async for event in await sdk.ask()])
    asked, answered = messages.list(session)
    assert (asked.role, asked.text, asked.is_answer) == ("user", ASKED[api], False)
    assert (answered.role, answered.text) == ("assistant", answer)
    assert (answered.is_answer, answered.is_partial, answered.code) == (True, False, None)
    assert answered.request_id == asked.request_id
    messages.clear(session)
    assert messages.list(session) == []


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_calls_of_tools_are_kept_and_recognised_when_they_are_sent_back(
    proxy: Proxy, vendor: str, session: str, api: str, is_streamed: bool
) -> None:
    messages = Messages(MemoryMessageStore())
    sdk = Sdk(api, proxy, vendor, session, messages)
    async with sdk.client:
        answer = await sdk.ask(tools=True, stream=is_streamed)
        if is_streamed:
            [event async for event in answer]
        asked, called = messages.list(session)
        (call,) = called.tool_calls
        assert (call.name, called.is_partial) == ("weather", False)
        assert json.loads(call.arguments).keys() == {"city"}
        result = "rain"
        extra: dict[str, Any] = {}
        arguments = json.loads(call.arguments)
        if api == "anthropic":
            extra["messages"] = [
                *ANTHROPIC_QUESTION["messages"],
                {
                    "role": "assistant",
                    "content": [
                        *([{"type": "text", "text": called.text}] if called.text else []),
                        {"type": "tool_use", "id": call.id, "name": "weather", "input": arguments},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": result}]},
            ]
        elif api == "chat":
            function = {"name": "weather", "arguments": json.dumps(arguments, separators=(",", ":"))}
            told = {"id": call.id, "type": "function", "function": function}
            extra["messages"] = [
                *QUESTION["messages"],
                {"role": "assistant", "content": called.text or None, "tool_calls": [told]},
                {"role": "tool", "tool_call_id": call.id, "content": result},
            ]
        else:
            extra["input"] = [
                {"role": "user", "content": ANSWER["input"]},
                {"type": "function_call", "call_id": call.id, "name": "weather", "arguments": call.arguments},
                {"type": "function_call_output", "call_id": call.id, "output": result},
            ]
        await sdk.ask(stream=False, **extra)
    first, second, third, last = messages.list(session)
    assert [first, second] == [asked, called]
    assert (third.role, third.text, third.tool_call_id) == ("tool", "rain", call.id)
    assert (last.role, last.is_answer, last.is_partial) == ("assistant", True, False)
    assert last.text


@pytest.mark.parametrize("api", APIS)
async def test_a_partial_answer_is_marked_with_its_ending(proxy: Proxy, vendor: str, session: str, api: str) -> None:
    messages = Messages(MemoryMessageStore())
    sdk = Sdk(api, proxy, vendor, session, messages, **{"Fake-Fault": "truncate@9"})
    heard = ""
    async with sdk.client:
        events = aiter(await sdk.ask(extra_headers={"X-Request-ID": "cut"}))
        with suppress(Truncated):
            while True:
                heard += text_of(await anext(events))
        kept = messages.list(session)[-1]
        assert (kept.text, kept.is_partial, kept.code) == (heard, True, "truncated")
        with pytest.raises(Truncated):
            [event async for event in await sdk.resume(session, "cut")]
    assert messages.list(session)[-1] == kept


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_that_was_left_is_partial_until_it_is_resumed(
    proxy: Proxy, vendor: str, session: str, api: str
) -> None:
    messages = Messages(MemoryMessageStore())
    sdk = Sdk(api, proxy, vendor, session, messages, **{"Fake-Rate": "60"})
    async with sdk.client:
        async with await sdk.ask() as left:
            heard = "".join([text_of(await anext(left)) for _ in range(8)])
        asked, partial = messages.list(session)
        assert partial.text.startswith(heard)
        assert (partial.is_partial, partial.code) == (True, None)
        answer = "".join([text_of(event) async for event in await sdk.resume(session)])
    resumed = messages.list(session)
    assert [message.text for message in resumed] == [asked.text, answer]
    assert [message.is_partial for message in resumed] == [False, False]
    assert len(answer) > len(partial.text)


async def test_a_fetch_that_goes_on_in_the_middle_keeps_the_whole_message(
    proxy: Proxy, vendor: str, session: str
) -> None:
    """As another process would: it was told nothing of the beginning."""
    messages, store = Messages(MemoryMessageStore()), MemoryStore()
    async with AsyncFetchClient(proxy.url, store=store) as client:
        response = await client.fetch(
            f"{vendor}/v1/chat/completions", json=QUESTION, session_id=session, headers={**FAST, "Fake-Rate": "60"}
        )
        pieces = response.aiter_raw()
        for _ in range(5):
            await anext(pieces)
        await response.aclose()
    async with AsyncFetchClient(proxy.url, store=store, messages=messages) as client:
        rest = await client.resume(session)
        assert int(rest.headers["Streamkeep-Start-Offset"]) > 0
        await rest.aread()
        (kept,) = messages.list(session)
        whole = await client.resume(session, rest.headers["X-Request-ID"], replay_from_start=True)
        fold = fold_for(EVENTS)
        fold.receive(await whole.aread())
    turn = fold.turn()
    assert turn is not None
    assert (kept.text, kept.is_partial) == (turn.text, False)


def test_calls_of_one_id_are_kept_apart_with_the_ids_that_the_vendor_gave() -> None:
    calls = [{"index": at, "id": "x", "function": {"name": name, "arguments": "{}"}} for at, name in enumerate("ab")]
    fold = fold_for(EVENTS)
    fold.receive(f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'tool_calls': calls}}]})}\n\n".encode())
    turn = fold.turn()
    assert turn is not None
    assert [(call.id, call.name, call.arguments) for call in turn.tool_calls] == [("x", "a", "{}"), ("x", "b", "{}")]


PROGRAM = """
import sys
from streamkeep.adapters.messages import Messages
from streamkeep.adapters.openai import durable_openai, resume_chat
from streamkeep.client import SQLiteMessageStore, SQLiteStore

proxy, vendor, session, folder, resumes = sys.argv[1:]
with durable_openai(
    proxy, session=session, base_url=vendor + "/v1", api_key="any", store=SQLiteStore(folder + "/generations"),
    messages=Messages(SQLiteMessageStore(folder + "/messages")), default_headers={"Fake-Rate": "30", "Fake-Tokens": "60"},
) as client:
    question = [{"role": "user", "content": "Tell me"}]
    chunks = (
        resume_chat(client, session)
        if resumes == "yes"
        else client.chat.completions.create(model="m", messages=question, stream=True)
    )
    for chunk in chunks:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


async def test_a_killed_programs_message_is_whole_once_another_has_resumed(
    proxy: Proxy, vendor: str, session: str, tmp_path: Path
) -> None:
    async def start(resumes: str) -> asyncio.subprocess.Process:
        arguments = (proxy.url, vendor, session, str(tmp_path), resumes)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, *arguments), stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
        )

    killed = await start("no")
    assert killed.stdout is not None
    await killed.stdout.readexactly(20)
    with closing(SQLiteMessageStore(tmp_path / "messages")) as store:

        async def has_begun() -> bool:
            return [message.role for message in await asyncio.to_thread(store.list, session)] == ["user", "assistant"]

        async with asyncio.timeout(20):
            while not await has_begun():
                await asyncio.sleep(0.01)
        killed.kill()
        await killed.communicate()
        question, partial = store.list(session)
        assert (partial.is_partial, partial.code) == (True, None)
        second = await start("yes")
        told = (await second.communicate())[0].decode()
        assert second.returncode == 0
        (asked, answer) = store.list(session)
        assert asked == question
        assert (answer.text, answer.is_partial, answer.created_at) == (told, False, partial.created_at)


async def test_a_store_that_breaks_costs_the_message_and_not_the_answer(
    proxy: Proxy, vendor: str, session: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(MemoryMessageStore):
        def answered(self, session_id: str, message: Message) -> None:
            raise OSError("disk full")

    def ask() -> list[Any]:
        options: Any = {"base_url": f"{vendor}/v1", "api_key": "any", "default_headers": FAST, "store": MemoryStore()}
        with durable_openai(proxy.url, session=session, messages=Messages(Breaking()), **options) as client:
            return list(client.chat.completions.create(**QUESTION))

    assert (await asyncio.to_thread(ask))[-1].choices[0].finish_reason == "stop"
    assert "an answer's message was not kept" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"messages": 7}',
        b'{"messages": [7, null, {"role": 7}, {"role": ["user"]}]}',
        b'{"input": {"a": 1}}',
        b'{"choices": [7]}',
        b'{"choices": [{"message": []}]}',
        b'{"output": [[], {"type": 7}]}',
        b'{"role": "assistant", "content": 7, "tool_calls": [{"function": []}, 7]}',
    ],
)
def test_bodies_of_other_shapes_ask_nothing_and_break_nothing(body: bytes) -> None:
    assert question_of(body) is None
    answer = answer_of(body)
    assert answer is None or answer.text == ""


CHUNKS = [
    {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Grü"}}]},
    {"id": "1", "choices": [{"index": 0, "delta": {"content": "ße 🌊"}}]},
    {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
STREAM = b"".join(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in CHUNKS)


def test_a_streamed_answer_is_read_however_it_is_cut() -> None:
    for cut in range(len(STREAM)):
        fold = fold_for("text/event-stream; charset=utf-8")
        fold.receive(STREAM[:cut])
        turn = fold.turn()
        assert not fold.is_whole
        assert turn is None or "Grüße 🌊".startswith(turn.text)
        fold.receive(STREAM[cut:])
        turn = fold.turn()
        assert turn is not None
        assert (turn.text, fold.is_whole) == ("Grüße 🌊", True)


@pytest.mark.parametrize(
    "odd",
    ["7", "null", "not json", '{"choices": 7}', '{"choices": [7]}', '{"type": "content_block_delta"}', "[" * 9999],
)
def test_odd_events_are_skipped(odd: str) -> None:
    fold = fold_for(EVENTS)
    first, rest = STREAM.split(b"\n\n", 1)
    fold.receive(first + b"\n\ndata: " + odd.encode() + b"\n\n" + rest)
    turn = fold.turn()
    assert turn is not None
    assert turn.text == "Grüße 🌊"


def test_a_very_long_answer_is_kept_up_to_a_bound() -> None:
    fold = fold_for(EVENTS)
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]}).encode()
    for _ in range(20):
        fold.receive(b"data: " + piece + b"\n\n")
    turn = fold.turn()
    assert turn is not None
    assert (len(turn.text), fold.is_too_large) == (1024 * 1024, True)
    whole = fold_for("application/json")
    for _ in range(20):
        whole.receive(b" " * 1_000_000)
    assert (whole.turn(), whole.is_too_large) == (None, True)
