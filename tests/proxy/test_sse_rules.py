"""What a reader of server-sent events gets back is the text that went in."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkeep.proxy.rules import sse


def read_back(frame: bytes) -> str:
    """The payload of one event, as the specification of server-sent events reads it."""
    lines = [line.removeprefix("data:") for line in frame.decode().split("\n") if line.startswith("data:")]
    return "\n".join(line.removeprefix(" ") for line in lines)


@pytest.mark.parametrize(
    "payload", [" two words", "  ", "", "\n", "a\n b\n  c\n", ":", "data:x\n\nevent: control", "\u2028"]
)
def test_a_payload_is_read_back_as_it_was(payload: str) -> None:
    assert read_back(sse.data_frame(payload, "0")) == payload


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
def test_any_payload_without_a_carriage_return_is_read_back(payload: str) -> None:
    assert read_back(sse.data_frame(payload, "0")) == payload


def test_text_of_nothing_but_line_ends_is_framed_in_a_few_steps() -> None:
    steps = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(profile)
    try:
        frame = sse.data_frame("\n \r\n\r" * 1000, "1")
    finally:
        sys.setprofile(None)
    assert steps < 50
    assert frame == b"event: data\nid: 1\ndata:\n" + b"data:  \ndata:\n" * 1000 + b"data:\n\n"
