"""Where webhooks may lead (protocol 6.2, 12): https anywhere public, what the operator admits besides, and this machine
while nobody else can ask for it.

A name that looks public may still resolve to a private address; that is checked where the socket is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from streamkeep.proxy.rules.addresses import is_loopback
from streamkeep.proxy.rules.allowlist import Allowed, Allowlist, Refused

MAX_URL_CHARACTERS = 2048
DEFAULT_GLOBS = ("https://*:*/**",)

_THIS_MACHINE = re.compile(r"localhost|127\.0\.0\.[0-9]{1,3}|::1")


class WebhookUrlRejected(ValueError):
    """The URL is not one that webhooks may be sent to; the message says why."""


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """What `allow` admits, and with `admits_this_machine` any URL that spells `localhost`, `127.0.0.x` or `[::1]`."""

    allow: Allowlist
    admits_this_machine: bool

    @classmethod
    def of(cls, allow: Allowlist, *, host: str) -> WebhookRules:
        """The rules of a proxy that listens on `host`: on loopback alone, whoever asks is on this machine already."""
        return cls(allow, is_loopback(host))

    def target(self, url: str) -> Allowed:
        """Raises: WebhookUrlRejected."""
        if len(url) > MAX_URL_CHARACTERS or not url.isascii():
            raise WebhookUrlRejected(f"a webhook URL has up to {MAX_URL_CHARACTERS} ASCII characters")
        if "#" in url:
            raise WebhookUrlRejected("a webhook URL has no fragment")
        try:
            host = urlsplit(url).hostname or ""
            is_this_machine = self.admits_this_machine and _THIS_MACHINE.fullmatch(host) is not None
            decision = (_spelled(host) if is_this_machine else self.allow).decide(url)
        except ValueError:
            raise WebhookUrlRejected("the webhook URL cannot be read") from None
        if isinstance(decision, Refused):
            raise WebhookUrlRejected(
                "a webhook URL is https and leads to a public host, or to one that the operator of this server admits"
            )
        return decision


def _spelled(host: str) -> Allowlist:
    return Allowlist.parse([f"[{host}]:*/**" if ":" in host else f"{host}:*/**"])
