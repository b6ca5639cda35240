"""Tokens of wakes, keys of webhooks, and the places that webhooks may lead to: by value."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streamkeep.proxy.rules.allowlist import Allowlist
from streamkeep.proxy.rules.subscription_tokens import LIFETIME_SECONDS, TokenExpired, TokenInvalid, TokenSigner
from streamkeep.proxy.rules.webhook_signing import PUBLISHED_AFTER_RETIREMENT, jwks, webhook_key
from streamkeep.proxy.rules.webhook_urls import DEFAULT_GLOBS, WebhookRules, WebhookUrlRejected
from streamkeep.storage import SubscriptionKey

KEY = SubscriptionKey("t", "s")
SIGNER = TokenSigner.derived(bytes(32))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_token_tells_its_generation_until_it_expires() -> None:
    token = SIGNER.issue(KEY, 7, now=1000)
    assert SIGNER.generation(token, KEY, now=1000) == 7
    assert SIGNER.generation(token, KEY, now=999 + LIFETIME_SECONDS) == 7
    with pytest.raises(TokenExpired):
        SIGNER.generation(token, KEY, now=1000 + LIFETIME_SECONDS)


@pytest.mark.parametrize(
    "key", [SubscriptionKey("t", "other"), SubscriptionKey("other", "s"), SubscriptionKey("ts", "")]
)
def test_a_token_is_for_one_subscription(key: SubscriptionKey) -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.generation(SIGNER.issue(KEY, 7, now=0), key, now=0)


def test_a_token_of_another_secret_is_none() -> None:
    with pytest.raises(TokenInvalid):
        SIGNER.generation(TokenSigner.derived(b"x" * 32).issue(KEY, 7, now=0), KEY, now=0)


def test_no_changed_character_passes() -> None:
    token = SIGNER.issue(KEY, 7, now=0)
    for index, character in enumerate(token):
        changed = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        with pytest.raises(TokenInvalid):
            SIGNER.generation(changed, KEY, now=0)
    for changed in ("", token + "\n", f" {token}", token + "é", token * 100):
        with pytest.raises(TokenInvalid):
            SIGNER.generation(changed, KEY, now=0)


def test_a_secret_is_in_no_representation() -> None:
    assert "secret" not in repr(TokenSigner(b"secret")) + repr(webhook_key(b"secret" + bytes(26)))


def test_a_key_is_named_by_its_thumbprint() -> None:
    # The key pair and the thumbprint of RFC 8037, appendix A.
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = webhook_key(private)
    assert key.kid == "ds_kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    (published,) = jwks([key], now=NOW)["keys"]
    assert published["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert "d" not in published


@pytest.mark.parametrize(("age", "count"), [(timedelta(0), 2), (PUBLISHED_AFTER_RETIREMENT, 1)])
def test_a_retired_key_is_published_while_its_signatures_may_be_on_the_way(age: timedelta, count: int) -> None:
    used, retired = webhook_key(bytes(32)), replace(webhook_key(b"x" * 32), retired_at=NOW - age)
    assert len(jwks([used, retired], now=NOW)["keys"]) == count


PUBLIC = Allowlist.parse(DEFAULT_GLOBS)


def test_only_a_url_that_spells_this_machine_reaches_it() -> None:
    rules = WebhookRules.of(PUBLIC, host="127.0.0.1")
    assert rules.target("http://LOCALHOST:8/x").origin.may_be_private
    assert rules.target("http://127.0.0.255:8/x").origin.may_be_private
    assert rules.target("http://[::1]:8/x").origin.may_be_private
    assert not rules.target("https://example.com/x").origin.may_be_private
    for url in ("http://127.0.0.256/", "http://localhost.example.com/", "http://[::ffff:127.0.0.1]/", "http://0/"):
        with pytest.raises(WebhookUrlRejected):
            rules.target(url)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "2a00::1", "proxy.example", ""])
def test_who_asks_from_elsewhere_reaches_this_machine_only_where_a_glob_says_so(host: str) -> None:
    for url in ("http://localhost:8/x", "https://127.0.0.1:8/x", "http://[::1]:8/x"):
        with pytest.raises(WebhookUrlRejected):
            WebhookRules.of(PUBLIC, host=host).target(url)
    rules = WebhookRules.of(Allowlist.parse(["http://127.0.0.1:8/**", "private:http://*.corp.example:8"]), host=host)
    assert rules.target("http://127.0.0.1:8/x").origin.may_be_private
    assert rules.target("http://hooks.corp.example:8/x").origin.may_be_private
    for url in ("http://127.0.0.1:9/x", "https://example.com/x"):
        with pytest.raises(WebhookUrlRejected):
            rules.target(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_a_proxy_on_loopback_alone_serves_who_is_there_already(host: str) -> None:
    assert WebhookRules.of(PUBLIC, host=host).admits_this_machine
