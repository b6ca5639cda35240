"""Chats on a real server: what everybody in a session sees, and what one of them sees while servers and wires fail."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import pytest

from streamkeep.client import AsyncDurableStream, ConnectionFailed, Patience, ServerError, SessionNotFound
from streamkeep.client.sessions import (
    AgentSpec,
    AsyncDurableChat,
    AsyncSessions,
    DurableChat,
    Message,
    SessionCache,
    SessionFold,
    Sessions,
)
from streamkeep.storage import MemoryStore
from tests.agents import SSE, answer, sse
from tests.client.both import Kind
from tests.client.streaming import call, items, transport
from tests.cutting import Wire, wire_to
from tests.serving import CERTIFICATES, Proxy, served_process, serving
from tests.sessions.session_rows import Author as Agent
from tests.sessions.session_rows import Row
from tests.sessions.test_fold import seen
from tests.upstream import Exchange, upstream

Chat = DurableChat | AsyncDurableChat

SECONDS = 60.0
QUICK = Patience(send_seconds=60, silence_seconds=60, pause_seconds=0.05)
SECRET = "a secret of 32 characters or more"
CALLED = Agent("a1", actor_id="gpt")
QUESTION: list[Row] = [
    CALLED.content("Let me see. ", "Let me see. "),
    CALLED.call("call", '{"city": "Lodz"}'),
    CALLED.call("danger", "{}", name="danger"),
    CALLED.ask("danger", "ask"),
    CALLED.row("tool-input-available", toolCallId="call", toolName="weather", input={"city": "Lodz"}),
    CALLED.done("tool_calls"),
]


class Party:
    """Makes chats of one kind on one session."""

    def __init__(self, kind: Kind, url: str, session_id: str) -> None:
        self.kind = kind
        self.url = url
        self.session_id = session_id

    @asynccontextmanager
    async def joined(
        self, actor_id: str | None = "ann", *, url: str | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """A connected chat, closed at the end."""
        chat = self.made(actor_id, url=url, **options)
        await call(chat.connect)
        try:
            yield chat
        finally:
            await call(chat.close)

    def made(self, actor_id: str | None = "ann", *, url: str | None = None, **options: Any) -> Any:
        make: Any = DurableChat if self.kind == "sync" else AsyncDurableChat
        chosen = {"http": transport(self.kind), "patience": QUICK, "name": None, **options}
        return make(url or self.url, self.session_id, actor_id=actor_id, **chosen)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncDurableStream]:
        """The session's stream, to which anybody may write what an agent would."""
        http = httpx.AsyncHTTPTransport(verify=CERTIFICATES)
        async with AsyncDurableStream(f"{self.url}/v1/stream/sessions/{self.session_id}", http=http) as handle:
            yield handle

    async def write(self, *rows: Row) -> None:
        async with self.stream() as handle:
            for row in rows:
                await handle.append(row)

    async def fold(self) -> SessionFold:
        """What the stream says, read from its start."""
        async with self.stream() as handle:
            data = await handle.read()
        fold = SessionFold()
        fold.apply(data.json(), data.offset)
        return fold


@pytest.fixture
def party(kind: Kind, proxy: Proxy, session: str) -> Party:
    return Party(kind, proxy.url, session)


async def until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not is_true():
            await asyncio.sleep(0.005)


def texts(chat: Chat) -> list[str]:
    return [message.text for message in chat.messages]


def present(chat: Chat, what: str) -> dict[str, object]:
    return {one.actor_id: getattr(one, what) for one in chat.presence}


async def test_all_in_a_session_see_the_same(party: Party) -> None:
    async with party.joined("ann", name="Ann") as ann, party.joined("bob") as bob:
        sent = await call(ann.send_message, "hello")
        assert (sent.turns, texts(ann)) == ((), ["hello"]), "shown, whether or not the stream has brought it"
        await call(ann.wait_until_confirmed, sent.message_id, timeout=SECONDS)
        await until(lambda: texts(bob) == ["hello"])
        await call(bob.append, "I say so", role="system", message_id="m-2")
        await until(lambda: texts(ann) == ["hello", "I say so"])
        for chat in (ann, bob):
            await call(chat.wait_until_idle, timeout=SECONDS)
            assert chat.messages == (await party.fold()).messages
            assert [(one.actor_id, one.actor_name, one.role) for one in chat.messages] == [
                ("ann", "Ann", "user"),
                ("bob", None, "system"),
            ]
            assert (chat.pending_writes, chat.is_loading, chat.connection_status) == ((), False, "connected")
        assert (ann.statistics.message_count, ann.message("m-2").text, ann.message("m-3")) == (2, "I say so", None)


async def test_the_same_message_is_stored_once_and_another_one_under_its_id_is_taken_back(party: Party) -> None:
    errors: list[Exception] = []
    async with party.joined(on_error=errors.append) as chat:
        for _ in range(2):
            assert (await call(chat.send_message, "hello", message_id="m")).message_id == "m"
        with pytest.raises(ServerError) as refused:
            await call(chat.send_message, "something else", message_id="m")
        assert (refused.value.status, refused.value.code) == (409, "message_exists")
        await call(chat.wait_until_idle, timeout=SECONDS)
        assert (texts(chat), chat.pending_writes, chat.error) == (["hello"], (), refused.value)
        await until(lambda: errors == [refused.value])
        with pytest.raises(ServerError):
            await call(chat.send_message, "", message_id="empty")
        assert (texts(chat), chat.message("empty")) == (["hello"], None)
        await call(chat.send_message, "again")
        assert chat.error is None


async def test_callbacks_tell_of_each_message_and_each_answer_once(party: Party) -> None:
    """And of what was there before they tell nothing; they may use the chat."""
    came: list[str] = []
    finished: list[str] = []
    changed: list[bool] = []
    async with party.joined() as other:
        await call(other.send_message, "old")

    async def reply(message: Message) -> None:
        finished.append(message.text)
        if len(finished) == 1:
            await chat.send_message(f"I read {message.text}")
            await chat.wait_until_confirmed(chat.messages[-1].id, timeout=SECONDS)

    def reply_now(message: Message) -> None:
        finished.append(message.text)
        if len(finished) == 1:
            chat.send_message(f"I read {message.text}")
            chat.wait_until_confirmed(chat.messages[-1].id, timeout=SECONDS)

    def fail(message: Message) -> None:
        came.append(message.text)
        raise ValueError("mine")

    errors: list[Exception] = []
    chat: Any
    async with party.joined(
        on_message=fail,
        on_finish=reply if party.kind == "async" else reply_now,
        on_change=lambda changes: changed.append(changes.status),
        on_error=errors.append,
    ) as chat:
        answer = Agent("a", actor_id="gpt")
        await party.write(answer.content("one ", "one "))
        await until(lambda: came == ["one "])
        assert chat.is_loading
        await party.write(answer.content("word", "one word"), answer.done())
        await until(lambda: came == ["one ", "I read one word"])
        await party.write(answer.row("message-end", reason="done"))
        await call(chat.wait_until_idle, timeout=SECONDS)
        await until(lambda: len(errors) == 2)
        assert (finished, [str(error) for error in errors]) == (["one word"], ["mine", "mine"])
        assert texts(chat) == ["old", "one word", "I read one word"]
    assert changed


@pytest.mark.parametrize("fails", [False, True])
async def test_a_tool_runs_once_and_its_result_is_everybodys(party: Party, fails: bool) -> None:
    ran: list[str] = []

    def weather(city: str) -> dict[str, int]:
        ran.append(city)
        if fails:
            raise LookupError("no such city")
        return {"celsius": 21}

    async def weather_later(city: str) -> dict[str, int]:
        return weather(city)

    tool = weather if party.kind == "sync" or fails else weather_later
    options: dict[str, Any] = {"tools": {"weather": tool}, "tools_for": "everybody"}
    async with party.joined(**options) as ann, party.joined("bob", tools={"other": print}) as bob:
        await party.write(*QUESTION)
        await until(lambda: bob.tool_calls and bob.tool_calls[0].result is not None)
        [found, _] = bob.tool_calls
        assert found.result is not None
        expected = (None, "LookupError: no such city") if fails else ({"celsius": 21}, None)
        assert (found.result.output, found.result.error, found.result.actor_id) == (*expected, "ann")
        await call(ann.wait_until_idle, timeout=SECONDS)
    async with party.joined(**options) as again:
        assert again.messages == (await party.fold()).messages
    assert ran == ["Lodz"]


async def test_a_tool_that_two_clients_have_has_one_result(party: Party) -> None:
    outputs = iter(range(9))
    options: dict[str, Any] = {"tools": {"weather": lambda city: next(outputs)}, "tools_for": "everybody"}
    async with party.joined(**options) as ann, party.joined("bob", **options) as bob:
        await party.write(*QUESTION)
        await until(lambda: all(chat.tool_calls and chat.tool_calls[0].result for chat in (ann, bob)))
        # One of them is refused, and has the other's result from the stream a little later.
        await until(lambda: not (ann.pending_writes or bob.pending_writes) and ann.messages == bob.messages)
    assert len((await party.fold()).tool_results) == 1


async def test_an_agent_answers_calls_tools_is_stopped_and_asked_again(party: Party) -> None:
    """With the tool run by whoever asked, and by nobody else who has it."""
    ran: list[str] = []
    call_event = {"index": 0, "id": "c1", "function": {"name": "locate", "arguments": '{"city": "Lodz"}'}}

    async def play(exchange: Exchange) -> None:
        match len(server.calls):
            case 1:
                delta, reason = {"tool_calls": [call_event]}, "tool_calls"
                await answer(exchange, {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
            case 3:
                await exchange.head(200, SSE)
                await exchange.chunk(sse({"choices": [{"index": 0, "delta": {"content": "endless "}}]}))
                await exchange.is_gone.wait()
            case number:
                choice = {"index": 0, "delta": {"content": f"answer {number}"}, "finish_reason": "stop"}
                await answer(exchange, {"choices": [choice]})

    def locate(who: str) -> Callable[[str], str]:
        def run(city: str) -> str:
            ran.append(who)
            return "51.8 N"

        return run

    async with upstream(play) as server:
        agent = AgentSpec("gpt", server.url, name="GPT", format="openai")
        async with (
            party.joined(agent=agent, tools={"locate": locate("ann")}) as ann,
            party.joined("bob", tools={"locate": locate("bob")}) as bob,
        ):
            sent = await call(ann.send_message, "Where is it?")
            assert [turn.agent_id for turn in sent.turns] == ["gpt"]
            await until(lambda: texts(bob)[-1:] == ["answer 2"])
            await call(ann.wait_until_idle, timeout=SECONDS)
            await call(ann.send_message, "More!")
            await until(lambda: texts(bob)[-1] == "endless " and ann.is_loading and bob.is_loading)
            await call(bob.stop)
            await until(lambda: bob.messages[-1].ended_by == "stop" and not ann.is_loading)
            [turn] = await call(ann.reload)
            await until(lambda: texts(bob)[-1] == "answer 4" and not bob.is_loading)
            [turn] = await call(ann.regenerate, content="More, please!")
            await until(lambda: bob.message(turn.message_id) is not None and not bob.is_loading)
            for chat in (ann, bob):
                await call(chat.wait_until_idle, timeout=SECONDS)
            await until(lambda: ann.messages == bob.messages)
            assert texts(ann) == ["Where is it?", "", "answer 2", "More, please!", "answer 5"]
            assert ann.messages == (await party.fold()).messages
            assert (ran, len(server.calls)) == (["ann"], 5)
        async with party.joined() as nobody:
            await call(nobody.delete)
        async with party.joined() as new:
            with pytest.raises(ValueError, match="no message"):
                await call(new.reload)


async def test_the_first_answer_to_an_approval_counts(party: Party) -> None:
    async with party.joined() as ann, party.joined("bob") as bob:
        await party.write(*QUESTION)
        await until(lambda: ann.approvals and bob.approvals)
        await call(ann.add_tool_approval_response, "ask", True)
        assert [one.status for one in ann.approvals] == ["approved"]
        with pytest.raises(ServerError) as refused:
            await call(bob.add_tool_approval_response, "ask", False)
        assert refused.value.code == "already_answered"
        await until(lambda: [(one.status, one.responded_by) for one in bob.approvals] == [("approved", "ann")])
        await call(bob.add_tool_result, "danger", error="too dangerous")
        await until(lambda: ann.tool_calls[1].state == "error")
        with pytest.raises(ServerError):
            await call(bob.add_tool_result, "danger", "done after all")
        await until(lambda: not bob.pending_writes)
        assert bob.tool_calls == ann.tool_calls


async def test_a_paused_chat_stands_still_and_goes_on(party: Party) -> None:
    async with party.joined() as ann, party.joined("bob") as bob:
        await call(bob.pause)
        assert (bob.is_paused, bob.connection_status) == (True, "disconnected")
        await call(ann.send_message, "one")
        await call(bob.send_message, "two")
        assert texts(bob) == ["two"]
        bob.resume()
        await until(lambda: texts(bob) == ["one", "two"] and bob.connection_status == "connected")
        await call(bob.disconnect)
        await call(ann.send_message, "three")
        with pytest.raises(ConnectionFailed):
            await call(bob.send_message, "nobody hears me")
        assert (texts(bob), bob.connection_status) == (["one", "two"], "disconnected")
        await call(bob.connect)
        assert texts(bob) == ["one", "two", "three"]


async def test_changes_are_iterated_until_the_chat_is_disconnected(party: Party) -> None:
    async with party.joined() as chat, party.joined("bob") as bob:
        changes = chat.changes()
        [first] = await items(changes, 1)
        assert first.was_reset
        sent = await call(bob.send_message, "hello")
        found: set[str] = set()
        while sent.message_id not in found:
            found.update(*(one.message_ids for one in await items(changes, 1)))
        assert texts(chat) == ["hello"]
        await call(chat.disconnect)
        assert len(await items(changes)) <= 1


async def test_a_session_that_is_deleted_ends_for_everybody(party: Party) -> None:
    errors: list[Exception] = []
    async with party.joined() as ann, party.joined("bob", on_error=errors.append) as bob:
        changes = bob.changes()
        await call(ann.delete)
        with pytest.raises(SessionNotFound):
            await items(changes)
        assert bob.connection_status == "error"
        with pytest.raises(SessionNotFound):
            await call(bob.send_message, "is anybody here?")
        await until(lambda: [type(one) for one in errors] == [SessionNotFound])
        assert bob.messages == ()
    absent = party.made(create=False)
    with pytest.raises(SessionNotFound):
        await call(absent.connect)
    assert (absent.connection_status, type(absent.error)) == ("error", SessionNotFound)
    async with party.joined():
        await call(absent.connect)
        assert absent.connection_status == "connected"
    await call(absent.close)


async def test_presence_is_announced_kept_and_left(party: Party) -> None:
    async with party.joined(name="Ann") as ann:
        async with party.joined("bob") as bob:
            ann.announce()
            bob.typing()
            await until(lambda: present(ann, "typing") == {"ann": False, "bob": True})
            await until(lambda: present(ann, "typing") == {"ann": False, "bob": False})
            ann.announce("away")
            await until(lambda: present(bob, "status") == {"ann": "away", "bob": "online"})
            await call(ann.leave)
            await until(lambda: present(bob, "status") == {"bob": "online"})
        await until(lambda: ann.presence == ())
        assert {one.actor_id: one.name for one in ann.participants} == {"ann": "Ann", "bob": None}


async def test_forks_agents_names_and_exports(party: Party, kind: Kind, proxy: Proxy) -> None:
    async with party.joined() as chat:
        spec = AgentSpec("gpt", "http://127.0.0.1:9/v1", name="GPT", headers={"Authorization": "secret"})
        assert "secret" not in repr(spec)
        await call(chat.register_agents, [spec])
        await until(lambda: [(one.id, one.name) for one in chat.agents] == [("gpt", "GPT")])
        sent = await call(chat.append, "one", role="system")
        await call(chat.append, "two", role="system")
        branch = await call(chat.fork, sent.message_id, name="Branch")
        exported = await call(chat.export)
        assert [message["parts"][0]["content"] for message in exported["messages"]] == ["one", "two"]
        assert "secret" not in str(exported)
        await call(chat.unregister_agent, "gpt")
        await until(lambda: chat.agents == ())
        await call(chat.rename, "Kitchen")
        await until(lambda: chat.session.name == "Kitchen")
    party.session_id = branch
    async with party.joined(create=False) as chat:
        assert (texts(chat), chat.session.forked_from.at_message_id) == (["one"], sent.message_id)
        assert [one.id for one in chat.agents] == ["gpt"]
    sessions: Any = (Sessions if kind == "sync" else AsyncSessions)(proxy.url, http=transport(kind))
    found = await items(sessions.list(search="Branch"))
    assert branch in [one.id for one in found]
    assert (await call(sessions.get, branch)).name == "Branch"
    assert (await call(sessions.rename, branch, "Twig")).name == "Twig"
    other = await call(sessions.fork, branch)
    assert (await call(sessions.compare, branch, other))["sessionId"] == branch
    await call(sessions.create, f"{branch}-new", name="New")
    assert len((await call(sessions.export, branch))["messages"]) == 1
    await call(sessions.delete, branch)
    with pytest.raises(SessionNotFound):
        await call(sessions.get, branch)
    await call(sessions.disconnect)


async def test_more_sessions_than_a_page_holds_are_listed(kind: Kind) -> None:
    async with serving(MemoryStore()) as proxy:
        sessions: Any = (Sessions if kind == "sync" else AsyncSessions)(proxy.url, http=transport(kind))
        for index in range(103):
            await proxy.client.put(f"/v1/sessions/s-{index}")
        assert [one.id for one in await items(sessions.list())] == [f"s-{index}" for index in range(102, -1, -1)]
        await call(sessions.disconnect)


async def test_who_comes_with_a_token_is_its_subject(kind: Kind, session: str) -> None:
    token = jwt.encode({"tenant": "acme", "sub": "user-7", "exp": time.time() + 60}, SECRET, "HS256")
    async with serving(MemoryStore(), jwt_secret=SECRET) as proxy:
        chat = Party(kind, proxy.url, session).made(None, key=lambda: token)
        await call(chat.connect)
        await call(chat.send_message, "it is me")
        assert (chat.actor_id, chat.messages[0].actor_id) == ("user-7", "user-7")
        assert token not in repr(chat)
        await call(chat.close)


async def test_a_long_session_opens_by_its_tail(party: Party, tmp_path: Path) -> None:
    cache = SessionCache(tmp_path / "sessions.sqlite3")
    async with party.joined(cache=cache) as chat:
        for index in range(5):
            await call(chat.send_message, f"message {index}")
        await call(chat.wait_until_idle, timeout=SECONDS)
        offset = chat.offset
    async with party.joined("bob") as other:
        await call(other.send_message, "meanwhile")
    came: list[str] = []
    asked: list[httpx.URL] = []
    chat = party.made(
        cache=cache,
        http=watched(party.kind, lambda request: asked.append(request.url)),
        on_message=lambda message: came.append(message.text),
    )
    await call(chat.connect)
    assert seen(chat._core.state.fold) == seen(await party.fold())
    assert (came, next(url.params["offset"] for url in asked if "/v1/stream/" in url.path)) == ([], offset)
    await call(chat.delete)
    await call(chat.close)
    async with party.joined(cache=cache) as anew:
        assert anew.messages == ()


async def test_what_was_kept_of_another_session_with_this_id_is_not_shown(party: Party, tmp_path: Path) -> None:
    """Nor what was kept for other eyes; what is damaged is read anew."""
    cache = SessionCache(tmp_path / "sessions.sqlite3")
    async with party.joined(cache=cache) as chat:
        await call(chat.send_message, "the old one")
        await call(chat.wait_until_idle, timeout=SECONDS)
    url, access, kept = chat._core._url, chat._core._access.name, chat._core.state.fold.to_json()
    made_at = chat._core._made_at
    assert cache.get(url, access, made_at) is not None
    assert cache.get(url, "another key", made_at) is None
    async with party.joined() as other:
        await call(other.delete)
    async with party.joined(cache=cache) as anew:
        assert anew.messages == ()
        cache.put(url, access, anew._core._made_at, kept | {"version": 0})
    async with party.joined(cache=cache) as anew:
        assert anew.messages == ()
    cache.close()


async def test_an_answer_that_is_lost_is_asked_for_again_and_the_message_is_stored_once(party: Party) -> None:
    async with wire_to(party.url) as wire, party.joined(url=url_of(wire)) as chat:
        for index in range(3):
            wire.cut_after_answer()
            await call(chat.send_message, f"message {index}")
        await call(chat.wait_until_idle, timeout=SECONDS)
        assert wire.cuts >= 3
        assert texts(chat) == ["message 0", "message 1", "message 2"]
        assert chat.messages == (await party.fold()).messages


async def test_silence_leaves_it_open_until_the_stream_tells(party: Party) -> None:
    def lose(response: httpx.Response) -> None:
        if response.status_code == 200 and response.headers["Content-Type"] == "application/json" and has_sent:
            raise httpx.ReadError("the answer is lost")

    has_sent = False
    hasty = Patience(send_seconds=0, pause_seconds=0.05)
    async with party.joined(http=watched(party.kind, answered=lose), patience=hasty) as chat:
        await call(chat.pause)
        has_sent = True
        with pytest.raises(ConnectionFailed):
            await call(chat.send_message, "is it stored?", message_id="m")
        has_sent = False
        assert ([(one.id, one.status) for one in chat.pending_writes], texts(chat)) == (
            [("m", "unconfirmed")],
            ["is it stored?"],
        )
        chat.resume()
        await call(chat.wait_until_confirmed, "m", timeout=SECONDS)
        assert (texts(chat), chat.pending_writes) == (["is it stored?"], ())


async def test_what_was_never_sent_is_sent_again_or_given_up(party: Party) -> None:
    is_offline = True

    def check(request: httpx.Request) -> None:
        if is_offline and request.method == "POST":
            raise httpx.ConnectTimeout("no network")

    hasty = Patience(send_seconds=0, pause_seconds=0.05)
    async with party.joined(http=watched(party.kind, check), patience=hasty) as chat:
        for message_id in ("kept", "given-up"):
            with pytest.raises(ConnectionFailed):
                await call(chat.send_message, message_id, message_id=message_id)
        with pytest.raises(TimeoutError):
            await call(chat.wait_until_confirmed, "kept", timeout=0.05)
        assert [(one.id, one.status) for one in chat.pending_writes] == [
            ("kept", "unconfirmed"),
            ("given-up", "unconfirmed"),
        ]
        chat.discard("given-up")
        assert texts(chat) == ["kept"]
        is_offline = False
        await call(chat.retry, "kept")
        await call(chat.wait_until_idle, timeout=SECONDS)
        assert (texts(chat), [one.id for one in (await party.fold()).messages]) == (["kept"], ["kept"])
        with pytest.raises(KeyError):
            await call(chat.retry, "kept")


@pytest.mark.parametrize("kind", ["sync"])
async def test_a_chat_lives_through_its_servers_death(kind: Kind, database_url: str, session: str) -> None:
    statuses: set[str] = set()
    chat: Any = None
    async with served_process(database_url=database_url) as first:
        party = Party(kind, first.url, session)
        chat = party.made(on_change=lambda changes: statuses.add(chat.connection_status))
        await call(chat.connect)
        await call(chat.send_message, "before")
        await call(chat.wait_until_idle, timeout=SECONDS)
        statuses.clear()
        first.kill()
        await first.exit_code()
    meanwhile = asyncio.create_task(call(chat.send_message, "meanwhile"))
    await until(lambda: "connecting" in statuses and texts(chat) == ["before", "meanwhile"])
    async with served_process(database_url=database_url, port=urlsplit(party.url).port or 0):
        await meanwhile
        await call(chat.wait_until_idle, timeout=SECONDS)
        assert (chat.connection_status, texts(chat)) == ("connected", ["before", "meanwhile"])
        assert chat.messages == (await party.fold()).messages
        await call(chat.close)


def test_both_kinds_of_chats_have_the_same_members() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert public(DurableChat) == public(AsyncDurableChat)


def url_of(wire: Wire) -> str:
    return f"http://127.0.0.1:{wire.port}"


def nothing(seen: object) -> None:
    """Look away."""


def watched(
    kind: Kind,
    asked: Callable[[httpx.Request], object] = nothing,
    *,
    answered: Callable[[httpx.Response], object] = nothing,
) -> Any:
    """A transport that shows each request before it is sent, and each answer before it is given."""
    if kind == "sync":

        class Watched(httpx.HTTPTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                asked(request)
                response = super().handle_request(request)
                try:
                    answered(response)
                except httpx.TransportError:
                    response.close()
                    raise
                return response

        return Watched(verify=CERTIFICATES)

    class WatchedToo(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked(request)
            response = await super().handle_async_request(request)
            try:
                answered(response)
            except httpx.TransportError:
                await response.aclose()
                raise
            return response

    return WatchedToo(verify=CERTIFICATES)
