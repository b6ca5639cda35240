"""Offsets: what is written, what is read, and how tokens sort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.storage import InvalidOffset
from streamkeep.storage.rules.offsets import format_offset, parse_offset

_MAX = 10**16 - 1
_ZEROS = "0" * 16


@pytest.mark.parametrize(
    ("position", "token"),
    [
        (0, f"{_ZEROS}_0000000000000000"),
        (1, f"{_ZEROS}_0000000000000001"),
        (1024, f"{_ZEROS}_0000000000001024"),
        (_MAX, f"{_ZEROS}_9999999999999999"),
    ],
)
def test_a_position_has_one_token(position: int, token: str) -> None:
    assert format_offset(position) == token
    assert parse_offset(token) == position


@pytest.mark.parametrize("position", [-1, _MAX + 1])
def test_no_token_is_written_for_other_positions(position: int) -> None:
    with pytest.raises(ValueError, match="no offset"):
        format_offset(position)


def test_the_start_is_zero_and_now_is_left_to_the_reader() -> None:
    assert parse_offset("-1") == 0
    assert parse_offset("now") is None


@pytest.mark.parametrize(
    "token",
    [
        "",
        "0",
        "-2",
        "NOW",
        "now ",
        " -1",
        "-1\n",
        f"{_ZEROS}_{_ZEROS}\n",
        f" {_ZEROS}_{_ZEROS}",
        f"{_ZEROS}_{_ZEROS}0",
        f"{_ZEROS}{_ZEROS}",
        f"{_ZEROS}-{_ZEROS}",
        f"0000000000000001_{_ZEROS}",
        f"{_ZEROS}_000000000000000x",
        f"{_ZEROS}_-000000000000001",
        f"{_ZEROS}_+000000000000001",
        f"{_ZEROS}_00000000000000_1",
        f"{_ZEROS}_" + "\N{ARABIC-INDIC DIGIT ONE}" * 16,
        f"{_ZEROS}_" + "\N{FULLWIDTH DIGIT ONE}" * 16,
        f"{_ZEROS}_{_ZEROS}\x00",
        "1" * 10_000,
    ],
)
def test_everything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidOffset):
        parse_offset(token)


@given(st.integers(0, _MAX), st.integers(0, _MAX))
def test_tokens_sort_as_positions_do(one: int, other: int) -> None:
    assert (format_offset(one) < format_offset(other)) == (one < other)


@given(st.integers(0, _MAX))
def test_what_was_written_is_read_back(position: int) -> None:
    assert parse_offset(format_offset(position)) == position


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(token: str) -> None:
    try:
        position = parse_offset(token)
    except InvalidOffset:
        return
    assert token in ("-1", "now") or token == format_offset(position or 0)
