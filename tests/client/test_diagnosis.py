"""What measurements mean, by table: also those that no gateway of the tests makes."""

from __future__ import annotations

import pytest

from streamkeep.client._rules import diagnosis
from streamkeep.client._rules.diagnosis import Answer, Finding, Live, Quiet, Verdict

URL = "https://streams.example/v1/stream/x"
ORIGIN = "https://app.example"
OK, NOTE, BAD = Verdict.OK, Verdict.NOTE, Verdict.BAD


def page(exposed: str, allowed: str = "*") -> Answer:
    headers = {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": exposed}
    return Answer(200, headers)


PREFLIGHT = Answer(204, {"Access-Control-Allow-Methods": "GET"})


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (diagnosis.connection(URL, Answer(201, version="HTTP/1.1"), "h2"), OK),
        (diagnosis.connection(URL, Answer(201, version="HTTP/1.1"), "http/1.1"), NOTE),
        (diagnosis.connection(URL.replace("https", "http"), Answer(201, version="HTTP/1.1"), None), OK),
        (diagnosis.connection(URL, Answer(201, version="HTTP/1.0"), "h2"), BAD),
        (diagnosis.address(URL, URL), OK),
        (diagnosis.address(URL, "/v1/stream/x"), OK),
        (diagnosis.address(URL, None), NOTE),
        (diagnosis.address(URL, "http://streams.example/v1/stream/x"), BAD),
        (diagnosis.address(URL, "https://[broken"), BAD),
        (diagnosis.body(b"abc", Answer(200, body=b"abcd")), BAD),
        (diagnosis.body(b"abc", Answer(200, {"Content-Encoding": "identity"}, b"abc")), OK),
        (diagnosis.headers(Answer(200, {"Stream-Next-Offset": "1", "ETag": '"1"'})), NOTE),
        (diagnosis.cross_origin(ORIGIN, page("*"), PREFLIGHT), OK),
        (diagnosis.cross_origin(ORIGIN, page("*", ORIGIN), PREFLIGHT), OK),
        (diagnosis.cross_origin(ORIGIN, page("*", "*, *"), PREFLIGHT), BAD),
        (diagnosis.cross_origin(ORIGIN, page("*", "https://other.example"), PREFLIGHT), NOTE),
        (diagnosis.cross_origin(ORIGIN, page("stream-next-offset, etag"), PREFLIGHT), BAD),
        (diagnosis.cross_origin(ORIGIN, page("*"), Answer(405)), BAD),
        (diagnosis.revalidation(Answer(200)), NOTE),
        (diagnosis.head("2", Answer(200, {"Stream-Next-Offset": "1"})), BAD),
        (diagnosis.ranges(b"abc", Answer(206, body=b"a")), BAD),
        (diagnosis.strangers(Answer(404)), OK),
        (diagnosis.strangers(Answer(500)), NOTE),
        (diagnosis.events(Live(2, (0.1, 0.2))), OK),
        (diagnosis.events(Live(2, (0.1, 0.2), encoding="gzip")), NOTE),
        (diagnosis.events(Live(2, (1.5, 1.5))), NOTE),
        (diagnosis.events(Live(2, (0.1,))), BAD),
        (diagnosis.events(Live(2, (0.1, 0.2), is_equal=False)), BAD),
        (diagnosis.polls(Live(2, (0.1,), is_equal=False)), BAD),
        (diagnosis.quiet_events(Quiet(60.0, "its end", is_clean=True)), OK),
        (diagnosis.quiet_events(Quiet(5.0, "its end", is_clean=True)), BAD),
        (diagnosis.quiet_events(Quiet(60.0, "ReadError")), BAD),
        (diagnosis.quiet_poll(Quiet(20.0, "204", is_clean=True)), OK),
        (diagnosis.quiet_poll(Quiet(20.0, "504")), BAD),
    ],
)
def test_what_was_measured_is_judged(finding: Finding, verdict: Verdict) -> None:
    assert finding.verdict is verdict
    assert (finding.advice is None) == (verdict is OK)


def test_what_a_server_says_is_shown_as_one_line() -> None:
    answer = Answer(502, {"Server": "bad\x1b[31m\r\nthing" + "x" * 1000})
    shown = diagnosis.body(b"", answer).measured
    assert shown.isprintable()
    assert len(shown) < 100
