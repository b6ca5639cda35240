"""The pure rules of the stream routes: caching, compression, timestamps, paths."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streamkeep.proxy.rules import caching, stream_headers, stream_paths, wire
from streamkeep.proxy.rules.wire import BadRequest

BRIEF, SHARED, NONE = caching.CachePolicy.BRIEF, caching.CachePolicy.SHARED, caching.CachePolicy.NONE
TAG = caching.entity_tag(7, 0, 12, is_closed=False)


def test_entity_tags_differ_by_stream_range_and_closure() -> None:
    tags = {
        TAG,
        caching.entity_tag(8, 0, 12, is_closed=False),
        caching.entity_tag(7, 1, 12, is_closed=False),
        caching.entity_tag(7, 0, 13, is_closed=False),
        caching.entity_tag(7, 0, 12, is_closed=True),
        caching.entity_tag(7, 0, 12, is_closed=False, is_gzip=True),
    }
    assert len(tags) == 6
    assert caching.entity_tag(7, 0, 12, is_closed=True).endswith(':c"')


@pytest.mark.parametrize(
    ("condition", "is_met"),
    [
        (None, False),
        ("", False),
        ("*", True),
        (TAG, True),
        (f"W/{TAG}", True),
        (f'"other", {TAG}', True),
        (f'W/"other",W/{TAG} , "third"', True),
        ('"a,b", "c"', False),
        (TAG.strip('"'), False),
        (f'"x{TAG[1:]}', False),
    ],
)
def test_conditions_are_lists_of_weak_or_strong_tags(condition: str | None, is_met: bool) -> None:
    assert caching.matches(condition, TAG) is is_met
    assert caching.matches(condition, f"W/{TAG}") is is_met


@pytest.mark.parametrize(
    ("accepted", "content_type", "size_bytes", "is_wanted"),
    [
        ("gzip", "text/plain", 1024, True),
        ("gzip", "text/plain", 1023, False),
        ("br, GZIP;q=0.5", "application/json; charset=utf-8", 5000, True),
        ("*", "application/problem+json", 5000, True),
        ("gzip;q=0, *", "text/plain", 5000, False),
        ("br", "text/plain", 5000, False),
        ("gzip;q=x", "text/plain", 5000, False),
        (None, "text/plain", 5000, False),
        ("gzip", "application/octet-stream", 5000, False),
        ("gzip", "image/png", 5000, False),
    ],
)
def test_text_is_compressed_for_those_who_take_it(
    accepted: str | None, content_type: str, size_bytes: int, is_wanted: bool
) -> None:
    assert caching.is_gzip_wanted(accepted, content_type, size_bytes) is is_wanted


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2030-01-02T03:04:05Z", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2030-01-02t03:04:05z", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2030-01-02T03:04:05.123456789+02:00", datetime(2030, 1, 2, 1, 4, 5, 123456, tzinfo=UTC)),
        ("2030-06-30T23:59:60Z", datetime(2030, 7, 1, tzinfo=UTC)),
    ],
)
def test_rfc_3339_timestamps(text: str, instant: datetime) -> None:
    found = stream_headers.expiry({wire.STREAM_TTL: None, wire.STREAM_EXPIRES_AT: text})
    assert found is not None
    assert found.expires_at == instant


def test_timestamps_are_written_in_utc_with_milliseconds() -> None:
    assert stream_headers.format_timestamp(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2030-01-02T03:04:05.000Z"
    precise = datetime(2030, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    assert stream_headers.format_timestamp(precise) == "2030-01-02T03:04:05.123456Z"


@pytest.mark.parametrize("raw", [b"a", b"a/b/c", b"a%20b", b"a%3Fb", "chät".encode(), b"ch%C3%A4t", b"...", b"a/.b"])
def test_paths_come_back_from_their_urls(raw: bytes) -> None:
    path = stream_paths.parse_path(raw)
    assert stream_paths.parse_source(stream_paths.url_path(path)) == path


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"/", b"a/", b"/a", b"a//b", b".", b"..", b"a/../b", b"a/%2e%2E/b", b"a/.", b"a%2fb", b"a%5Cb", b"a\\b"),
        *(b"a%00b", b"a%0Ab", b"a%7f", b"a%C2%85", b"%ff", b"x" * 1025, "ä".encode() * 513),
    ],
)
def test_paths_that_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        stream_paths.parse_path(raw)
    assert refused.value.code == "invalid_path"


@pytest.mark.parametrize(
    ("policy", "is_final", "expires_at", "seconds"),
    [
        (SHARED, True, 2000, 10),
        (SHARED, False, 2000, 1),
        (BRIEF, False, 2000, 1),
        (BRIEF, True, 2000, 10),
        (NONE, True, 2000, 0),
        (SHARED, True, 1006, 4),
        (SHARED, True, 1002, 0),
        (SHARED, True, 1001, 0),
        (SHARED, True, 0, 0),
    ],
)
def test_what_a_signed_url_reads_is_not_kept_beyond_its_life(
    policy: caching.CachePolicy, is_final: bool, expires_at: int, seconds: int
) -> None:
    assert caching.by_url_seconds(policy, is_final=is_final, expires_at=expires_at, now=1000.5) == seconds
