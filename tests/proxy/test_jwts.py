"""JSON web tokens: what is accepted, and every trick that is not."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from streamkeep.proxy.errors import ApiError
from streamkeep.proxy.jwts import Jwts
from streamkeep.proxy.rules.access import InvalidCredentials, Limits, Principal, principal_of_claims
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.upstream import system_resolver
from streamkeep.storage import MemoryStore
from tests.serving import serving
from tests.upstream import Exchange, Upstream, upstream

SECRET = "a secret of thirty-two characters, at least"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def claims(**more: Any) -> dict[str, Any]:
    return {"tenant": "acme", "sub": "ann", "exp": int(time.time()) + 60, **more}


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    public = key.public_key()
    made = ECAlgorithm.to_jwk(public) if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm.to_jwk(public)
    return {**json.loads(made), **({} if kid is None else {"kid": kid}), **more}


class Issuer:
    """Publishes keys, which a test may change."""

    def __init__(self) -> None:
        self.body: bytes = b""
        self.status = 200
        self.publish(jwk(RSA, "rsa"), jwk(EC, "ec"))

    def publish(self, *keys: Mapping[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.answer(self.status, self.body, {"Content-Type": "application/json"})


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def page(issuer: Issuer) -> AsyncIterator[Upstream]:
    async with upstream(issuer) as served:
        yield served


def verifier(page: Upstream | None, **settings: Any) -> Jwts:
    url = None if page is None else f"{page.url}/jwks.json"
    return Jwts(Settings(jwt_jwks_url=url, **settings), system_resolver)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(SECRET, "HS256", None), (RSA, "RS256", "rsa"), (RSA, "RS256", None), (EC, "ES256", "ec"), (EC, "ES256", None)],
)
async def test_a_token_of_each_kind_is_read(key: Any, algorithm: str, kid: str | None, page: Upstream) -> None:
    jwts = verifier(page, jwt_secret=SECRET)
    token = jwt.encode(claims(), key, algorithm, headers=None if kid is None else {"kid": kid})
    assert (await jwts.claims(token))["tenant"] == "acme"
    await jwts.close()


def unsigned(header: Mapping[str, Any], payload: Mapping[str, Any] | bytes, signature: bytes = b"") -> str:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    parts = (json.dumps(header).encode(), body, signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def confused(**header: Any) -> str:
    """A token whose HMAC key is the public key that everybody knows."""
    import hashlib
    import hmac

    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = unsigned({"alg": "HS256", "typ": "JWT", **header}, claims()).rpartition(".")[0]
    digest = hmac.new(public, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def changed(token: str, **more: Any) -> str:
    header, _, signature = token.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(**more)).encode()).decode().rstrip("=")
    return f"{header}.{body}.{signature}"


SIGNED: Callable[..., str] = jwt.encode
TRICKS: dict[str, Callable[[], str]] = {
    "no signature": lambda: unsigned({"alg": "none"}, claims()),
    "none in capitals": lambda: unsigned({"alg": "NONE"}, claims()),
    "none with a key id": lambda: unsigned({"alg": "none", "kid": "rsa"}, claims()),
    "public key as secret": lambda: confused(),
    "public key as secret, by id": lambda: confused(kid="rsa"),
    "RSA under an EC id": lambda: SIGNED(claims(), RSA, "RS256", headers={"kid": "ec"}),
    "EC under an RSA id": lambda: SIGNED(claims(), EC, "ES256", headers={"kid": "rsa"}),
    "another's key": lambda: SIGNED(claims(), OTHER, "RS256", headers={"kid": "rsa"}),
    "another's key, none named": lambda: SIGNED(claims(), OTHER, "RS256"),
    "unknown key id": lambda: SIGNED(claims(), RSA, "RS256", headers={"kid": "new"}),
    "key id that is a path": lambda: SIGNED(claims(), RSA, "RS256", headers={"kid": "../../dev/null"}),
    "key id that is a number": lambda: unsigned({"alg": "RS256", "kid": 1}, claims(), b"x" * 256),
    "endless key id": lambda: SIGNED(claims(), RSA, "RS256", headers={"kid": "k" * 300}),
    "key in the header": lambda: SIGNED(claims(), OTHER, "RS256", headers={"jwk": jwk(OTHER)}),
    "page in the header": lambda: SIGNED(claims(), OTHER, "RS256", headers={"jku": "http://127.0.0.1:1/"}),
    "another algorithm": lambda: SIGNED(claims(), RSA, "RS512", headers={"kid": "rsa"}),
    "HS512 with our secret": lambda: SIGNED(claims(), SECRET * 2, "HS512"),
    "algorithm that is no text": lambda: unsigned({"alg": ["HS256"]}, claims()),
    "unknown critical header": lambda: SIGNED(claims(), SECRET, "HS256", headers={"crit": ["x"], "x": 1}),
    "changed claims": lambda: changed(SIGNED(claims(), SECRET, "HS256"), tenant="other"),
    "no end": lambda: SIGNED({"tenant": "acme"}, SECRET, "HS256"),
    "expired": lambda: SIGNED(claims(exp=int(time.time()) - 60), SECRET, "HS256"),
    "not yet": lambda: SIGNED(claims(nbf=int(time.time()) + 60), SECRET, "HS256"),
    "end that is no number": lambda: SIGNED(claims(exp="tomorrow"), SECRET, "HS256"),
    "claims that are a list": lambda: jwt.api_jws.encode(b"[1]", SECRET, "HS256"),
    "endless nesting": lambda: jwt.api_jws.encode(b"[" * 5000, SECRET, "HS256"),
    "endless number": lambda: jwt.api_jws.encode(b'{"exp":1e999}', SECRET, "HS256"),
    "number of many digits": lambda: jwt.api_jws.encode(b'{"exp":' + b"9" * 5000 + b"}", SECRET, "HS256"),
    "nested header": lambda: base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.x",
    "three dots": lambda: "...",
    "nothing between dots": lambda: "..",
    "no base64": lambda: "!!.??.**",
    "not ASCII": lambda: "ä.ö.ü",
}


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_trick_is_refused(trick: str, page: Upstream) -> None:
    jwts = verifier(page, jwt_secret=SECRET)
    with pytest.raises(InvalidCredentials) as refused:
        await jwts.claims(TRICKS[trick]())
    assert SECRET not in str(refused.value)
    await jwts.close()


async def test_without_a_secret_no_shared_secret_is_good(page: Upstream) -> None:
    jwts = verifier(page)
    for key in ("", "x" * 32, SECRET):
        with pytest.raises(InvalidCredentials):
            await jwts.claims(unsigned({"alg": "HS256"}, claims(), key.encode()))
    with pytest.raises(InvalidCredentials):
        await jwts.claims(confused())
    await jwts.close()


async def test_audience_and_issuer_must_be_ours_when_they_are_set() -> None:
    jwts = verifier(None, jwt_secret=SECRET, jwt_audience="us", jwt_issuer="them")
    good = claims(aud="us", iss="them")
    assert await jwts.claims(jwt.encode(good, SECRET, "HS256")) == good
    for bad in (
        {"aud": "other"},
        {"iss": "other"},
        {"aud": None},
        {"iss": None},
        {"aud": ["a", "b"]},
        {"iss": ["them"]},
    ):
        named = {name: value for name, value in {**good, **bad}.items() if value is not None}
        with pytest.raises(InvalidCredentials):
            await jwts.claims(_encoded(named))


def _encoded(payload: Mapping[str, Any]) -> str:
    return jwt.api_jws.encode(json.dumps(payload).encode(), SECRET, "HS256")


async def test_an_audience_that_nobody_asked_for_is_no_hindrance() -> None:
    jwts = verifier(None, jwt_secret=SECRET)
    assert await jwts.claims(jwt.encode(claims(aud="anyone"), SECRET, "HS256"))


async def test_a_new_key_is_fetched_but_not_for_every_stranger(issuer: Issuer, page: Upstream) -> None:
    jwts = verifier(page)
    known = jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"})
    unknown = jwt.encode(claims(), OTHER, "RS256", headers={"kid": "new"})
    await jwts.claims(known)
    issuer.publish(jwk(RSA, "rsa"), jwk(OTHER, "new"))
    for _ in range(20):
        with pytest.raises(InvalidCredentials):
            await jwts.claims(unknown)
    assert len(page.calls) == 1
    published = jwts._published
    assert published is not None
    published._tried_at = time.monotonic() - 11
    assert await jwts.claims(unknown)
    assert len(page.calls) == 2
    await jwts.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (302, b""),
        (200, b"not json"),
        (200, b"[]"),
        (200, b'{"keys": 1}'),
        (200, b"[" * 100_000),
        (200, b" " * 300_000),
    ],
)
async def test_a_page_that_is_none_makes_it_wait(status: int, body: bytes, issuer: Issuer, page: Upstream) -> None:
    issuer.status, issuer.body = status, body
    jwts = verifier(page)
    with pytest.raises(ApiError) as waiting:
        await jwts.claims(jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"}))
    assert waiting.value.problem.status == 503
    await jwts.close()


async def test_keys_that_are_not_for_this_are_passed_over(issuer: Issuer, page: Upstream) -> None:
    oct_key = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "oct"}
    issuer.publish(
        oct_key, {"kty": "RSA", "kid": "broken", "n": "!", "e": 1}, jwk(RSA, "enc", use="enc"), jwk(EC, "ec")
    )
    jwts = verifier(page)
    assert await jwts.claims(jwt.encode(claims(), EC, "ES256", headers={"kid": "ec"}))
    for token in (
        jwt.encode(claims(), SECRET, "HS256", headers={"kid": "oct"}),
        jwt.encode(claims(), RSA, "RS256", headers={"kid": "enc"}),
        jwt.encode(claims(), RSA, "RS256", headers={"kid": "broken"}),
    ):
        with pytest.raises(InvalidCredentials):
            await jwts.claims(token)
    await jwts.close()


def test_claims_say_who_it_is_and_what_it_may_do() -> None:
    said = claims(upstreams=["openai", "https://api.example.com/**"], limits={"maxRunning": 2}, operator=True)
    assert principal_of_claims(said, tenant_claim="tenant") == Principal(
        "acme",
        subject="ann",
        upstreams=("openai", "https://api.example.com/**"),
        limits=Limits(2, None),
        is_operator=True,
    )
    assert principal_of_claims({"org": "x"}, tenant_claim="org") == Principal("x")
    assert principal_of_claims({}, tenant_claim=None) == Principal("default")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"tenant": ""},
        {"tenant": "a/b"},
        {"tenant": 1},
        {"tenant": ["a"]},
        {"tenant": "x" * 201},
        {"tenant": "a", "sub": 1},
        {"tenant": "a", "sub": ""},
        {"tenant": "a", "sub": "x" * 257},
        {"tenant": "a", "sub": "ann\0"},
        {"tenant": "a", "sub": "\ud800"},
        {"tenant": "a", "upstreams": "openai"},
        {"tenant": "a", "upstreams": [1]},
        {"tenant": "a", "upstreams": ["https://**"]},
        {"tenant": "a", "limits": []},
        {"tenant": "a", "limits": {"maxRunning": 0}},
        {"tenant": "a", "limits": {"maxRunning": True}},
        {"tenant": "a", "limits": {"maxPerMinute": 1.5}},
        {"tenant": "a", "limits": {"maxPerMinute": 2**31}},
        {"tenant": "a", "operator": "yes"},
    ],
)
def test_claims_of_another_form_are_refused(said: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidCredentials):
        principal_of_claims(said, tenant_claim="tenant")


async def test_a_token_opens_its_tenants_streams_and_no_others() -> None:
    async with serving(MemoryStore(), jwt_secret=SECRET) as proxy:
        token = {"Authorization": f"Bearer {jwt.encode(claims(), SECRET, 'HS256')}"}
        other = {"Streamkeep-Key": jwt.encode(claims(tenant="other"), SECRET, "HS256")}
        assert (await proxy.client.put("/v1/stream/a", headers=token)).status_code == 201
        assert (await proxy.client.get("/v1/stream/a", headers=token)).status_code == 200
        assert (await proxy.client.get("/v1/stream/a", headers=other)).status_code == 404
        assert (await proxy.client.get("/v1/stream/a")).status_code == 401
        late = {"Authorization": f"Bearer {jwt.encode(claims(exp=1), SECRET, 'HS256')}"}
        answer = await proxy.client.get("/v1/stream/a", headers=late)
        assert (answer.status_code, answer.json()["message"]) == (401, "the token has expired")
