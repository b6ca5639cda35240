"""LiteLLM: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For Anthropic itself leave out `api_base` and set ANTHROPIC_API_KEY.
"""

import sys

import litellm

from streamkeep.adapters.litellm import durable_handler, resume_completion
from streamkeep.client import NothingToResume

# Else it prints advice between the pieces of the answer whenever there is nothing to resume.
litellm.suppress_debug_info = True


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    handler = durable_handler(proxy_url, session="litellm-story")
    model = "anthropic/demo"
    try:
        chunks = resume_completion(model, "litellm-story", client=handler, api_key="demo")
    except NothingToResume:
        story = [{"role": "user", "content": "Tell me a story"}]
        chunks = litellm.completion(
            model, story, client=handler, api_base=vendor_url, api_key="demo", stream=True, max_tokens=1000
        )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    handler.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
