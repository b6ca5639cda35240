"""Signed URLs, by value: what they permit, and that nothing in them can be changed."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.signing import SignatureProblem, Signed, Signer, is_signed
from streamkeep.storage import GenerationKey, StreamKey

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
