"""Webhooks on the wire: one signed POST per attempt, over a transport that reaches no private address by accident."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from enum import Enum

import httpx

from streamkeep.proxy.http1 import Headers
from streamkeep.proxy.rules.allowlist import Allowed
from streamkeep.proxy.rules.webhook_signing import SIGNATURE, signature
from streamkeep.proxy.rules.webhook_urls import WebhookRules
from streamkeep.proxy.upstream import Resolver, UpstreamTransport
from streamkeep.storage import WebhookKey

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 10.0
_MAX_ANSWER_BYTES = 64 * 1024


class Answer(Enum):
    """What a receiver made of a webhook."""

    DONE = "done"
    ACCEPTED = "accepted"
    FAILED = "failed"


class Webhooks:
    """Sends webhooks: no redirects, no cookies, no proxies from the environment, and a bound on time and answer."""

    def __init__(self, rules: WebhookRules, resolve: Resolver) -> None:
        self.rules = rules
        self._transport = UpstreamTransport(resolve=resolve)

    async def close(self) -> None:
        await self._transport.aclose()

    async def send(self, url: str, value: object, key: WebhookKey, *, at: int) -> Answer:
        """POST a value as JSON; never raises for what the receiver, or the way to it, does.

        Raises:
            WebhookUrlRejected: the rules do not admit the URL, or do not any more.
        """
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        target = self.rules.target(url)
        headers = [
            (b"Content-Type", b"application/json"),
            (SIGNATURE.encode(), signature(key, body, at=at).encode()),
        ]
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._answer(target, headers, body)
        except (httpx.TransportError, TimeoutError) as exc:
            logger.info("a webhook to %s failed: %s", target.origin.host, type(exc).__name__)
            return Answer.FAILED

    async def _answer(self, target: Allowed, headers: Headers, body: bytes) -> Answer:
        head, answer = await self._transport.send(
            "POST", target.origin, target.resource, headers, body, connect_seconds=DEADLINE_SECONDS
        )
        async with aclosing(answer):
            if not 200 <= head.status < 300:
                logger.info("a webhook to %s was answered with %s", target.origin.host, head.status)
                return Answer.FAILED
            content = bytearray()
            async for piece in answer:
                content += piece
                if len(content) > _MAX_ANSWER_BYTES:
                    return Answer.ACCEPTED
            return Answer.DONE if _says_done(bytes(content)) else Answer.ACCEPTED


def _says_done(body: bytes) -> bool:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("done") is True
