"""The model that answers: any server of OpenAI's chat API, and a count of what its answers cost."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

Message = dict[str, Any]
Event = dict[str, Any]

_DOLLARS_PER_INPUT_TOKEN = 2.5e-6
_DOLLARS_PER_OUTPUT_TOKEN = 10e-6
_CHARACTERS_PER_TOKEN = 4
_TIMEOUT = httpx.Timeout(120, connect=10)
_MAX_ERROR_BYTES = 64 * 1024


class ModelError(Exception):
    """The model's server did not answer, or answered with a refusal; the message says which."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model answers: the one at `url`, the one on this machine, or else the fake vendor, which says so many tokens
    at such a rate."""

    url: str | None
    name: str
    key: str = field(repr=False)
    tokens: int
    rate: float
    is_local: bool = False


@dataclass(slots=True)
class Bill:
    """What was asked of a model so far, and what it said. Tokens are counted as they come, so that of an answer which was
    left in the middle, what was made is on the bill."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def to_json(self) -> dict[str, float]:
        dollars = self.input_tokens * _DOLLARS_PER_INPUT_TOKEN + self.output_tokens * _DOLLARS_PER_OUTPUT_TOKEN
        return {"calls": self.calls, "tokens": self.output_tokens, "dollars": dollars}


@dataclass(slots=True)
class Model(AbstractAsyncContextManager["Model"]):
    """A model at `url`, which ends in `/v1`. `fields` go into every request, `bills` are by whom the calls were made for."""

    url: str
    name: str
    key: str = field(repr=False)
    has_tools: bool = True
    fields: Mapping[str, object] = field(default_factory=dict)
    bills: dict[str, Bill] = field(default_factory=dict)
    _http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=_TIMEOUT), repr=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def stream(
        self, messages: Sequence[Message], *, payer: str, tools: Sequence[dict[str, Any]] = ()
    ) -> AsyncGenerator[Event, None]:
        """Ask, and give the events of the answer. Raises: ModelError."""
        bill = self.bills.setdefault(payer, Bill())
        body: dict[str, Any] = {"model": self.name, "stream": True, "messages": messages, **self.fields}
        if tools and self.has_tools:
            body["tools"] = tools
        bill.calls += 1
        bill.input_tokens += len(json.dumps(messages)) // _CHARACTERS_PER_TOKEN
        try:
            async with self._http.stream(
                "POST", f"{self.url}/chat/completions", json=body, headers={"Authorization": f"Bearer {self.key}"}
            ) as response:
                if response.status_code != 200:
                    raise ModelError(f"the model's server answered {response.status_code}: {await _reason(response)}")
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        bill.output_tokens += 1
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as exc:
            raise ModelError(f"the model's server cannot be reached: {type(exc).__name__}") from exc
        except ValueError as exc:
            raise ModelError("the model's server sent what is not JSON") from exc


async def _reason(response: httpx.Response) -> str:
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _MAX_ERROR_BYTES:
            break
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
