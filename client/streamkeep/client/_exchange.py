"""One call through the proxy, from the caller's request to an answer with a body: sent, or resumed.

A call is recorded in the local store before anything is sent, so that whatever happens then, a later process finds it.
Resuming looks there first, and asks the proxy when the store knows nothing; it never makes an upstream call.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx

from streamkeep.client._body import Body, GenerationBody
from streamkeep.client._bookmark import Bookmark
from streamkeep.client._channel import Channel
from streamkeep.client._errors import GenerationError, NothingToResume, ResumeReason, ServerError, generation_error
from streamkeep.client._messages import AnswerKeeper, KeptBody, MessageKeeper
from streamkeep.client._retry import Patience
from streamkeep.client._rules import wire
from streamkeep.client._rules.wire import Creation, Header
from streamkeep.client._server import Accepted, Server, Timeouts, UpstreamCall
from streamkeep.client._stores import GenerationRecord, GenerationStore, RecordState


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller wants. Without `resumes` it is `upstream`, under the ids; with it, the body of a generation that
    was sent before: the named one, or the session's newest. `replays` begins at its first byte."""

    session_id: str
    request_id: str | None
    upstream: UpstreamCall | None
    within: Timeouts
    resumes: bool = False
    replays: bool = False
    ttl_seconds: float = 3600.0

    @property
    def replays_by_name(self) -> bool:
        """Whether a named generation is wanted from its first byte on: it is, also when it was delivered before."""
        return self.request_id is not None and self.replays


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets: upstream's status and headers, with a generation's body, or with all of a small one."""

    status: int
    headers: tuple[Header, ...]
    body: Body | bytes
    session_id: str
    request_id: str

    def named_as_ours(self) -> Answer:
        """The same, with our id as `X-Request-ID`; one of upstream's own goes to `Upstream-Request-ID`."""
        ours, theirs = wire.REQUEST_ID.encode(), wire.UPSTREAM_REQUEST_ID.encode()
        headers = [(theirs if name.lower() == ours.lower() else name, value) for name, value in self.headers]
        return replace(self, headers=(*headers, (ours, self.request_id.encode())))

    def named_as_theirs(self) -> Answer:
        """The same, with upstream's own `X-Request-ID`, which its vendor asks for; with ours where it sent none."""
        ours = wire.REQUEST_ID.encode()
        if any(name.lower() == ours.lower() for name, _ in self.headers):
            return self
        return replace(self, headers=(*self.headers, (ours, self.request_id.encode())))


class Exchange:
    """Sends and resumes calls over one channel.

    With `skips_finished`, a generation that was closed early after its last byte counts as delivered. SDKs do so, since
    they stop reading at their format's end mark.
    """

    def __init__(
        self,
        channel: Channel,
        server: Server,
        store: GenerationStore,
        *,
        patience: Patience,
        messages: MessageKeeper | None = None,
        skips_finished: bool = False,
    ) -> None:
        self.channel = channel
        self.server = server
        self._store = store
        self._patience = patience
        self._messages = messages
        self._skips_finished = skips_finished

    async def open(self, call: Call) -> Answer:
        """Send or resume a call, and return when upstream's answer has begun.

        Raises:
            NothingToResume: with the reason why.
            ServerError: the proxy refused. GenerationError: the call ended without an answer of upstream's.
            ConnectionFailed, httpx.TimeoutException: no answer; what was sent may run, and can be resumed.
            LocalStoreFailed: the call could not be recorded, and so was not sent.
        """
        if call.resumes:
            return await self._resume(call)
        if call.upstream is None:
            raise ValueError("a call that does not resume needs a URL")
        return await self._send(call, call.upstream)

    async def _send(self, call: Call, upstream: UpstreamCall) -> Answer:
        request_id = call.request_id or new_id()
        await self._keep_question(call.session_id, request_id, upstream)
        bookmark = self._bookmark(self._new_record(call.session_id, request_id))
        await bookmark.place()
        try:
            outcome = await self.server.create(call.session_id, request_id, upstream, call.within)
        except GenerationError:
            await bookmark.remove()
            raise
        except ServerError as exc:
            # A 5xx leaves open whether the call was sent; the record waits for whoever wants to know.
            if exc.status < 500:
                await bookmark.remove()
            raise
        if not isinstance(outcome, Accepted):
            await bookmark.remove()
            headers = (*outcome.headers, *_id_headers(call.session_id, request_id))
            return Answer(outcome.status, headers, outcome.content, call.session_id, request_id)
        extra = ((wire.REPLAYED.encode(), b"true"),) if outcome.is_replay else ()
        return await self._answer(outcome.creation, bookmark, call.within, start=0, extra=extra)

    async def _resume(self, call: Call) -> Answer:
        reasons: list[ResumeReason] = []
        expired: set[str] = set()
        for record in await self._records(call):
            if datetime.now(UTC) - record.updated_at > timedelta(seconds=call.ttl_seconds):
                expired.add(record.request_id)
                reasons.append(ResumeReason.EXPIRED)
            elif record.state is RecordState.ENDED and not call.replays_by_name:
                reasons.append(ResumeReason.ENDED)
            else:
                resumed = await self._reopen(record, call)
                if isinstance(resumed, Answer):
                    return resumed
                reasons.append(resumed)
        if call.request_id is None or not reasons:
            creation = await self._ask(call)
            if creation is not None and creation.request_id not in expired:
                record = self._new_record(creation.session_id, creation.request_id)
                resumed = await self._continue(creation, self._bookmark(record), call, start=0)
                if isinstance(resumed, Answer):
                    return resumed
        raise NothingToResume(reasons[0] if reasons else ResumeReason.NONE)

    async def _reopen(self, record: GenerationRecord, call: Call) -> Answer | ResumeReason:
        """Go on with a recorded generation, or say why not."""
        bookmark = self._bookmark(record)
        try:
            creation = await self.server.find(record.session_id, record.request_id)
        except ServerError as exc:
            if exc.status not in (404, 410):
                raise
            await bookmark.remove()
            return ResumeReason.EXPIRED if exc.status == 410 else ResumeReason.NONE
        is_left = record.state is RecordState.LEFT and not call.replays_by_name
        if self._skips_finished and is_left and creation.state == "done":
            ending = await self.server.ending(creation)
            if ending is not None and ending.position == record.handed_position:
                await bookmark.ended(ending.position)
                return ResumeReason.ENDED
        return await self._continue(creation, bookmark, call, start=0 if call.replays else record.position)

    async def _continue(
        self, creation: Creation, bookmark: Bookmark, call: Call, *, start: int
    ) -> Answer | ResumeReason:
        """Wait until upstream has answered, and give the body from `start` on."""
        try:
            creation = await self._verdict(creation, call.within)
        except ServerError as exc:
            if exc.status != 404:
                raise
            # Upstream refused meanwhile; its answer went to those who waited for it.
            await bookmark.remove()
            return ResumeReason.NONE
        if creation.status is None:
            await bookmark.remove()
            raise generation_error(
                creation.code or "owner_lost",
                "the call ended before upstream answered",
                session_id=creation.session_id,
                request_id=creation.request_id,
            )
        bookmark.record = replace(bookmark.record, state=RecordState.OPEN, position=start, handed_position=start)
        await bookmark.place()
        extra = ((wire.START_OFFSET.encode(), str(start).encode()),)
        return await self._answer(creation, bookmark, call.within, start=start, extra=extra)

    async def _verdict(self, creation: Creation, within: Timeouts) -> Creation:
        """Ask until upstream has answered, or the caller's read timeout is over."""
        deadline = float("inf") if within.read is None else time.monotonic() + within.read
        pause_seconds = 0.1
        while creation.awaits_verdict:
            if time.monotonic() >= deadline:
                raise httpx.ReadTimeout(f"upstream did not answer within {within.read} seconds")
            await self.channel.sleep(pause_seconds)
            pause_seconds = min(1.0, pause_seconds * 1.5)
            creation = await self.server.find(creation.session_id, creation.request_id)
        return creation

    async def _ask(self, call: Call) -> Creation | None:
        """What the proxy knows of a named generation, or of the session's newest one that runs."""
        if call.request_id is None:
            return await self.server.resumable(call.session_id, new_id())
        try:
            return await self.server.find(call.session_id, call.request_id)
        except ServerError as exc:
            if exc.status not in (404, 410):
                raise
            return None

    async def _records(self, call: Call) -> list[GenerationRecord]:
        records = await self.channel.run(lambda: self._store.records(self.server.base, call.session_id))
        return [record for record in records if call.request_id in (None, record.request_id)]

    def _new_record(self, session_id: str, request_id: str) -> GenerationRecord:
        now = datetime.now(UTC)
        return GenerationRecord(self.server.base, session_id, request_id, now, now)

    def _bookmark(self, record: GenerationRecord) -> Bookmark:
        return Bookmark(self.channel, self._store, record)

    async def _keep_question(self, session_id: str, request_id: str, upstream: UpstreamCall) -> None:
        """A body that is sent while it is made is not kept: nobody has all of it."""
        messages, content = self._messages, upstream.content
        if messages is not None and isinstance(content, bytes):
            await self.channel.run(lambda: messages.asked(session_id, request_id, content))

    async def _answer(
        self, creation: Creation, bookmark: Bookmark, within: Timeouts, *, start: int, extra: tuple[Header, ...]
    ) -> Answer:
        body = self._body(creation, bookmark, within, start=start)
        headers = [
            (name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in creation.answer_headers()
        ]
        if start > 0:
            # The rest of an encoded body cannot be decoded by itself: it is given as it is, and said so.
            renamed = wire.UPSTREAM_CONTENT_ENCODING.encode()
            headers = [(renamed if name == b"content-encoding" else name, value) for name, value in headers]
        headers += [*_id_headers(creation.session_id, creation.request_id), *extra]
        status = creation.status
        assert status is not None, "a body is opened only after upstream's verdict"
        kept = await self._kept(body, creation, within, start=start)
        return Answer(status, tuple(headers), kept, creation.session_id, creation.request_id)

    def _body(self, creation: Creation, bookmark: Bookmark | None, within: Timeouts, *, start: int) -> GenerationBody:
        return GenerationBody(
            self.channel,
            self.server,
            creation,
            start=start,
            within=within,
            patience=self._patience,
            bookmark=bookmark,
        )

    async def _kept(self, body: GenerationBody, creation: Creation, within: Timeouts, *, start: int) -> Body:
        """The body, of which the keeper of messages is told everything, also what is before its start."""
        if self._messages is None or creation.content_encoding is not None:
            return body
        answer = self._messages.answer(creation.session_id, creation.request_id, creation.content_type)
        if start > 0:
            await self._tell_beginning(answer, self._body(creation, None, within, start=0), start)
        return KeptBody(body, answer, self.channel)

    async def _tell_beginning(self, answer: AnswerKeeper, body: GenerationBody, end: int) -> None:
        told = 0
        try:
            # Where it ends badly, so does the body that is read next.
            with suppress(GenerationError):
                while told < end and (chunk := await body.next_chunk()) is not None:
                    answer.receive(chunk[: end - told])
                    told += len(chunk)
        finally:
            await body.close()


def new_id() -> str:
    """An id for a session or request of which nobody said one."""
    return str(uuid.uuid4())


def _id_headers(session_id: str, request_id: str) -> list[Header]:
    return [
        (wire.SESSION_ID.encode(), session_id.encode()),
        (wire.OUR_REQUEST_ID.encode(), request_id.encode()),
    ]
