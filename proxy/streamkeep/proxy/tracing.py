"""Traces: one span for each generation that this process records, from its claim to its end, however many callers join.

Names and attributes follow OpenTelemetry's conventions for generative AI; no prompt and no answer is ever among them. The
span continues the caller's trace, and upstream is asked to continue ours. This module is imported only where tracing is
on (the extra `otel`), so that nothing of it costs anything elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider as RecordingProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamkeep.proxy.attempts import UpstreamRequest
from streamkeep.proxy.rules.endings import Observation
from streamkeep.proxy.rules.genai import ModelCall
from streamkeep.storage import Code, GenerationKey, Refusal, Terminal

_LAST_EXPORT_SECONDS = 2.0
_CARRIED = ("traceparent", "tracestate")
_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"


class Tracing:
    """Begins the spans of one service."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("streamkeep.proxy")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, key: GenerationKey, request: UpstreamRequest) -> tuple[GenerationSpan, UpstreamRequest]:
        """The span of a generation that was claimed, and the request as it goes upstream: in this span's trace."""
        given = {name.decode().lower(): value.decode("latin-1") for name, value in request.headers}
        parent = self._propagator.extract({name: given[name] for name in _CARRIED if name in given})
        call = ModelCall.of(request.target.url, request.body.content)
        span = self._tracer.start_span(_name(call, request), context=parent, kind=SpanKind.CLIENT)
        if span.is_recording():
            span.set_attributes(_attributes(call, key, request))
        carried: dict[str, str] = {}
        self._propagator.inject(carried, set_span_in_context(span))
        kept = [pair for pair in request.headers if pair[0].decode().lower() not in carried]
        ours = [(name.encode(), value.encode()) for name, value in carried.items()]
        return GenerationSpan(span), replace(request, headers=[*kept, *ours])


class GenerationSpan:
    """One generation's span; ended exactly once."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began_at = time.monotonic()

    def first_chunk(self) -> None:
        """Upstream's first bytes are here."""
        self._span.set_attribute(_FIRST_CHUNK, time.monotonic() - self._began_at)
        self._span.add_event("gen_ai.first_chunk")

    def ended(self, terminal: Terminal, seen: Observation | None) -> None:
        """The generation's end is stored."""
        span, usage = self._span, terminal.usage
        span.set_attribute("streamkeep.code", terminal.code.value)
        span.set_attribute("streamkeep.size_bytes", terminal.size_bytes)
        if usage is not None and usage.input_tokens is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
        if usage is not None and usage.output_tokens is not None:
            span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
        if seen is not None and seen.model is not None:
            span.set_attribute("gen_ai.response.model", seen.model)
        if seen is not None and seen.finish_reasons:
            span.set_attribute("gen_ai.response.finish_reasons", seen.finish_reasons)
        if terminal.code not in (Code.COMPLETE, Code.CANCELLED):
            self._fail(terminal.code.value)
        span.end()

    def refused(self, refusal: Refusal) -> None:
        """Upstream said no, or was not reached."""
        status = refusal.head.status
        if status:
            self._span.set_attribute("http.response.status_code", status)
        self._fail(str(status) if status else "not_sent")
        self._span.end()

    def lost(self) -> None:
        """The call is over. If no end was told, another process wrote it, or nobody knows it."""
        if self._span.is_recording():
            self._fail("lost")
            self._span.end()

    def _fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))


@contextmanager
def exporting() -> Iterator[TracerProvider]:
    """A provider whose spans go where the environment's `OTEL_…` variables say; on leaving, what is left is sent, if the
    collector takes it within two seconds."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "streamkeep"}))
    provider = RecordingProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider
    finally:
        # It would go on trying, and keep the process, for as long as an export may take.
        patience = threading.Timer(_LAST_EXPORT_SECONDS, exporter.shutdown)
        patience.daemon = True
        patience.start()
        provider.shutdown()
        patience.cancel()


def _name(call: ModelCall, request: UpstreamRequest) -> str:
    return " ".join(part for part in (call.operation or request.method, call.model) if part)


def _attributes(call: ModelCall, key: GenerationKey, request: UpstreamRequest) -> dict[str, str | int | Sequence[str]]:
    known: dict[str, str | int | Sequence[str] | None] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.model,
        "gen_ai.conversation.id": key.session_id if call.operation else None,
        "server.address": call.address,
        "server.port": call.port,
        "http.request.method": request.method,
        "streamkeep.session_id": key.session_id,
        "streamkeep.request_id": key.request_id,
    }
    return {name: value for name, value in known.items() if value is not None}
