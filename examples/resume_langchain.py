"""LangChain: kill this program in the middle of the answer and run it again; the answer is there, whole.

Start `make run` and `make vendor` first. For OpenAI itself leave out `base_url` and set OPENAI_API_KEY.
"""

import sys
from itertools import chain

from langchain_openai import ChatOpenAI

from streamkeep.adapters.httpx import durable_httpx
from streamkeep.adapters.langchain import resume_stream
from streamkeep.client import NothingToResume


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    with durable_httpx(proxy_url, session="langchain-story") as http:
        model = ChatOpenAI(model="demo", base_url=f"{vendor_url}/v1", api_key=lambda: "demo", http_client=http)
        chunks = resume_stream(model, "langchain-story")
        try:
            chunks = chain([next(chunks)], chunks)
        except NothingToResume:
            chunks = model.stream("Tell me a story")
        for chunk in chunks:
            print(chunk.text, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
