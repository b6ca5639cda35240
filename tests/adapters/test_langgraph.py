"""`streamkeep.adapters.langgraph` with the real package: a graph that is run again asks no model twice."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from streamkeep.adapters.httpx import durable_async_httpx
from streamkeep.adapters.langgraph import call_headers
from streamkeep.client import MemoryStore, Truncated
from tests.adapters.test_langchain import WEATHER, chat_model
from tests.serving import Proxy


class Crash(Exception):
    """What stands for the death of a process in the middle of a node."""


@pytest.fixture
async def http(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    async with durable_async_httpx(proxy.url, store=MemoryStore()) as client:
        yield client


class Graph:
    """A model, its tool if it calls one, and the model again; the first answer is dropped half-way, once."""

    def __init__(self, model: ChatOpenAI, *, tools: bool = False, fault: str | None = None, retries: int = 1) -> None:
        self.model: Any = model.bind_tools([WEATHER]) if tools else model
        self.fault = fault
        self.crashes = 1
        self.tool_runs = 0
        builder = StateGraph(MessagesState)
        builder.add_node("ask", self.ask, retry_policy=RetryPolicy(initial_interval=0, max_attempts=retries))
        builder.add_node("use", self.use)
        builder.set_entry_point("ask").add_conditional_edges("ask", self.goes_on, {True: "use", False: "__end__"})
        builder.add_edge("use", "ask")
        self.compiled: Any = builder.compile(checkpointer=InMemorySaver())

    async def ask(self, state: MessagesState, runtime: Runtime) -> dict[str, Any]:
        headers = call_headers(runtime)
        if self.fault:
            headers["Fake-Fault"] = self.fault
        whole: Any = None
        async for chunk in self.model.astream(state["messages"], extra_headers=headers):
            whole = chunk if whole is None else whole + chunk
            if self.crashes and len(str(whole)) > 300:
                self.crashes -= 1
                raise Crash
        return {"messages": [whole]}

    async def use(self, state: MessagesState) -> dict[str, Any]:
        self.tool_runs += 1
        [called] = self.last(state).tool_calls
        return {"messages": [ToolMessage("It rains.", tool_call_id=called["id"])]}

    def goes_on(self, state: MessagesState) -> bool:
        return bool(self.last(state).tool_calls)

    @staticmethod
    def last(state: MessagesState) -> AIMessage:
        message = state["messages"][-1]
        assert isinstance(message, AIMessage)
        return message


def thread(session: str) -> RunnableConfig:
    return {"configurable": {"thread_id": session}}


async def calls(http: httpx.AsyncClient, vendor: str) -> int:
    async with httpx.AsyncClient() as direct:
        count: int = (await direct.get(f"{vendor}/_fake/calls")).json()["count"]
    return count


@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
async def test_a_graph_that_is_run_again_asks_no_model_twice(
    http: httpx.AsyncClient, vendor: str, session: str, tools: bool
) -> None:
    graph, before = Graph(chat_model(vendor, http_async_client=http), tools=tools), await calls(http, vendor)
    question: Any = {"messages": [("user", "What about the weather?" if tools else "What does the river say?")]}
    with pytest.raises(Crash):
        await graph.compiled.ainvoke(question, thread(session))
    done = await graph.compiled.ainvoke(None, thread(session))
    assert len(done["messages"][-1].text) > 100
    assert (graph.tool_runs, await calls(http, vendor)) == ((1, before + 2) if tools else (0, before + 1))
    # What is asked next in the thread is another call.
    await graph.compiled.ainvoke(question, thread(session))
    assert await calls(http, vendor) > before + 1


async def test_a_node_that_is_repeated_by_its_policy_asks_anew(
    http: httpx.AsyncClient, vendor: str, session: str
) -> None:
    graph, before = Graph(chat_model(vendor, http_async_client=http), fault="truncate@9", retries=3), 0
    graph.crashes, before = 0, await calls(http, vendor)
    with pytest.raises(Truncated):
        await graph.compiled.ainvoke({"messages": [("user", str(uuid.uuid4()))]}, thread(session))
    assert await calls(http, vendor) == before + 3


async def test_a_refusal_is_the_vendors_packages(http: httpx.AsyncClient, vendor: str, session: str) -> None:
    graph = Graph(chat_model(vendor, http_async_client=http), fault="status:429")
    with pytest.raises(openai.RateLimitError):
        await graph.compiled.ainvoke({"messages": [("user", "Hello")]}, thread(session))


async def test_a_graph_without_a_checkpointer_is_told(http: httpx.AsyncClient, vendor: str) -> None:
    graph = Graph(chat_model(vendor, http_async_client=http))
    graph.compiled.checkpointer = None
    with pytest.raises(ValueError, match="checkpointer"):
        await graph.compiled.ainvoke({"messages": [("user", "Hello")]})
