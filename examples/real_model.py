"""A real model's answer survives the death of the process that asked for it. Run it with `make demo-llm`.

A small model is started on this machine, and the proxy in front of it. One process asks through the `openai` package and
is killed with SIGKILL in the middle of the answer. Nobody reads for a while; the model goes on. Then another process
takes the answer up again, and at the end everything is compared: what was delivered, what is on record, and how often
the model was asked.

The pieces that matter for a program of your own are `ask` and `resume`: they differ in one header.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

from streamkeep.client import DurableTransport, SQLiteStore
from streamkeep.demos import local_model

SESSION = "story"
PROMPT = "Once upon a time in a small village by the sea there lived an old fisherman who"


# The two programs that a user would write


def ask(proxy_url: str, model_url: str, store: Path, tokens: int) -> None:
    """Stream an answer through the proxy, as always; the store remembers that it is being read."""
    stream_answer(proxy_url, model_url, store, tokens, {"X-Session-ID": SESSION})


def resume(proxy_url: str, model_url: str, store: Path, tokens: int) -> None:
    """The same call in another process, where it does not reach the model: the answer comes from the record."""
    stream_answer(proxy_url, model_url, store, tokens, {"X-Session-ID": SESSION, "X-Resume-Active-Generation": "true"})


def stream_answer(proxy_url: str, model_url: str, store: Path, tokens: int, headers: Mapping[str, str]) -> None:
    transport = DurableTransport(proxy_url, store=SQLiteStore(store))
    with openai.OpenAI(
        base_url=f"{model_url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(transport=transport)
    ) as client:
        chunks = client.chat.completions.create(
            model=local_model.NAME,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=tokens,
            temperature=0.9,
            seed=7,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
            # So that the answer has its full length, whatever the model would like.
            extra_body={"ignore_eos": True},
        )
        for chunk in chunks:
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            # One line of JSON for each chunk tells the process that watches how far this one has come.
            print(json.dumps([text, chunks.response.num_bytes_downloaded]), flush=True)


# What runs them, kills one and compares


def run(cache_dir: Path, tokens: int, kill_after: int) -> int:
    with tempfile.TemporaryDirectory(prefix="streamkeep-demo-") as scratch, started_model(cache_dir) as model_url:
        print(f"model     {local_model.NAME} answers at {model_url}")
        with started_proxy(model_url, Path(scratch)) as proxy_url:
            print(f"proxy     {proxy_url}, with a Postgres of its own\n")
            role_arguments = [proxy_url, model_url, str(Path(scratch) / "client.sqlite3"), str(tokens)]

            print(f"{PROMPT}", end="")
            first, first_bytes = watch("ask", role_arguments, kill_after)
            print(f"\n\n*** the asking process was killed (SIGKILL) after {kill_after} events and {first_bytes} bytes")
            time.sleep(1)
            print("*** a second later another process resumes:\n")
            print(f"{PROMPT}", end="")
            second, second_bytes = watch("resume", role_arguments, None)

            print("\n\n*** the result")
            return 0 if report(proxy_url, model_url, first, first_bytes, second, second_bytes) else 1


def watch(role: str, arguments: list[str], kill_after: int | None) -> tuple[str, int]:
    """Run one of the two programs and show its text; kill it after so many chunks. Its text and bytes so far."""
    text, received = "", 0
    with subprocess.Popen([sys.executable, __file__, role, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout, 1):
            piece, received = json.loads(line)
            text += piece
            print(piece, end="", flush=True)
            if count == kill_after:
                process.send_signal(signal.SIGKILL)
                break
        # What the pipe still held was delivered too; a line may be cut off by the kill.
        for line in process.stdout:
            if line.endswith("\n"):
                piece, received = json.loads(line)
                text += piece
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{role} failed")
    return text, received


def report(proxy_url: str, model_url: str, first: str, first_bytes: int, second: str, second_bytes: int) -> bool:
    """Compare what was delivered with the record, and print it. Whether all is as it should be."""
    with httpx.Client(timeout=30) as http:
        (generation,) = http.get(f"{proxy_url}/api/{SESSION}/active").json()
        whole = read_all(http, generation["streamUrl"])
        (ending,) = http.get(generation["controlUrl"]).json()
        metrics = http.get(f"{model_url}/metrics").text
    recorded = text_of(whole)
    made = int(re.findall(r"^llamacpp:tokens_predicted_total (\d+)", metrics, re.MULTILINE)[0])
    read = int(re.findall(r"^llamacpp:prompt_tokens_total (\d+)", metrics, re.MULTILINE)[0])
    usage = ending["usage"]
    checks = {
        f"the record has {len(whole)} bytes, and the resumed process got as many": second_bytes == len(whole),
        f"of these the killed process had {first_bytes}; {len(whole) - first_bytes} came after its death": (
            0 < first_bytes < len(whole)
        ),
        "the record's SHA-256 is the one in its terminal event": ending["sha256"] == hashlib.sha256(whole).hexdigest(),
        f"the terminal event is {ending['event']} ({ending['code']})": ending["event"] == "done",
        "the resumed process' text is the record's": second == recorded,
        "the killed process' text is the start of it": len(first) > 0 and recorded.startswith(first),
        f"the model read {read} tokens and made {made}, for the one answer's {usage['inputTokens']} and "
        f"{usage['outputTokens']}: it was asked once": (read, made) == (usage["inputTokens"], usage["outputTokens"]),
    }
    for claim, is_true in checks.items():
        print(f"  {'yes' if is_true else 'NO '}  {claim}")
    return all(checks.values())


def read_all(http: httpx.Client, url: str) -> bytes:
    """A recorded stream from its first byte to its end, by its URL."""
    whole, offset = b"", "-1"
    while True:
        answer = http.get(url, params={**dict(httpx.URL(url).params), "offset": offset}).raise_for_status()
        whole += answer.content
        offset = answer.headers["Stream-Next-Offset"]
        if answer.headers.get("Stream-Closed") == "true":
            return whole


def text_of(body: bytes) -> str:
    """The text in a recorded chat stream."""
    data = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for item in data for choice in json.loads(item)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@contextmanager
def started_model(cache_dir: Path) -> Iterator[str]:
    print("model     starting (its file is assembled once, 250 MB)")
    command = [sys.executable, "-m", "streamkeep.demos.local_model", str(cache_dir), local_model.CONTINUING]
    with started(command, {}) as url:
        yield url


@contextmanager
def started_proxy(model_url: str, scratch: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0", "--data-dir", str(scratch / "data")]
    # The glob spells a loopback host, which is what admits it.
    with started(command, {"STREAMKEEP_ALLOW": f"{model_url}/**"}) as url:
        yield url


@contextmanager
def started(command: list[str], environ: Mapping[str, str]) -> Iterator[str]:
    """A server in a process of its own, stopped at the end. It prints its URL when it is ready."""
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, env={**env, **environ}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            found = next((match for line in process.stdout if (match := re.search(r"http://[0-9.]+:\d+", line))), None)
            if found is None:
                log.seek(0)
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read().decode(errors='replace')}")
            yield found[0]
        finally:
            process.terminate()


def main() -> int:
    roles = {"ask": ask, "resume": resume}
    arguments = sys.argv[1:]
    if arguments and arguments[0] in roles:
        proxy_url, model_url, store, tokens = arguments[1:]
        roles[arguments[0]](proxy_url, model_url, Path(store), int(tokens))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=Path("build/model"), help="where the model's file is put")
    parser.add_argument("--tokens", type=int, default=300, help="length of the answer")
    parser.add_argument("--kill-after", type=int, default=50, help="events that the first process gets to see")
    options = parser.parse_args(arguments)
    try:
        return run(options.cache_dir, options.tokens, options.kill_after)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
