"""LangGraph: kill this program in the middle of the answer and run it again; the graph goes on, and the answer is there, whole.

Start `make run` and `make vendor` first. For OpenAI itself leave out `base_url` and set OPENAI_API_KEY.
"""

import sys
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.runtime import Runtime
from platformdirs import user_state_path

from streamkeep.adapters.httpx import durable_httpx
from streamkeep.adapters.langgraph import call_headers


def main(proxy_url: str = "http://127.0.0.1:4000", vendor_url: str = "http://127.0.0.1:4001") -> None:
    checkpoints = user_state_path("streamkeep", ensure_exists=True) / "langgraph-story.sqlite3"
    with durable_httpx(proxy_url) as http, SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        model = ChatOpenAI(model="demo", base_url=f"{vendor_url}/v1", api_key=lambda: "demo", http_client=http)

        def teller(state: MessagesState, runtime: Runtime) -> dict[str, Any]:
            headers: Any = call_headers(runtime)
            return {"messages": [model.invoke(state["messages"], extra_headers=headers)]}

        builder = StateGraph(MessagesState).add_node(teller).set_entry_point("teller").set_finish_point("teller")
        graph = builder.compile(checkpointer=saver)
        thread: RunnableConfig = {"configurable": {"thread_id": "langgraph-story"}}
        is_under_way = bool(graph.get_state(thread).next)
        question: Any = None if is_under_way else {"messages": [("user", "Tell me a story")]}
        pieces: Any = graph.stream(question, thread, stream_mode="messages", durability="sync")
        for message, _ in pieces:
            print(message.text, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
