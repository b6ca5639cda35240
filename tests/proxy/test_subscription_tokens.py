"""Tokens of wakes, keys of webhooks, and the places that webhooks may lead to: by value."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streamkeep.proxy.rules.subscription_tokens import LIFETIME_SECONDS, TokenExpired, TokenInvalid, TokenSigner
from streamkeep.proxy.rules.webhook_signing import PUBLISHED_AFTER_RETIREMENT, jwks, webhook_key
from streamkeep.proxy.rules.webhook_urls import WebhookUrlRejected, webhook_target
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


def test_only_a_url_that_spells_this_machine_reaches_it() -> None:
    assert webhook_target("http://LOCALHOST:8/x").is_this_machine
    assert webhook_target("http://127.0.0.255:8/x").is_this_machine
    assert webhook_target("http://[::1]:8/x").is_this_machine
    assert not webhook_target("https://example.com/x").is_this_machine
    for url in ("http://127.0.0.256/", "http://localhost.example.com/", "http://[::ffff:127.0.0.1]/", "http://0/"):
        with pytest.raises(WebhookUrlRejected):
            webhook_target(url)
