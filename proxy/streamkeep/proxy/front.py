"""The first to see a request and the last to see its answer: names it for logs, counts and logs how it was answered."""

from __future__ import annotations

from random import getrandbits
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkeep.proxy.asgi import Exchange, header
from streamkeep.proxy.logs import GENERATION, REQUEST_ID, AccessLog, Answer
from streamkeep.proxy.rules import wire
from streamkeep.proxy.tallies import RequestTally

_HEADER = wire.REQUEST_ID.lower().encode()


class Front:
    """ASGI middleware. A request keeps the `X-Request-ID` that it came with, if that is an id as we know them; the answer
    carries the id unless it names another: a generation's, or upstream's."""

    def __init__(self, app: ASGIApp, tally: RequestTally) -> None:
        self._app = app
        self._tally = tally
        self._log = AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, _HEADER)
        request_id = given if given is not None and wire.is_id(given) else f"{getrandbits(64):016x}"
        exchange = scope["streamkeep.exchange"] = Exchange(request_id, send)
        REQUEST_ID.set(request_id)

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.has_started = True
                self._note(scope, message["status"], request_id)
                if _HEADER not in dict(message["headers"]):
                    message["headers"] = [*message["headers"], (_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception:
            if not exchange.has_started:
                self._note(scope, 500, request_id)
            raise
        finally:
            if exchange.error is not None:
                self._tally.errors[exchange.error] += 1

    def _note(self, scope: Scope, status: int, request_id: str) -> None:
        method = scope["method"]
        self._tally.note_answer(method, status)
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        path = raw_path.partition(b"?")[0].decode("latin-1")
        self._log.note(
            Answer(scope.get("client"), method, path, scope["http_version"], status, request_id, GENERATION.get())
        )
