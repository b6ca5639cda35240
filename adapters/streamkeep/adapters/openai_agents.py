"""The OpenAI Agents SDK, package `openai-agents`: the streamed answers of its models resumed.

Its models take the client that `streamkeep.adapters.openai` makes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from agents import Model, ModelSettings, ModelTracing
from agents.items import TResponseStreamEvent

from streamkeep.adapters._resuming import resume_headers


def resume_events(
    model: Model, session_id: str, *, request_id: str | None = None
) -> AsyncIterator[TResponseStreamEvent]:
    """The session's newest streamed answer of a model, or the named one, from its first event on.

    `model` is one over a durable client, of the API that was asked. These are the events that a run wraps as
    `raw_response_event`; the last one holds the whole response, with the tools that were called. Going on with the run
    is the caller's.

    Raises:
        NothingToResume: with the reason why.
    """
    return model.stream_response(
        system_instructions=None,
        input="",
        model_settings=ModelSettings(extra_headers=resume_headers(session_id, request_id=request_id)),
        tools=[],
        output_schema=None,
        handoffs=[],
        tracing=ModelTracing.DISABLED,
        previous_response_id=None,
        conversation_id=None,
        prompt=None,
    )
