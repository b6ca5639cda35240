"""LiteLLM, package `litellm`: streamed completions resumed, and clients for the providers that do not take OpenAI's.

For providers that speak OpenAI's format it takes, as `client`, what `streamkeep.adapters.openai` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler
from litellm.utils import CustomStreamWrapper

from streamkeep.adapters._resuming import resume_headers
from streamkeep.adapters.httpx import durable_httpx
from streamkeep.client import DurableTransport, GenerationStore, MessageKeeper, NothingToResume


def durable_handler(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
) -> HTTPHandler:
    """What `completion` takes as `client` for Anthropic and others, with calls that go through the proxy.

    `session` names the session of every call that does not name one in its headers; `key` is the proxy's. Closing the
    handler closes its connections.
    """
    return HTTPHandler(client=durable_httpx(proxy_url, session=session, key=key, store=store))


def durable_async_handler(
    proxy_url: str,
    *,
    session: str | None = None,
    key: str | None = None,
    store: GenerationStore | None = None,
    messages: MessageKeeper | None = None,
) -> AsyncHTTPHandler:
    """`durable_handler` for `acompletion`."""
    return AsyncHTTPHandler(
        transport=DurableTransport(proxy_url, store=store, session_id=session, key=key, messages=messages)
    )


def resume_completion(
    model: str, session_id: str, *, client: object, request_id: str | None = None, **options: Any
) -> CustomStreamWrapper:
    """The session's newest streamed completion, or the named one, from its first chunk on.

    `model` says, by its provider, in which format the answer is; `client` is a durable one for that provider. `options`
    are those without which the provider is not called, as `api_key`.

    Raises:
        NothingToResume: with the reason why.
    """
    headers = resume_headers(session_id, request_id=request_id)
    with _told_plainly():
        return litellm.completion(
            model, [_NOTHING], client=client, stream=True, max_retries=0, extra_headers=headers, **options
        )


async def resume_acompletion(
    model: str, session_id: str, *, client: object, request_id: str | None = None, **options: Any
) -> CustomStreamWrapper:
    """`resume_completion` for asyncio."""
    headers = resume_headers(session_id, request_id=request_id)
    with _told_plainly():
        return await litellm.acompletion(
            model, [_NOTHING], client=client, stream=True, max_retries=0, extra_headers=headers, **options
        )


# Some providers' formats are refused without a message. It is not sent.
_NOTHING = {"role": "user", "content": "-"}


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Find the error that the package takes for a failure of the provider."""
    try:
        yield
    except Exception as exc:
        for behind in _behind(exc):
            if isinstance(behind, NothingToResume):
                raise behind from None
        raise


def _behind(error: BaseException) -> Iterator[BaseException]:
    """What led to an error. The package chains errors in circles, too."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__ or found.__context__
