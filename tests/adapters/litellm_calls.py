"""Calls of the real `litellm`, for test_litellm.py: prints what became of them as one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import litellm

from streamkeep.adapters.litellm import (
    durable_async_handler,
    durable_handler,
    resume_acompletion,
    resume_completion,
)
from streamkeep.adapters.openai import durable_async_openai, durable_openai
from streamkeep.client import MemoryStore

QUESTION = [{"role": "user", "content": "What does the river say?"}]
FAST = {"Fake-Rate": "0", "Fake-Tokens": "30", "Fake-Retry-After": "0"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required"}


def told(chunks: Iterable[Any]) -> dict[str, str]:
    """The text of chunks, and the tool that they call with its arguments."""
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
    return {
        "text": "".join(delta.content or "" for delta in deltas),
        "tool": "".join(call.name or "" for call in calls),
        "arguments": "".join(call.arguments or "" for call in calls),
    }


def outcome(call: Callable[[], Any]) -> list[str]:
    """The names of the error that a call ends with, and of those behind it."""
    names: list[str] = []
    try:
        list(call())
    except Exception as exc:  # noqa: BLE001
        found: BaseException | None = exc
        while found is not None and len(names) < 9:
            names.append(type(found).__name__)
            found = found.__cause__ or found.__context__
    return names


def blocking(provider: str, client: Any, session: str, options: dict[str, Any]) -> dict[str, Any]:
    def ask(request: str, **more: Any) -> Any:
        headers = {**FAST, "X-Session-ID": session, "X-Request-ID": request, **more.pop("headers", {})}
        asked = {"client": client, "stream": True, "max_retries": 0, "extra_headers": headers, **options, **more}
        return litellm.completion(provider, QUESTION, **asked)

    def resume(request: str) -> Any:
        return resume_completion(provider, session, client=client, request_id=request, **options)

    found: dict[str, Any] = {}
    for name, more in (("text", {}), ("tools", TOOLS)):
        begun = told(islice(ask(name, **more), 3))
        found[name] = {"begun": begun, "resumed": told(resume(name))}
    cut = {"headers": {"Fake-Fault": "truncate@9"}}
    found["truncated"] = [outcome(lambda: ask("cut", **cut)), outcome(lambda: resume("cut"))]
    found["refused"] = outcome(lambda: ask("limit", headers={"Fake-Fault": "status:429"}))
    found["unknown"] = outcome(lambda: resume("unknown"))
    return found


async def awaited(provider: str, client: Any, session: str, options: dict[str, Any]) -> dict[str, Any]:
    headers = {**FAST, "X-Session-ID": session, "X-Request-ID": "async"}
    asked = await litellm.acompletion(provider, QUESTION, client=client, stream=True, extra_headers=headers, **options)
    whole = told([chunk async for chunk in asked])
    resumed = await resume_acompletion(provider, session, client=client, request_id="async", **options)
    return {"whole": whole, "resumed": told([chunk async for chunk in resumed])}


async def main(proxy_url: str, vendor_url: str, session: str) -> None:
    ours: dict[str, Any] = {"store": MemoryStore()}
    openai: dict[str, Any] = {"base_url": f"{vendor_url}/v1", "api_key": "any", "max_retries": 0}
    anthropic = {"api_base": vendor_url, "api_key": "any"}
    found = {
        "openai": await asyncio.to_thread(
            blocking, "openai/m", durable_openai(proxy_url, **ours, **openai), f"{session}-openai", {}
        ),
        "anthropic": await asyncio.to_thread(
            blocking, "anthropic/m", durable_handler(proxy_url, **ours), f"{session}-anthropic", anthropic
        ),
        "async openai": await awaited(
            "openai/m", durable_async_openai(proxy_url, **ours, **openai), f"{session}-openai", {}
        ),
        "async anthropic": await awaited(
            "anthropic/m", durable_async_handler(proxy_url, **ours), f"{session}-anthropic", anthropic
        ),
    }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
