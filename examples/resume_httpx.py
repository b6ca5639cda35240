"""Plain `httpx`: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first.
"""

import sys
from contextlib import ExitStack

from streamkeep.adapters.httpx import durable_httpx, resume_httpx
from streamkeep.client import NothingToResume


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    question = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Tell me a story"}]}
    with durable_httpx(proxy_url, session="httpx-story", timeout=60) as client, ExitStack() as opened:
        try:
            response = opened.enter_context(resume_httpx(client, "httpx-story"))
        except NothingToResume:
            asked = client.stream("POST", f"{vendor_url}/v1/chat/completions", json=question)
            response = opened.enter_context(asked)
        for line in response.iter_lines():
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
