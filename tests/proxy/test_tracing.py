"""Traces: one span for each generation, by the conventions for generative AI, in the caller's trace and without a word of
what was said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streamkeep.proxy.rules.genai import MAX_MODEL_BODY_BYTES, ModelCall
from streamkeep.storage import MemoryStore
from tests.postgres import until
from tests.serving import Proxy, served_process, serving
from tests.upstream import Exchange, upstream, whole

CHUNK = {"object": "chat.completion.chunk", "model": "demo-2026", "choices": [{"delta": {"content": "the-answer"}}]}
LAST = {**CHUNK, "choices": [{"delta": {}, "finish_reason": "stop"}]}
USAGE = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 2}}
CHAT = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in (CHUNK, LAST, USAGE)) + b"data: [DONE]\n\n"
QUESTION = b'{"model": "demo", "messages": [{"role": "user", "content": "the-question"}]}'
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def traced() -> AsyncIterator[tuple[Proxy, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serving(MemoryStore(), tracer_provider=provider) as proxy:
        yield proxy, exporter
    provider.shutdown()


async def only_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    await until(lambda: len(exporter.get_finished_spans()) >= 1)
    (span,) = exporter.get_finished_spans()
    return span


async def test_a_chats_span_says_what_the_conventions_ask_for_and_nothing_that_was_said() -> None:
    async with upstream(whole(CHAT)) as server, traced() as (proxy, exporter):
        for _ in range(2):
            await proxy.create("chat", "1", f"{server.url}/v1/chat/completions?key=secret", body=QUESTION)
        await proxy.ending("chat", "1")
        span = await only_span(exporter)
    assert (span.name, span.kind) == ("chat demo", SpanKind.CLIENT)
    attributes = dict(span.attributes or {})
    assert 0 < float(str(attributes.pop("gen_ai.response.time_to_first_chunk"))) < 60
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "demo",
        "gen_ai.conversation.id": "chat",
        "gen_ai.response.model": "demo-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 0,
        "gen_ai.usage.output_tokens": 2,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "http.request.method": "POST",
        "streamkeep.session_id": "chat",
        "streamkeep.request_id": "1",
        "streamkeep.code": "complete",
        "streamkeep.size_bytes": len(CHAT),
    }
    assert [event.name for event in span.events] == ["gen_ai.first_chunk"]
    assert span.status.status_code is StatusCode.UNSET
    shown = span.to_json()
    assert not [word for word in ("the-answer", "the-question", "secret") if word in shown]


async def test_the_span_continues_the_callers_trace_and_upstream_continues_ours() -> None:
    async with upstream(whole(CHAT)) as server, traced() as (proxy, exporter):
        await proxy.create("chat", "1", server.url, traceparent=PARENT, tracestate="vendor=1")
        span = await only_span(exporter)
        call = await server.called()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    assert call.header("traceparent") == f"00-{PARENT[3:35]}-{span.context.span_id:016x}-01"
    assert call.header("tracestate") == "vendor=1"
    assert len([name for name, _ in call.headers if name.lower() == "traceparent"]) == 1


@pytest.mark.parametrize("given", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", PARENT + "\xff"])
async def test_a_strange_trace_header_begins_a_new_trace(given: str) -> None:
    async with upstream(whole(CHAT)) as server, traced() as (proxy, exporter):
        created = await proxy.client.post(
            "/api/chat/1",
            content=b"{}",
            headers={b"X-Proxy-Url": server.url.encode(), b"traceparent": given.encode("latin-1")},
        )
        assert created.status_code == 200
        assert (await only_span(exporter)).parent is None


async def test_a_truncated_answer_a_refusal_and_a_cancel_are_told_apart() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(429, b"slow down", {"Retry-After": "60"})

    async def wait(exchange: Exchange) -> None:
        await exchange.head(200)
        await exchange.is_gone.wait()

    async with (
        upstream(whole(CHAT.partition(b"data: [DONE]")[0].partition(b'"finish_reason"')[0])) as cut,
        upstream(refuse) as refusing,
        upstream(wait) as waiting,
        traced() as (proxy, exporter),
    ):
        await proxy.create("chat", "cut", cut.url)
        await proxy.create("chat", "refused", refusing.url)
        await proxy.create("chat", "unreachable", "http://127.0.0.1:9/")
        await proxy.create("chat", "cancelled", waiting.url)
        await proxy.client.post("/api/chat/cancelled/cancel")
        await until(lambda: len(exporter.get_finished_spans()) == 4)
        spans = {str((span.attributes or {})["streamkeep.request_id"]): span for span in exporter.get_finished_spans()}
    errors = {name: (span.attributes or {}).get("error.type") for name, span in spans.items()}
    assert errors == {"cut": "truncated", "refused": "429", "unreachable": "not_sent", "cancelled": None}
    assert {name for name, span in spans.items() if span.status.status_code is StatusCode.ERROR} == set(errors) - {
        "cancelled"
    }


async def test_without_a_provider_trace_headers_pass_as_they_came() -> None:
    async with upstream(whole(CHAT)) as server, serving(MemoryStore()) as proxy:
        await proxy.create("chat", "1", server.url, traceparent=PARENT)
        assert (await server.called()).header("traceparent") == PARENT


async def test_spans_go_where_the_environment_says_and_a_dead_collector_keeps_nobody(database_url: str) -> None:
    async def collect(exchange: Exchange) -> None:
        await exchange.answer(200, b"")

    dead = "http://127.0.0.1:9"
    async with upstream(whole(CHAT)) as server, upstream(collect) as collector:
        for endpoint in (collector.url, dead):
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
            async with served_process(database_url=database_url, environ=environ) as process:
                headers = {"X-Proxy-Url": f"{server.url}/v1/chat/completions"}
                name = "1" if endpoint == dead else "2"
                created = await process.client.post(f"/api/chat/{name}", headers=headers, content=QUESTION)
                assert created.status_code == 200
                await process.client.get(f"/stream/data?sessionId=chat&requestId={name}&live=sse&offset=-1")
                process.terminate()
                assert await process.exit_code() == 0
        sent = (await collector.called()).body
    assert b"chat demo" in sent
    assert b"gen_ai.usage.output_tokens" in sent
    assert b"service.name" in sent
    assert not [word for word in (b"the-answer", b"the-question") if word in sent]


CALLS = [
    ("https://api.openai.com/v1/chat/completions", b'{"model":"a"}', ("chat", "openai", "a")),
    ("https://api.openai.com/v1/responses?x=1", b"{}", ("chat", "openai", None)),
    ("https://api.anthropic.com/v1/messages", b'{"model":"c"}', ("chat", "anthropic", "c")),
    ("https://api.openai.com/v1/completions", b'{"model":"a"}', ("text_completion", "openai", "a")),
    ("https://api.openai.com/v1/embeddings", None, ("embeddings", "openai", None)),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/g:streamGenerateContent",
        b"{}",
        ("generate_content", "gcp.gemini", "g"),
    ),
    ("https://mine.openai.azure.com/openai/deployments/d/chat/completions", b"{}", ("chat", "azure.ai.openai", "d")),
    ("http://127.0.0.1:8000/v1/chat/completions", b'{"model":"' + b"x" * 300 + b'"}', ("chat", None, "x" * 200)),
    ("http://127.0.0.1/v1/messages", b'{"model":"\\ud800"}', ("chat", None, "?")),
    ("http://127.0.0.1/v1/messages", b'{"model":7}', ("chat", None, None)),
    ("http://127.0.0.1/v1/messages", b"[" * 100_000, ("chat", None, None)),
    ("http://127.0.0.1/v1/messages", b'{"model":"a"}' + b" " * MAX_MODEL_BODY_BYTES, ("chat", None, None)),
    ("http://127.0.0.1/reports", b'{"model":"a"}', (None, None, None)),
]


@pytest.mark.parametrize(("url", "body", "expected"), CALLS)
def test_a_calls_labels_come_from_its_url_and_body(
    url: str, body: bytes | None, expected: tuple[str | None, str | None, str | None]
) -> None:
    call = ModelCall.of(url, body)
    assert (call.operation, call.provider, call.model) == expected
