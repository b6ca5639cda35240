"""The `openai` package: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For OpenAI itself leave out `base_url` and set OPENAI_API_KEY.
"""

import sys

from streamkeep.adapters.openai import durable_openai, resume_chat
from streamkeep.client import NothingToResume


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    with durable_openai(proxy_url, session="openai-story", base_url=f"{vendor_url}/v1", api_key="demo") as client:
        try:
            chunks = resume_chat(client, "openai-story")
        except NothingToResume:
            story = "Tell me a story"
            chunks = client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": story}], stream=True
            )
        for chunk in chunks:
            print(chunk.choices[0].delta.content or "", end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
