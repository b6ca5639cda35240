"""Where webhooks may lead (protocol 6.2, 12): https anywhere public, and this machine when the URL spells it.

A name that looks public may still resolve to a private address; that is checked where the socket is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from streamkeep.proxy.rules.allowlist import Allowlist, Refused

MAX_URL_CHARACTERS = 2048

_PUBLIC = Allowlist.parse(["https://*:*/**"])
_THIS_MACHINE = re.compile(r"localhost|127\.0\.0\.[0-9]{1,3}|::1")


class WebhookUrlRejected(ValueError):
    """The URL is not one that webhooks may be sent to; the message says why."""


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A URL to send to; `is_this_machine` admits addresses that are not public."""

    url: str
    is_this_machine: bool


def webhook_target(url: str) -> WebhookTarget:
    """Raises: WebhookUrlRejected."""
    if len(url) > MAX_URL_CHARACTERS or not url.isascii():
        raise WebhookUrlRejected(f"a webhook URL has up to {MAX_URL_CHARACTERS} ASCII characters")
    if "#" in url:
        raise WebhookUrlRejected("a webhook URL has no fragment")
    try:
        host = urlsplit(url).hostname or ""
        is_this_machine = _THIS_MACHINE.fullmatch(host) is not None
        decision = (_spelled(host) if is_this_machine else _PUBLIC).decide(url)
    except ValueError:
        raise WebhookUrlRejected("the webhook URL cannot be read") from None
    if isinstance(decision, Refused):
        raise WebhookUrlRejected(
            "a webhook URL is https and leads to a public host; http is for localhost and 127.0.0.x alone"
        )
    return WebhookTarget(url, is_this_machine)


def _spelled(host: str) -> Allowlist:
    return Allowlist.parse([f"[{host}]:*/**" if ":" in host else f"{host}:*/**"])
