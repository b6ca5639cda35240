"""Signed URLs, by value: what they permit, and that nothing in them can be changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest

from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.signing import MAX_LIFETIME_SECONDS, SignatureProblem, Signed, Signer, is_signed
from streamkeep.storage import GenerationKey, SigningKey, StreamKey

SIGNER = Signer(1, {1: bytes(32)})
GENERATION = GenerationKey("acme", "s1", "r1")
STREAM = StreamKey("acme", "docs/a")
NOW = 1_000


def signed(subject: Signed, *rights: Right) -> dict[str, str]:
    return dict(parse_qsl(SIGNER.query(subject, expires=NOW, rights=rights or (Right.READ,))))


@pytest.mark.parametrize("subject", [GENERATION, STREAM])
def test_a_signed_url_permits_its_rights_until_it_expires(subject: Signed) -> None:
    parameters = signed(subject, Right.READ, Right.APPEND)
    assert is_signed(parameters)
    assert SIGNER.check(subject, parameters, now=NOW - 1) is None
    assert SIGNER.check(subject, parameters, now=NOW - 1, right=Right.APPEND) is None
    assert SIGNER.check(subject, parameters, now=NOW - 1, right=Right.CANCEL) is SignatureProblem.INVALID
    assert SIGNER.check(subject, parameters, now=NOW) is SignatureProblem.EXPIRED


def test_a_signed_url_permits_reading_alone_when_nothing_is_said() -> None:
    parameters = signed(STREAM)
    assert "rights" not in parameters
    assert SIGNER.check(STREAM, parameters, now=0) is None
    assert SIGNER.check(STREAM, parameters, now=0, right=Right.APPEND) is SignatureProblem.INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "1001"},
        {"expires": "01000"},
        {"expires": "-1"},
        {"expires": "9" * 13},
        {"expires": ""},
        {"expires": "\u0661000"},
        {"rights": "append.cancel.read"},
        {"rights": "read.append"},
        {"rights": ""},
        {"rights": "r" * 65},
        {"signature": ""},
        {"signature": "1."},
        {"signature": "2." + "A" * 43},
        {"signature": "A" * 129},
        {"signature": "\udcff"},
        {"signature": "é" * 43},
    ],
)
@pytest.mark.parametrize("subject", [GENERATION, STREAM])
def test_no_parameter_of_a_signed_url_can_be_changed(subject: Signed, change: dict[str, str]) -> None:
    parameters = signed(subject, Right.READ, Right.APPEND) | change
    assert SIGNER.check(subject, parameters, now=0) is SignatureProblem.INVALID


@pytest.mark.parametrize("missing", ["expires", "signature", "rights"])
def test_no_parameter_of_a_signed_url_can_be_left_out(missing: str) -> None:
    parameters = signed(STREAM, Right.READ, Right.APPEND)
    del parameters[missing]
    assert SIGNER.check(STREAM, parameters, now=0) is SignatureProblem.INVALID


def test_no_character_of_a_signature_can_be_changed() -> None:
    parameters = signed(STREAM)
    signature = parameters["signature"]
    for index, character in enumerate(signature):
        other = "B" if character == "A" else "A"
        changed = signature[:index] + other + signature[index + 1 :]
        assert SIGNER.check(STREAM, parameters | {"signature": changed}, now=0) is SignatureProblem.INVALID


@pytest.mark.parametrize(
    "other",
    [
        GenerationKey("acme", "s1", "r2"),
        GenerationKey("acme", "s2", "r1"),
        GenerationKey("other", "s1", "r1"),
        GenerationKey("acme", "s", "1r1"),
        StreamKey("acme", "generations/s1/r1/data"),
        StreamKey("acme", "s1"),
        StreamKey("acmes1", "r1"),
    ],
)
def test_a_signature_is_for_one_generation(other: Signed) -> None:
    assert SIGNER.check(other, signed(GENERATION), now=0) is SignatureProblem.INVALID


def test_a_signature_by_another_key_is_refused() -> None:
    parameters = dict(parse_qsl(Signer(1, {1: b"x" * 32}).query(STREAM, expires=NOW)))
    assert SIGNER.check(STREAM, parameters, now=0) is SignatureProblem.INVALID
    assert "x" * 8 not in repr(Signer(1, {1: b"x" * 32}))


# Rotation

START = datetime(2026, 1, 1, tzinfo=UTC)


def made(id: int, seconds: float, *, is_only: bool = False) -> SigningKey:
    return SigningKey(id, bytes([id]) * 32, START + timedelta(seconds=seconds), is_only)


def at(seconds: float, *keys: SigningKey) -> Signer:
    return Signer.of(keys, now=START + timedelta(seconds=seconds))


def test_the_first_key_signs_at_once() -> None:
    assert at(0, made(1, 0)).current == 1


def test_a_new_key_signs_when_every_instance_knows_it() -> None:
    keys = made(1, 0), made(2, 100)
    assert [at(seconds, *keys).current for seconds in (100, 109.9, 110)] == [1, 1, 2]
    assert at(100, *keys).secrets.keys() == {1, 2}, "what another instance signs already is known"


def test_an_earlier_key_verifies_as_long_as_its_urls_can_be_good() -> None:
    keys = made(1, 0), made(2, 100)
    parameters = dict(parse_qsl(at(50, *keys).query(STREAM, expires=10**10)))
    last = 110 + MAX_LIFETIME_SECONDS
    assert at(last - 1, *keys).check(STREAM, parameters, now=0) is None
    assert at(last, *keys).check(STREAM, parameters, now=0) is SignatureProblem.INVALID


def test_after_a_leak_earlier_keys_are_good_no_more() -> None:
    keys = made(1, 0), made(2, 100), made(3, 200, is_only=True), made(4, 300)
    assert at(209, *keys[:3]).secrets.keys() == {1, 2, 3}
    assert at(210, *keys[:3]).secrets.keys() == {3}
    assert at(310, *keys).secrets.keys() == {3, 4}


def test_a_signature_names_its_key_and_passes_for_no_other() -> None:
    signer = Signer(2, {1: b"1" * 32, 2: b"2" * 32})
    parameters = dict(parse_qsl(signer.query(STREAM, expires=NOW)))
    assert signer.knows(parameters)
    assert signer.check(STREAM, parameters, now=0) is None
    for id in ("1", "3", "02", "-2", "2e0", "9" * 12, ""):
        changed = parameters | {"signature": id + parameters["signature"][1:]}
        assert signer.check(STREAM, changed, now=0) is SignatureProblem.INVALID
        assert signer.knows(changed) is (id == "1")
