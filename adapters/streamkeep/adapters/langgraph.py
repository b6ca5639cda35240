"""LangGraph, package `langgraph`: model calls of a graph that are made once, whatever becomes of the process that runs it.

A graph with a checkpointer runs a node again when its process died in it, or when somebody goes on after an error. What the node
asked a model was asked already; named by the node's task, the same question finds the same answer, from its first chunk on.
The models are those of any package over a durable client.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime


def call_headers(runtime: Runtime[Any], name: str = "model") -> dict[str, str]:
    """Headers for one call of a node, given to the model as `extra_headers`. `name` tells several calls of a node apart.

    The session is the graph's thread. A node that is repeated by its retry policy asks anew each time.

    Raises:
        ValueError: the graph has no checkpointer, so that nothing would know the call again.
    """
    info = runtime.execution_info
    if info is None or info.thread_id is None:
        raise ValueError("calls are made once in graphs with a checkpointer, under a thread_id")
    attempt = "" if info.node_attempt == 1 else f".{info.node_attempt}"
    return {"X-Session-ID": info.thread_id, "X-Request-ID": f"{info.task_id}.{name}{attempt}"}
