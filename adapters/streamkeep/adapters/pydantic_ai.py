"""The `pydantic-ai` package: the streamed responses of its models resumed.

Its models take a client of the vendor's package, which `streamkeep.adapters.openai` and `.anthropic` make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.settings import ModelSettings

from streamkeep.adapters._resuming import resume_headers
from streamkeep.client import NothingToResume


@asynccontextmanager
async def resume_model(
    model: Model, session_id: str, *, request_id: str | None = None
) -> AsyncIterator[StreamedResponse]:
    """The session's newest streamed model request, or the named one, from its first event on.

    `model` is one over a durable client, of the kind that was asked. Read to its end, the response's `get()` is the
    whole message, with the tools that the model called; going on with the agent is the caller's.

    Raises:
        NothingToResume: with the reason why.
    """
    settings = ModelSettings(extra_headers=resume_headers(session_id, request_id=request_id))
    try:
        async with model_request_stream(model, [], model_settings=settings) as response:
            yield response
    except ModelAPIError as exc:
        nothing = _nothing_to_resume(exc)
        if nothing is None:
            raise
        raise nothing from None


def _nothing_to_resume(error: BaseException) -> NothingToResume | None:
    """The reason at the bottom of what the vendor's package and this one have wrapped around it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, NothingToResume):
        cause = cause.__cause__
    return cause
