"""The fake vendor: the real SDKs understand it, its faults are what they say, and it remembers what it saw."""

from __future__ import annotations

import gzip
import hashlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

QUESTION = "What does the river say?"
TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
}
FAST = {"Fake-Rate": "0", "Fake-Tokens": "12"}


@pytest.fixture
def http(vendor: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=vendor, timeout=20, headers=FAST) as client:
        client.delete("/_fake/calls")
        yield client


@pytest.fixture
def gpt(vendor: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{vendor}/v1", api_key="any", default_headers=FAST, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(vendor: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=vendor, api_key="any", default_headers=FAST, max_retries=0) as client:
        yield client


def ask(**more: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": QUESTION}], **more}


def calls(http: httpx.Client, key: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/_fake/calls", params={"key": key} if key else {}).json()["calls"]
    return found


def wait_for_state(http: httpx.Client, key: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = calls(http, key)
        if found and found[0]["state"] == state:
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"not {state}: {calls(http, key)}")


# The SDKs


def test_openai_chat_stream_says_what_the_whole_answer_says(gpt: openai.OpenAI) -> None:
    whole = gpt.chat.completions.create(**ask())
    chunks = list(gpt.chat.completions.create(**ask(), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert {chunk.id for chunk in chunks} == {whole.id}


def test_openai_completion_stream_says_what_the_whole_answer_says(gpt: openai.OpenAI) -> None:
    whole = gpt.completions.create(model="m", prompt=QUESTION, max_tokens=5)
    chunks = list(gpt.completions.create(model="m", prompt=QUESTION, max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_openai_response_stream_ends_with_the_whole_answer(gpt: openai.OpenAI) -> None:
    whole = gpt.responses.create(model="m", input=QUESTION)
    with gpt.responses.stream(model="m", input=QUESTION) as stream:
        numbers = [event.sequence_number for event in stream if hasattr(event, "sequence_number")]
        final = stream.get_final_response()
    assert (final.id, final.output_text, final.usage) == (whole.id, whole.output_text, whole.usage)
    assert whole.status == "completed"
    assert numbers == sorted(set(numbers))


def test_openai_response_cut_by_its_limit_is_incomplete(gpt: openai.OpenAI) -> None:
    events = list(gpt.responses.create(model="m", input=QUESTION, max_output_tokens=5, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text != ""


def test_anthropic_stream_says_what_the_whole_answer_says(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**ask(max_tokens=100))
    with claude.messages.stream(**ask(max_tokens=100)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.to_dict() == whole.to_dict()
    assert whole.stop_reason == "end_turn"
    assert claude.messages.create(**ask(max_tokens=3)).stop_reason == "max_tokens"


async def test_async_sdks_are_answered_too(vendor: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{vendor}/v1", api_key="any", default_headers=FAST) as gpt:
        chunks = [chunk async for chunk in await gpt.chat.completions.create(**ask(), stream=True)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    async with (
        anthropic.AsyncAnthropic(base_url=vendor, api_key="any", default_headers=FAST) as claude,
        claude.messages.stream(**ask(max_tokens=100)) as stream,
    ):
        assert (await stream.get_final_message()).usage.output_tokens == 12


def test_openai_chat_calls_a_tool_when_asked(gpt: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
    with gpt.chat.completions.stream(**ask(tools=tools, tool_choice="required")) as stream:
        final = stream.get_final_completion()
    whole = gpt.chat.completions.create(**ask(tools=tools, tool_choice="required"))
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].id == whole.choices[0].message.tool_calls[0].id
    assert gpt.chat.completions.create(**ask(tools=tools)).choices[0].finish_reason == "stop"


def test_openai_response_calls_a_tool_when_asked(gpt: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": TOOL, "strict": False}]
    with gpt.responses.stream(model="m", input="Tell me the weather", tools=tools) as stream:
        call = stream.get_final_response().output[0]
    assert call.type == "function_call"
    assert call.name == "weather"
    assert set(re.findall(r'"(\w+)":', call.arguments)) == {"city", "days", "unit"}


def test_anthropic_calls_a_tool_when_asked_and_speaks_after_its_result(claude: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "weather", "input_schema": TOOL}]
    question: Any = {"role": "user", "content": "Tell me the weather"}
    with claude.messages.stream(model="m", max_tokens=100, messages=[question], tools=tools) as stream:
        call = stream.get_final_message()
    assert call.stop_reason == "tool_use"
    assert call.content[0].type == "tool_use"
    assert set(call.content[0].input) == {"city", "days", "unit"}
    result: Any = [{"type": "tool_result", "tool_use_id": call.content[0].id, "content": "weather: fine"}]
    said: Any = [question, {"role": "assistant", "content": call.content}, {"role": "user", "content": result}]
    assert claude.messages.create(model="m", max_tokens=100, messages=said, tools=tools).stop_reason == "end_turn"


def test_headers_are_like_the_vendors(http: httpx.Client) -> None:
    chat = http.post("/v1/chat/completions", json=ask()).headers
    assert chat["x-request-id"].startswith("req_")
    assert {"x-ratelimit-remaining-requests", "openai-processing-ms"} <= set(chat)
    message = http.post("/v1/messages", json=ask(max_tokens=9)).headers
    assert message["request-id"].startswith("req_")
    assert "anthropic-ratelimit-requests-remaining" in message


# What it says, and what it remembers


def test_equal_requests_get_equal_bytes(http: httpx.Client) -> None:
    first, again = (http.post("/v1/chat/completions", json=ask(stream=True)).content for _ in range(2))
    other = http.post("/v1/chat/completions", json=ask(stream=True), headers={"Fake-Seed": "2"}).content
    assert first == again != other
    assert first.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_calls_are_recorded(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=ask(stream=True, max_tokens=99), headers={"Fake-Key": "seen", "Authorization": "x"})
    (call,) = calls(http, "seen")
    assert call["id"] == answer.headers.get("x-request-id", answer.headers.get("request-id"))
    assert (call["method"], call["path"], call["status"]) == ("POST", path, 200)
    assert (call["state"], call["aborted"], call["tokens"]) == ("complete", False, 12)
    assert (call["bytes"], call["sha256"]) == (len(answer.content), hashlib.sha256(answer.content).hexdigest())
    assert call["headers"]["authorization"] == "x"
    assert http.get("/_fake/calls").json()["count"] == 1


def test_wishes_come_by_query_and_metadata_too(http: httpx.Client) -> None:
    del http.headers["Fake-Tokens"]
    by_query = http.post("/v1/chat/completions?fake-tokens=3", json=ask())
    by_metadata = http.post("/v1/chat/completions", json=ask(metadata={"fake-tokens": 4}))
    assert by_query.json()["usage"]["completion_tokens"] == 3
    assert by_metadata.json()["usage"]["completion_tokens"] == 4


def test_split_changes_pieces_and_no_bytes(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=ask(stream=True)).content
    with http.stream("POST", "/v1/chat/completions", json=ask(stream=True), headers={"Fake-Split": "1"}) as answer:
        assert b"".join(answer.iter_raw()) == whole


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b"{"),
        ("/v1/chat/completions", b'{"model":"m"}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[]}'),
        ("/v1/messages", b'{"model":"m","messages":[]}'),
        ("/v1/bytes?n=-1", None),
        ("/v1/models?fake-fault=unheard-of", None),
        ("/v1/models?fake-first-delay=nan", None),
        ("/v1/models?fake-colour=red", None),
    ],
)
def test_nonsense_is_refused_in_the_vendors_form(http: httpx.Client, path: str, body: bytes | None) -> None:
    answer = http.get(path) if body is None else http.post(path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert answer.json().get("type", "error") == "error"


@pytest.mark.parametrize("query", ["", "&chunked=1", "&encoding=gzip", "&chunk=7", "&type=image/png"])
def test_bytes_are_given_as_asked(http: httpx.Client, query: str) -> None:
    plain = http.get("/v1/bytes?n=5000&seed=3").content
    with http.stream("GET", f"/v1/bytes?n=5000&seed=3{query}") as answer:
        raw = b"".join(answer.iter_raw())
    assert len(plain) == 5000
    assert (gzip.decompress(raw) if "gzip" in query else raw) == plain
    assert ("content-length" in answer.headers) is ("chunked" not in query)
    assert http.head("/v1/bytes?n=10").headers["content-length"] == "10"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_echo_takes_any_method(http: httpx.Client, method: str) -> None:
    sent = b"" if method == "GET" else b"abc"
    answer = http.request(method, "/v1/echo", content=sent).json()
    assert answer == {"method": method, "bytes": len(sent), "sha256": hashlib.sha256(sent).hexdigest()}


# Faults


PATHS = [("/v1/chat/completions", ask(stream=True)), ("/v1/messages", ask(stream=True, max_tokens=99))]
PATHS += [("/v1/responses", {"model": "m", "input": QUESTION, "stream": True})]


def read_until_reset(http: httpx.Client, path: str, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    received = bytearray()

    def read(answer: httpx.Response) -> None:
        for piece in answer.iter_raw():
            received.extend(piece)

    with http.stream("POST", path, json=body, headers=headers) as answer, pytest.raises(httpx.ReadError, match="reset"):
        read(answer)
    return bytes(received)


def tokens_in(body: bytes) -> int:
    return len(re.findall(rb'"content":"[^"]+"|text_delta|output_text\.delta"', body))


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_cut_resets_the_connection_after_the_tokens(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    received = read_until_reset(http, path, body, {"Fake-Fault": "cut@4", "Fake-Key": "cut"})
    assert tokens_in(received) == 4
    call = wait_for_state(http, "cut", "broken")
    assert (call["tokens"], call["bytes"], call["aborted"]) == (4, len(received), False)


def test_cut_may_come_after_the_end_mark(http: httpx.Client) -> None:
    received = read_until_reset(http, "/v1/chat/completions", ask(stream=True), {"Fake-Fault": "cut@end"})
    assert received.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_truncated_stream_is_the_start_of_the_whole(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    whole = http.post(path, json=body).content
    part = http.post(path, json=body, headers={"Fake-Fault": "truncate@5"}).content
    assert whole.startswith(part)
    assert tokens_in(part) == 5


@pytest.mark.parametrize("fault", ["stall@2", "pings@2", "silent"])
def test_going_of_the_client_is_seen_in_a_silence(http: httpx.Client, vendor: str, fault: str) -> None:
    asked = httpx.Request("POST", f"{vendor}/v1/messages", json=ask(stream=True, max_tokens=99))
    lines = [f"{name}: {value}" for name, value in {**FAST, **asked.headers, "Fake-Fault": fault}.items()]
    with socket.create_connection(httpx.URL(vendor).netloc.decode().split(":")) as client:  # type: ignore[arg-type]
        head = "\r\n".join(["POST /v1/messages HTTP/1.1", *lines, f"Fake-Key: {fault}", "", ""])
        client.sendall(head.encode() + asked.read())
        wait_for_state(http, fault, "running")
        if fault != "silent":
            while b"text_delta" not in client.recv(65536):
                pass
    assert wait_for_state(http, fault, "aborted")["aborted"] is True


@pytest.mark.parametrize(("fault", "status", "length"), [("empty", 200, "0"), ("no-content", 204, None)])
def test_answer_may_be_empty(http: httpx.Client, fault: str, status: int, length: str | None) -> None:
    answer = http.post("/v1/chat/completions", json=ask(stream=True), headers={"Fake-Fault": fault})
    assert (answer.status_code, answer.content, answer.headers.get("content-length")) == (status, b"", length)


def test_dropped_request_gets_no_answer(http: httpx.Client) -> None:
    with pytest.raises(httpx.ReadError, match="reset"):
        http.post("/v1/echo", headers={"Fake-Fault": "drop"})


def test_encoded_answer_is_the_plain_one_in_gzip(http: httpx.Client) -> None:
    plain = http.post("/v1/chat/completions", json=ask(stream=True)).content
    with http.stream("POST", "/v1/chat/completions", json=ask(stream=True), headers={"Fake-Fault": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(b"".join(answer.iter_raw())) == plain


def test_marks_can_be_left_out(http: httpx.Client) -> None:
    texts = {
        fault: http.post("/v1/chat/completions", json=ask(stream=True), headers={"Fake-Fault": fault}).text
        for fault in ("no-done", "no-finish")
    }
    assert "[DONE]" not in texts["no-done"]
    assert '"finish_reason":"stop"' in texts["no-done"]
    assert "[DONE]" in texts["no-finish"]
    assert '"finish_reason":"stop"' not in texts["no-finish"]


def test_sdks_raise_errors_inside_the_stream(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.APIError, match="broke"):
        list(gpt.chat.completions.create(**ask(stream=True), extra_headers={"Fake-Fault": "error@3"}))
    events = list(gpt.responses.create(model="m", input="x", stream=True, extra_headers={"Fake-Fault": "error@3"}))
    assert events[-1].type == "response.failed"
    assert events[-1].sequence_number == len(events) - 1
    with pytest.raises(anthropic.APIStatusError, match="broke"):
        list(claude.messages.create(**ask(stream=True, max_tokens=9), extra_headers={"Fake-Fault": "error@3"}))


def test_sdks_understand_refusals(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.RateLimitError) as limited:
        gpt.chat.completions.create(**ask(), extra_headers={"Fake-Fault": "status:429", "Fake-Retry-After": "7"})
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        claude.messages.create(**ask(max_tokens=9), extra_headers={"Fake-Fault": "status:529"})
    assert overloaded.value.status_code == 529


def test_refusal_may_be_for_the_first_calls_only(http: httpx.Client) -> None:
    fault = {"Fake-Fault": "status:503x2"}
    statuses = [http.post("/v1/chat/completions", json=ask(), headers=fault).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


@pytest.mark.parametrize("fault", ["cut", "truncate", "error"])
def test_whole_answers_break_too(http: httpx.Client, fault: str) -> None:
    def post() -> httpx.Response:
        return http.post("/v1/chat/completions", json=ask(), headers={"Fake-Fault": fault})

    if fault == "cut":
        with pytest.raises(httpx.ReadError, match="reset"):
            post()
    elif fault == "truncate":
        assert post().text.startswith('{"id":')
        assert not post().text.endswith("}")
    else:
        assert (post().status_code, post().json()["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_until_a_signal(number: signal.Signals) -> None:
    program = "import sys; from streamkeep.proxy.vendor import vendor_command; sys.exit(vendor_command(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--port", "0", "--tokens", "5", "--rate", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        answer = httpx.post(f"{found[0]}/v1/chat/completions", json=ask())
        assert answer.json()["usage"]["completion_tokens"] == 5
        fault = {"Fake-Fault": "stall@2"}
        with httpx.stream("POST", f"{found[0]}/v1/chat/completions", json=ask(stream=True), headers=fault) as stalled:
            next(stalled.iter_raw())
            process.send_signal(number)
            assert process.wait(timeout=20) == 0
        assert process.communicate()[1] == ""
