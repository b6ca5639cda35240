"""A workflow that goes on after `kill -9`: each step's result is recorded in a stream, and no step is done twice.

Start `make run` and `make vendor` first, kill this program anywhere, and run it again. What was recorded is not done again. A step that was
under way has a name that stays the same, so its call finds the answer that was begun instead of asking for another.
"""

import sys

import httpx

from streamkeep.adapters.httpx import durable_httpx
from streamkeep.client import DurableStream

STEPS = ("outline", "draft", "title")


def main(
    proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001", name: str = "book"
) -> None:
    record = f"{proxy_url}/v1/stream/workflows/{name}"
    with (
        DurableStream.create(record, content_type="application/json") as recorded,
        durable_httpx(proxy_url, session=f"workflow-{name}", timeout=60) as client,
    ):
        results = {event["step"]: event["result"] for event in recorded.read().json()}
        for number, step in enumerate(STEPS):
            if step not in results:
                result = ask(client, vendor_url, step, "".join(results.values()))
                # The number keeps a second run of this program, beside the first, from recording a step as well.
                recorded.append({"step": step, "result": result}, seq=f"{number:04d}")
                results[step] = result
            print(f"{step}: {results[step][:60]!r}", flush=True)


def ask(client: httpx.Client, vendor_url: str, step: str, before: str) -> str:
    """One step: a call that is made once, and found again by the name of its step."""
    question = {"model": "demo", "messages": [{"role": "user", "content": f"Write the {step} of: {before}"}]}
    answer = client.post(f"{vendor_url}/v1/chat/completions", json=question, headers={"X-Request-ID": step})
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main(*sys.argv[1:])
