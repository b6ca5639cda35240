"""The `anthropic` package: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For Anthropic itself leave out `base_url` and set ANTHROPIC_API_KEY.
"""

import sys

from streamkeep.adapters.anthropic import durable_anthropic, resume_message
from streamkeep.client import NothingToResume


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    with durable_anthropic(proxy_url, session="anthropic-story", base_url=vendor_url, api_key="demo") as client:
        try:
            events = resume_message(client, "anthropic-story")
        except NothingToResume:
            events = client.messages.create(
                model="demo",
                max_tokens=1000,
                messages=[{"role": "user", "content": "Tell me a story"}],
                stream=True,
            )
        for event in events:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                print(event.delta.text, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
