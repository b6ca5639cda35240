"""The part of `/openapi.json` that FastAPI cannot know: the raw routes, with their headers and errors."""

from __future__ import annotations

from typing import Any, get_args

from streamkeep.proxy.rules import wire
from streamkeep.sessions.agents import AgentFormat

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_ERROR: Schema = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {**_TEXT, "description": "For machines"},
        "message": {**_TEXT, "description": "For people"},
        "reason": {**_TEXT, "description": "Of `gone`: `retention` or `deleted`"},
        "goneAt": {**_TEXT, "format": "date-time", "description": "Of `gone`: since when"},
    },
}
_GENERATION: Schema = {
    "type": "object",
    "required": ["sessionId", "requestId", "streamUrl", "controlUrl", "state"],
    "properties": {
        "sessionId": _TEXT,
        "requestId": _TEXT,
        "streamUrl": {**_TEXT, "format": "uri", "description": "The data stream: upstream's bytes, untouched; signed"},
        "controlUrl": {**_TEXT, "format": "uri", "description": "The control stream: one terminal event; signed"},
        "contentType": {
            **_TEXT,
            "description": "As upstream said; absent before it has answered, and where it said none",
        },
        "upstreamStatus": {"type": ["integer", "null"]},
        "upstreamHeaders": {"type": "object", "additionalProperties": _TEXT},
        "state": {"enum": ["creating", "running", "done", "error", "cancelled"]},
        "code": {**_TEXT, "description": "How it ended"},
        "retentionSeconds": {"type": "number", "description": "How long the data stay after the end"},
        "createdAt": {**_TEXT, "format": "date-time"},
    },
}
_INTEGER: Schema = {"type": "integer"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}


def _object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_WAKE = {"wake_id": _TEXT, "generation": _INTEGER}
_LINKS = {"type": "array", "items": _ref("SubscriptionLink")}
_SUBSCRIPTION_CONFIG: Schema = {
    "pattern": {"type": ["string", "null"], "description": "Glob over paths; this, `streams` or both"},
    "lease_ttl_ms": _INTEGER,
    "description": {"type": ["string", "null"]},
    "wake_stream": {**_TEXT, "description": "Of pull-wake: the JSON stream that gets an event for each wake"},
}
_SUBSCRIPTIONS: Schema = {
    "SubscriptionError": _object(
        "error", error={**_object("code message", code=_TEXT, message=_TEXT), "additionalProperties": True}
    ),
    "SubscriptionRequest": _object(
        "type",
        type={"enum": ["webhook", "pull-wake"]},
        streams={**_TEXTS, "description": "Paths that are followed by name"},
        webhook=_object("url", url={**_TEXT, "format": "uri"}),
        **_SUBSCRIPTION_CONFIG,
    ),
    "Subscription": _object(
        "id subscription_id type pattern streams lease_ttl_ms created_at status description",
        id=_TEXT,
        subscription_id=_TEXT,
        type={"enum": ["webhook", "pull-wake"]},
        streams=_LINKS,
        created_at={**_TEXT, "format": "date-time"},
        status={"enum": ["active", "failed"]},
        webhook=_object(
            "url signing", url=_TEXT, signing=_object("alg kid jwks_url", alg=_TEXT, kid=_TEXT, jwks_url=_TEXT)
        ),
        **_SUBSCRIPTION_CONFIG,
    ),
    "SubscriptionLink": _object(
        "path link_type acked_offset tail_offset has_pending",
        path=_TEXT,
        link_type={"enum": ["explicit", "glob"]},
        acked_offset=_TEXT,
        tail_offset=_TEXT,
        has_pending={"type": "boolean"},
    ),
    "SubscriptionStreams": _object("streams", streams=_TEXTS),
    "Worker": _object("worker", worker=_TEXT),
    "Wake": _object(
        "wake_id generation token streams lease_ttl_ms", **_WAKE, token=_TEXT, streams=_LINKS, lease_ttl_ms=_INTEGER
    ),
    "WakeRequest": _object(
        "wake_id generation",
        **_WAKE,
        acks={"type": "array", "items": _object("stream offset", stream=_TEXT, offset=_TEXT)},
        done={"type": "boolean"},
    ),
    "Acknowledged": _object("ok next_wake", ok={"const": True}, next_wake={"type": "boolean"}),
    "Jwks": _object("keys", keys={"type": "array", "items": {"type": "object", "additionalProperties": _TEXT}}),
}
_PROXY_ERROR = _object("error", error=_object("code message", code=_TEXT, message=_TEXT))
_INSTANT: Schema = {**_TEXT, "format": "date-time"}
_NEXT: Schema = {"type": ["string", "null"], "description": "`before` of the next page; null at the end"}
_LISTINGS: Schema = {
    "ListedGeneration": _object(
        "tenant sessionId requestId state createdAt",
        tenant=_TEXT,
        sessionId=_TEXT,
        requestId=_TEXT,
        state={"enum": ["creating", "running", "done", "error", "cancelled", "refused"]},
        code={"type": ["string", "null"], "description": "How it ended"},
        createdAt=_INSTANT,
        endedAt={**_INSTANT, "type": ["string", "null"]},
        goneAt={**_INSTANT, "type": ["string", "null"], "description": "Since when there are no data any more"},
        upstream={"type": ["string", "null"], "description": "The name of an upstream, or a host"},
        upstreamStatus={"type": ["integer", "null"]},
        contentType={"type": ["string", "null"]},
        bytes={"type": ["integer", "null"]},
        usage={
            "type": ["object", "null"],
            "description": "`inputTokens`, `outputTokens`, `source`; so far, while it runs",
        },
        chunks={
            "type": ["integer", "null"],
            "description": "Pieces that upstream has sent so far, where this process records it",
        },
        readers={**_INTEGER, "description": "Live readers of this process"},
        owner={"type": ["object", "null"], "description": "Who records it: `id`, and whether that `isHere`"},
    ),
    "ListedGenerations": _object(
        "generations next", generations={"type": "array", "items": _ref("ListedGeneration")}, next=_NEXT
    ),
    "ListedStreams": _object(
        "streams next",
        streams={
            "type": "array",
            "items": _object(
                "path contentType bytes isClosed createdAt ttlSeconds expiresAt",
                path=_TEXT,
                contentType=_TEXT,
                bytes=_INTEGER,
                isClosed={"type": "boolean"},
                createdAt=_INSTANT,
                ttlSeconds={"type": ["integer", "null"]},
                expiresAt={**_INSTANT, "type": ["string", "null"]},
            ),
        },
        next={"type": ["string", "null"], "description": "`after` of the next page; null at the end"},
    ),
    "ListedSessions": _object(
        "sessions next",
        sessions={
            "type": "array",
            "items": _object(
                "tenant sessionId generations live firstAt lastAt",
                tenant=_TEXT,
                sessionId=_TEXT,
                generations=_INTEGER,
                live=_INTEGER,
                firstAt=_INSTANT,
                lastAt=_INSTANT,
            ),
        },
        next=_NEXT,
    ),
}
_LIMIT: Schema = {"type": ["integer", "null"], "minimum": 1}
_MAY_CALL: Schema = {
    "type": ["array", "null"],
    "items": _TEXT,
    "description": "Names of upstreams and URL globs; null: all that this proxy may call",
}
_KEY: Schema = {
    "tenant": _TEXT,
    "name": {"type": ["string", "null"], "maxLength": 200, "description": "For people"},
    "isOperator": {"type": "boolean"},
    "upstreams": _MAY_CALL,
    "maxRunning": {**_LIMIT, "description": "Generations at once; null: no limit of its own"},
    "maxPerMinute": {**_LIMIT, "description": "Generations begun within a minute; null: no limit of its own"},
}
_KEYS: Schema = {
    "WhoAmI": _object(
        "tenant keyId subject isOperator isOpen maxRunning maxPerMinute upstreams",
        tenant=_TEXT,
        keyId={"type": ["string", "null"]},
        subject={"type": ["string", "null"], "description": "Of whom the request's token speaks"},
        isOperator={"type": "boolean"},
        isOpen={"type": "boolean", "description": "Development mode: there are no keys yet"},
        maxRunning=_LIMIT,
        maxPerMinute=_LIMIT,
        upstreams=_MAY_CALL,
    ),
    "KeyRequest": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **_KEY,
            "seconds": {"type": ["number", "null"], "description": "For how long it is good; null: it does not expire"},
        },
    },
    "NewKey": _object("key", key={**_TEXT, "description": "The whole key; it is shown this once"}),
    "Key": _object(
        "id tenant name isOperator upstreams maxRunning maxPerMinute createdAt expiresAt state",
        id={**_TEXT, "description": "`stk_…`, without the secret"},
        **_KEY,
        createdAt=_INSTANT,
        expiresAt={**_INSTANT, "type": ["string", "null"]},
        state={"enum": ["active", "expired", "revoked"]},
    ),
    "Keys": _object("keys", keys={"type": "array", "items": _ref("Key")}),
}
_BOOLEAN: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object", "additionalProperties": True}
_ANYTHING: Schema = {"description": "Any JSON value"}
_OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


_TXID: Schema = {"txid": {**_TEXT, "description": "Stands in `headers.txid` of the first event that is written"}}
_WRITER: Schema = {
    "actorId": {**_TEXT, "description": "Who writes; else `X-Actor-Id`, else the token's user, else somebody new"},
    "actorName": _TEXT,
    **_TXID,
}
_CONTENT: Schema = {
    "content": {**_TEXT, "description": "The text; or else `parts`"},
    "parts": _list(_object("type", type=_TEXT)),
    "messageId": {**_TEXT, "description": "A new id; the same message again under it is written once"},
    "agent": _ref("SessionAgent"),
    **_WRITER,
}
_SESSION: Schema = {
    "sessionId": _TEXT,
    "name": _OPTIONAL_TEXT,
    "createdAt": _INSTANT,
    "updatedAt": _INSTANT,
}
_SESSIONS: Schema = {
    "NewSession": _object("", name=_TEXT),
    "RenamedSession": _object("name", name=_OPTIONAL_TEXT, **_TXID),
    "DurableSession": _object(
        "sessionId name createdAt updatedAt streamUrl",
        **_SESSION,
        streamUrl={**_TEXT, "format": "uri", "description": "The session's stream: events of the State Protocol"},
        forkedFrom={
            **_object("sessionId", sessionId=_TEXT, atMessageId=_TEXT),
            "type": ["object", "null"],
            "description": "Where it branched off",
        },
        statistics={**_OBJECT, "description": "Counts of messages, tool calls, approvals, tokens"},
        offset={**_TEXT, "description": "The stream's tail as this answer knows it"},
    ),
    "DurableSessions": _object(
        "sessions next", sessions=_list(_object("sessionId name createdAt updatedAt", **_SESSION)), next=_NEXT
    ),
    "SessionAgent": _object(
        "id endpoint",
        id=_TEXT,
        name=_TEXT,
        endpoint={**_TEXT, "format": "uri"},
        method={"const": "POST"},
        headers={
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "Sent with each call; their values are told to nobody",
        },
        bodyTemplate={**_OBJECT, "description": "Fields of each call's body"},
        triggers={"enum": ["user-messages", "all"], "description": "`all`: other agents' answers too"},
        format={"enum": list(get_args(AgentFormat)), "description": "How it is told the session; none: as `openai`"},
        maxTurns={"type": "integer", "minimum": 1, "description": "How many turns may follow one message"},
    ),
    "SessionAgents": _object("agents", agents=_list(_ref("SessionAgent")), **_TXID),
    "NewMessage": _object("", role={"enum": ["user", "assistant", "system"]}, **_CONTENT),
    "Regeneration": _object("fromMessageId", fromMessageId=_TEXT, **_CONTENT),
    "WrittenMessage": _object(
        "messageId turns offset",
        messageId=_TEXT,
        turns=_list(_object("turnId agentId messageId", turnId=_TEXT, agentId=_TEXT, messageId=_TEXT)),
        offset={**_TEXT, "description": "The offset after the write"},
    ),
    "SessionMessages": _object(
        "messages before offset",
        messages=_list(_OBJECT),
        before={"type": ["string", "null"], "description": "`before` of the next page; null at the beginning"},
        offset={**_TEXT, "description": "Follow the stream from here"},
    ),
    "ToolOutcome": _object(
        "toolCallId",
        toolCallId=_TEXT,
        output=_ANYTHING,
        error=_OPTIONAL_TEXT,
        messageId={**_TEXT, "description": "The message with the call, where calls of one id are in several"},
        **_WRITER,
    ),
    "ApprovalAnswer": _object("approved", approved=_BOOLEAN, **_WRITER),
    "StopRequest": _object("", messageId={"type": ["string", "null"], "description": "One answer; null: all of them"}),
    "NewPresence": _object(
        "status",
        status={"enum": ["online", "offline", "away"]},
        name=_TEXT,
        actorType={"enum": ["user", "agent"]},
        typing=_BOOLEAN,
        **_TXID,
    ),
    "ForkRequest": _object(
        "",
        atMessageId={"type": ["string", "null"], "description": "The last message that both have; null: all of them"},
        newSessionId=_TEXT,
        name=_TEXT,
    ),
    "Success": _object("success", success={"const": True}),
    "Comparison": _object(
        "sessionId otherId commonMessages lastCommonMessageId messages otherMessages",
        sessionId=_TEXT,
        otherId=_TEXT,
        commonMessages=_INTEGER,
        lastCommonMessageId=_OPTIONAL_TEXT,
        messages={**_list(_OBJECT), "description": "What the first has alone"},
        otherMessages={**_list(_OBJECT), "description": "What the other has alone"},
    ),
    "SessionExport": {**_OBJECT, "description": "The session, and all that its stream makes"},
}
SCHEMAS: Schema = {
    "Error": _ERROR,
    "Generation": _GENERATION,
    "ProxyError": _PROXY_ERROR,
    **_SUBSCRIPTIONS,
    **_LISTINGS,
    **_KEYS,
    **_SESSIONS,
}


def _json(name: str, media_type: str = "application/json") -> Schema:
    return {media_type: {"schema": _ref(name)}}


def _errors(form: str = "Error", /, **by_status: str) -> Schema:
    return {status[1:]: {"description": text, "content": _json(form)} for status, text in by_status.items()}


def _path(name: str, text: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": _TEXT}


def _query(name: str, text: str, schema: Schema | None = None, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "description": text, "schema": schema or _TEXT}


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": _TEXT}


def _answered(*names: str) -> Schema:
    return {name: {"schema": _TEXT} for name in names}


_IDS = [_path("session_id", "The chat"), _path("request_id", "One call in it")]
_READ = [
    _query("offset", "Where to begin: an offset, `-1` for the start (default), `now` for the tail"),
    _query("live", "Wait for more", {"enum": ["long-poll", "sse"]}),
    _query("cursor", "The `Stream-Cursor` of the answer before"),
    _query("encoding", "With `live=sse`: frames that carry bytes", {"enum": ["base64"]}),
    _query("expires", "Part of a signed URL: unix seconds", {"type": "integer"}),
    _query("signature", "Part of a signed URL"),
    _query("tenant", "Part of a signed URL, where there are tenants"),
    _header("If-None-Match", "Entity tags of catch-up reads"),
    _header(wire.LAST_EVENT_ID, "Wins over `offset`; at the end of a closed stream the answer is 204"),
]
_AS = _query(
    "as",
    "`json`: server-sent events as JSON messages; `bytes`: `application/octet-stream`, whatever upstream's type",
    {"enum": ["json", "bytes"]},
)
_READ_HEADERS = _answered(
    *(wire.NEXT_OFFSET, wire.UP_TO_DATE, wire.CLOSED, wire.CURSOR),
    *(wire.UPSTREAM_STATUS, wire.UPSTREAM_CONTENT_TYPE, wire.UPSTREAM_CONTENT_ENCODING),
)
_READ_ERRORS = _errors(
    _400="`invalid_offset`, `invalid_parameter`, `invalid_id`",
    _401="`signature_invalid`, `signature_expired`",
    _404="`not_found`: no such stream or generation, or upstream refused it",
    _409="`not_an_event_stream`: it has no JSON view",
    _410="`gone`: deleted, or ended longer ago than data are kept",
    _503="`not_started`: upstream has not answered yet; `overloaded`, `storage_unavailable`",
)


def _read(summary: str, parameters: list[Schema]) -> Schema:
    return {
        "tags": ["streams"],
        "summary": summary,
        "parameters": [*parameters, *_READ],
        "responses": {
            "200": {
                "description": "Bytes, a JSON array of events, or server-sent events",
                "headers": {**_READ_HEADERS, **_answered(wire.SSE_DATA_ENCODING)},
            },
            "204": {"description": "Nothing new", "headers": _READ_HEADERS},
            "304": {"description": "What `If-None-Match` names"},
            **_READ_ERRORS,
        },
    }


def _head(summary: str, parameters: list[Schema]) -> Schema:
    return {
        "tags": ["streams"],
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": {"description": "The tail, in headers", "headers": _READ_HEADERS}, **_READ_ERRORS},
    }


_BY_IDS = [_query("sessionId", "The chat", required=True), _query("requestId", "One call in it", required=True)]

_STREAM_PATH = [_path("path", "The stream: segments with slashes between them, up to 1024 bytes")]
_WRITE_HEADERS = _answered(wire.NEXT_OFFSET, wire.CLOSED)
_CREATE_HEADERS = _answered("Location", "Link", "Content-Type", wire.STREAM_TTL, wire.STREAM_EXPIRES_AT)
_PRODUCER_HEADERS = _answered(wire.PRODUCER_EPOCH, wire.PRODUCER_SEQ)
_OPEN_STREAM: Schema = {
    "put": {
        "tags": ["streams"],
        "summary": "Create a stream, or a fork of one; the body is its first content",
        "parameters": [
            *_STREAM_PATH,
            _header(wire.STREAM_TTL, "Seconds without a read or write after which the stream ends its life"),
            _header(wire.STREAM_EXPIRES_AT, "An RFC 3339 instant instead"),
            _header(wire.CLOSED, "`true`: the body is all there will be"),
            _header(wire.FORKED_FROM, "The URL path of the stream whose data this one shares"),
            _header(wire.FORK_OFFSET, "Up to where; its tail by default"),
            _header(wire.FORK_SUB_OFFSET, "Messages, or bytes, beyond that offset"),
            _header(wire.SCHEMA, "A JSON Schema in base64, which every message of this JSON stream must satisfy"),
        ],
        "requestBody": {"content": {"*/*": {}}},
        "responses": {
            "201": {"description": "Created", "headers": {**_WRITE_HEADERS, **_CREATE_HEADERS}},
            "200": {"description": "It is there, as asked for", "headers": {**_WRITE_HEADERS, **_CREATE_HEADERS}},
            **_errors(
                _400="`invalid_path`, `invalid_header`, `invalid_offset`, `invalid_fork`, `invalid_json`, `invalid_schema`",
                _403="`read_only`",
                _404="`not_found`: the source of the fork",
                _409="`stream_exists`, `content_type_mismatch`, `schema_mismatch`",
                _413="`body_too_large`",
                _422="`schema_violation`: a message is not as the schema says, and nothing was made",
                _503="`storage_unavailable`",
            ),
        },
    },
    "post": {
        "tags": ["streams"],
        "summary": "Append, close, or both in one step",
        "parameters": [
            *_STREAM_PATH,
            _header(wire.CLOSED, "`true`: nothing comes after this"),
            _header(wire.STREAM_SEQ, "Must be greater, byte by byte, than the last one"),
            _header(wire.PRODUCER_ID, "An idempotent producer; with the two that follow"),
            _header(wire.PRODUCER_EPOCH, "Its incarnation"),
            _header(wire.PRODUCER_SEQ, "This append's number in it, from 0"),
        ],
        "requestBody": {"content": {"*/*": {}}},
        "responses": {
            "200": {"description": "A producer's append is stored", "headers": {**_WRITE_HEADERS, **_PRODUCER_HEADERS}},
            "204": {
                "description": "Stored, closed, or a producer's repeat",
                "headers": {**_WRITE_HEADERS, **_PRODUCER_HEADERS},
            },
            **_errors(
                _400="`empty_append`, `missing_content_type`, `invalid_header`, `invalid_json`, `invalid_epoch_start`",
                _403="`producer_fenced`, `read_only`",
                _404="`not_found`",
                _409="`stream_closed`, `content_type_mismatch`, `sequence_conflict`, `sequence_gap`",
                _410="`gone`: deleted, and read by forks alone",
                _413="`body_too_large`",
                _422="`schema_violation`: `index`, `path` and `reason` say where and why; nothing was stored",
                _503="`storage_unavailable`: stored or not",
            ),
        },
    },
    "get": _read(
        "A stream of the open protocol",
        [*_STREAM_PATH, _query("as", "`schema`: the stream's JSON Schema instead of its data", {"enum": ["schema"]})],
    ),
    "head": _head("What a stream is, and where it ends", _STREAM_PATH),
    "delete": {
        "tags": ["streams"],
        "summary": "Delete a stream",
        "parameters": _STREAM_PATH,
        "responses": {
            "204": {"description": "Deleted"},
            **_errors(_403="`read_only`", _404="`not_found`", _410="`gone`: deleted already"),
        },
    },
}

_SUBSCRIPTION_ID = [_path("id", "The subscription")]
_WAKE_TOKEN = "wakeToken"


def _subscription_operation(
    summary: str,
    *,
    parameters: list[Schema],
    responses: Schema,
    body: str | None = None,
    has_token: bool = False,
    **errors: str,
) -> Schema:
    if body is not None:
        errors.setdefault("_400", "`INVALID_REQUEST`")
        errors |= {"_408": "`REQUEST_TIMEOUT`", "_413": "`BODY_TOO_LARGE`: 2 MiB"}
    if has_token:
        errors["_401"] = "`TOKEN_INVALID`, `TOKEN_EXPIRED`"
    return {
        "tags": ["subscriptions"],
        "summary": summary,
        "parameters": parameters,
        **({} if body is None else {"requestBody": {"required": True, "content": _json(body)}}),
        **({"security": [{_WAKE_TOKEN: []}]} if has_token else {}),
        "responses": {**responses, **_errors("SubscriptionError", **errors, _503="`STORAGE_UNAVAILABLE`")},
    }


def _returned(description: str, schema: str) -> Schema:
    return {"description": description, "content": _json(schema)}


_NO_SUBSCRIPTION = "`SUBSCRIPTION_NOT_FOUND`"
_DONE = {"204": {"description": "Done"}}
_FENCED = "`FENCED`: the wake is another's, or over"


def _acknowledgement(summary: str) -> Schema:
    return _subscription_operation(
        summary,
        parameters=_SUBSCRIPTION_ID,
        body="WakeRequest",
        has_token=True,
        responses={"200": _returned("Taken, and whether another wake follows", "Acknowledged")},
        _404=_NO_SUBSCRIPTION,
        _409=f"{_FENCED}; `INVALID_OFFSET`: none was taken",
    )


_SUBSCRIPTION_PATHS: Schema = {
    "jwks.json": {
        "get": _subscription_operation(
            "The keys that verify webhooks' signatures",
            parameters=[],
            responses={"200": {"description": "A JWK set", "content": _json("Jwks", "application/jwk-set+json")}},
        )
    },
    "subscriptions/{id}": {
        "put": _subscription_operation(
            "Follow streams, by a pattern, by name or both; a repeat finds the same subscription",
            parameters=_SUBSCRIPTION_ID,
            body="SubscriptionRequest",
            responses={
                "201": _returned("Made", "Subscription"),
                "200": _returned("It is there, as asked for", "Subscription"),
            },
            _400="`INVALID_REQUEST`, `WEBHOOK_URL_REJECTED`",
            _409="`SUBSCRIPTION_ALREADY_EXISTS`",
        ),
        "get": _subscription_operation(
            "A subscription, and how far each of its streams is acknowledged",
            parameters=_SUBSCRIPTION_ID,
            responses={"200": _returned("Here it is", "Subscription")},
            _400="`INVALID_REQUEST`",
            _404=_NO_SUBSCRIPTION,
        ),
        "delete": _subscription_operation(
            "End a subscription",
            parameters=_SUBSCRIPTION_ID,
            responses=_DONE,
            _400="`INVALID_REQUEST`",
            _404=_NO_SUBSCRIPTION,
        ),
    },
    "subscriptions/{id}/streams": {
        "post": _subscription_operation(
            "Follow more streams, each from its tail",
            parameters=_SUBSCRIPTION_ID,
            body="SubscriptionStreams",
            responses=_DONE,
            _404=_NO_SUBSCRIPTION,
        )
    },
    "subscriptions/{id}/streams/{path}": {
        "delete": _subscription_operation(
            "Follow a stream no longer, unless the pattern does",
            parameters=[*_SUBSCRIPTION_ID, _path("path", "The stream; its slashes may stand as they are")],
            responses=_DONE,
            _400="`INVALID_REQUEST`",
            _404=_NO_SUBSCRIPTION,
        )
    },
    "subscriptions/{id}/callback": {"post": _acknowledgement("A webhook's receiver says how far it has come")},
    "subscriptions/{id}/ack": {"post": _acknowledgement("A worker says how far it has come")},
    "subscriptions/{id}/claim": {
        "post": _subscription_operation(
            "A worker takes the lease of a pull-wake subscription",
            parameters=_SUBSCRIPTION_ID,
            body="Worker",
            responses={"200": _returned("The wake, and the token that proves it", "Wake")},
            _404=_NO_SUBSCRIPTION,
            _409="`ALREADY_CLAIMED`, `NO_PENDING_WORK`",
        )
    },
    "subscriptions/{id}/release": {
        "post": _subscription_operation(
            "A worker gives its lease back",
            parameters=_SUBSCRIPTION_ID,
            body="WakeRequest",
            has_token=True,
            responses=_DONE,
            _404=_NO_SUBSCRIPTION,
            _409=_FENCED,
        )
    },
}

# What every request that calls upstream may ask for.
_ASKED = [
    _header(wire.TIMEOUT, "Shorter clocks for upstream: `connect=5, first_byte=30, idle=10, total=120`"),
    _header(wire.ON_DISCONNECT, "Without readers: `continue`, `cancel` or `cancel_after=` with seconds"),
    _header(wire.RETENTION, "How many seconds the data stay after the end"),
]
_ASKED_IN_VAIN = "`invalid_on_disconnect`, `invalid_retention`, `invalid_timeout`"
_AT_A_LIMIT = "`too_many_generations`, `rate_limited`: the key is at a limit; without `Upstream-Status`"

PATHS: Schema = {
    "/v1/stream/{path}": _OPEN_STREAM,
    **{f"/v1/stream/__ds/{path}": methods for path, methods in _SUBSCRIPTION_PATHS.items()},
    "/api/share": {
        "post": {
            "tags": ["transport"],
            "summary": "A fresh signed URL for a generation or a stream, with the rights that are asked for",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "sessionId": _TEXT,
                                "requestId": _TEXT,
                                "path": {**_TEXT, "description": "A stream, instead of a generation"},
                                "rights": {"type": "array", "items": {"enum": ["read", "cancel", "append"]}},
                                "seconds": {"type": "number", "description": "How long it is good"},
                            },
                        }
                    }
                },
            },
            "responses": {
                "200": {
                    "description": "`url`, or `streamUrl`, `controlUrl` and `cancelUrl`",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **_errors(
                    _400="`invalid_share`, `invalid_id`, `invalid_path`",
                    _401="`missing_credentials`, `invalid_credentials`",
                    _413="`body_too_large`",
                ),
            },
        }
    },
    "/api/{session_id}/{request_id}": {
        "post": {
            "tags": ["transport"],
            "summary": "Forward a request; its response becomes a durable stream",
            "parameters": [
                *_IDS,
                _header(wire.PROXY_URL, "The URL to call; required unless resuming"),
                _header(wire.PROXY_METHOD, "GET, HEAD, PUT, PATCH, DELETE or POST (default)"),
                _header(wire.RESUME_ACTIVE_GENERATION, "Any value but `false`: find what runs, call nothing"),
                _header(wire.VIEW, "`json` or `bytes`: what `streamUrl` is to lead to, see `as` of the data stream"),
                *_ASKED,
            ],
            "requestBody": {"description": "Goes to upstream as it is", "content": {"*/*": {}}},
            "responses": {
                "200": {
                    "description": "Upstream accepted (any 2xx), or these ids are known and this joins or replays them",
                    "headers": _answered(wire.SESSION_ID, wire.REQUEST_ID, wire.REPLAYED),
                    "content": _json("Generation"),
                },
                "204": {"description": "Resuming, and nothing runs"},
                "default": {
                    "description": "Upstream's own error: its status, headers and body, and `Upstream-Status`",
                    "headers": _answered(wire.UPSTREAM_STATUS),
                },
                **_errors(
                    _400="`missing_upstream_url`, `invalid_upstream_url`, `invalid_upstream_method`, `invalid_id`, "
                    + _ASKED_IN_VAIN,
                    _403="`upstream_not_allowed`",
                    _409="`request_conflict`: the ids belong to another request; `cancelled`",
                    _410="`gone`: the ids were used before, and the data are gone",
                    _413="`body_too_large`",
                    _429=_AT_A_LIMIT,
                    _502="`upstream_unreachable`, `upstream_failed`, `redirect_refused`, `owner_lost`",
                    _503="`draining`, `overloaded`, `storage_unavailable`, `shutdown`",
                    _504="`timed_out`",
                ),
            },
        }
    },
    "/stream/data": {
        "get": _read("A generation's bytes", [*_BY_IDS, _AS]),
        "head": _head("Where a generation's bytes end", [*_BY_IDS, _AS]),
    },
    "/stream/control": {
        "get": _read("A generation's terminal event", _BY_IDS),
        "head": _head("Where a generation's events end", _BY_IDS),
    },
} | {
    f"/v1/stream/generations/{{session_id}}/{{request_id}}/{which}": {
        "get": _read(f"A generation's {which} stream", parameters),
        "head": _head(f"Where a generation's {which} stream ends", parameters),
    }
    for which, parameters in (("data", [*_IDS, _AS]), ("control", _IDS))
}


def _listing(summary: str, name: str) -> Schema:
    return {
        "tags": ["listings"],
        "summary": summary,
        "parameters": [
            _query("state", "`live`, or states with commas between them"),
            _query("session", "Of one session"),
            _query("request", "Of one request id"),
            _query("q", "A text in the session's id, the request's or the upstream's name"),
            _query("tenant", "Of one tenant; for operators, who see all"),
            _query("before", "The `next` of the page before"),
            _query("limit", "Rows, 100 by default", {"type": "integer", "minimum": 1, "maximum": 500}),
        ],
        "responses": {
            "200": {"description": "A page; it may be empty and yet lead on", "content": _json(name)},
            **_errors(
                _400="`invalid_parameter`, `invalid_id`",
                _401="`missing_credentials`, `invalid_credentials`",
                _403="`not_permitted`",
                _503="`storage_unavailable`",
            ),
        },
    }


PATHS["/api/generations"] = {"get": _listing("Generations, newest first: what runs, and what ran", "ListedGenerations")}
PATHS["/api/streams"] = {
    "get": {
        "tags": ["listings"],
        "summary": "Streams of the open protocol, by path",
        "parameters": [
            _query("prefix", "What their paths begin with"),
            _query("after", "The `next` of the page before"),
            _query("limit", "Rows, 100 by default", {"type": "integer", "minimum": 1, "maximum": 500}),
        ],
        "responses": {
            "200": {"description": "A page", "content": _json("ListedStreams")},
            **_errors(_400="`invalid_parameter`", _401="`missing_credentials`, `invalid_credentials`"),
        },
    }
}
PATHS["/api/sessions"] = {"get": _listing("Sessions, by their newest generation", "ListedSessions")}


def _of_keys(summary: str, status: str, description: str, schema: str, **more: Any) -> Schema:
    errors = more.pop("errors", {})
    return {
        "tags": ["keys"],
        "summary": summary,
        **more,
        "responses": {
            status: _returned(description, schema),
            **_errors(**errors, _401="`missing_credentials`, `invalid_credentials`", _503="`storage_unavailable`"),
        },
    }


_NOT_OPERATOR = "`not_permitted`: this is for operators"
PATHS["/api/whoami"] = {"get": _of_keys("In whose name a request acts, and what it may do", "200", "You", "WhoAmI")}
PATHS["/api/keys"] = {
    "get": _of_keys(
        "All API keys, oldest first; their secrets are not known here",
        *("200", "Here they are; those of the settings are not among them", "Keys"),
        errors={"_403": _NOT_OPERATOR},
    ),
    "post": _of_keys(
        "Make an API key; the answer alone shows it whole",
        *("201", "Made", "NewKey"),
        requestBody={"content": _json("KeyRequest")},
        errors={
            "_400": "`invalid_key`, `invalid_id`",
            "_403": _NOT_OPERATOR,
            "_409": "`first_key`: the first one must be an operator's",
            "_413": "`body_too_large`",
        },
    ),
}
PATHS["/api/keys/{id}/revoke"] = {
    "post": _of_keys(
        "Make an API key useless, on every server within five seconds",
        *("200", "Revoked, now or before", "Key"),
        parameters=[_path("id", "`stk_…`, without the secret")],
        errors={"_403": _NOT_OPERATOR, "_404": "`not_found`"},
    )
}


def _drop_in(method: str) -> Schema:
    return {
        "tags": ["drop-in"],
        "summary": f"{method.upper()} at a named upstream: its own answer, durable underneath",
        "parameters": [
            _path("upstream", "A name of `STREAMKEEP_UPSTREAMS`"),
            _path("path", "The path at upstream; the query goes along"),
            _header(wire.IDEMPOTENCY_KEY, "The same with the same request joins or replays; never a second call"),
            _header(wire.REQUEST_ID, f"The same, where there is no {wire.IDEMPOTENCY_KEY}"),
            _header(wire.SESSION_ID, "The chat; without it the request is one of its own"),
            _header(wire.RESUME_ACTIVE_GENERATION, "The session's running answer from its start, or 204; calls nobody"),
            _header(wire.LAST_EVENT_ID, "An EventSource goes on behind this event; calls nobody"),
            *_ASKED,
        ],
        "responses": {
            "default": {
                "description": "Upstream's status, headers and body; cut off without an end when it did not come whole",
                "headers": _answered(
                    wire.STREAM_URL,
                    wire.CONTROL_URL,
                    wire.SESSION_ID,
                    wire.RECORDED_AS,
                    wire.REPLAYED,
                    wire.UPSTREAM_STATUS,
                ),
            },
            "204": {"description": "There is nothing to go on with"},
            **_errors(
                _400="`invalid_upstream_url`, `invalid_id`, `invalid_event_id`, " + _ASKED_IN_VAIN,
                _404="`unknown_upstream`; `not_found`",
                _409="`request_conflict`: the key belongs to another request; `cancelled`",
                _410="`gone`: the key was used before, and the data are gone",
                _413="`body_too_large`",
                _429=_AT_A_LIMIT,
                _502="`upstream_unreachable`, `upstream_failed`, `redirect_refused`, `owner_lost`",
                _503="`draining`, `overloaded`, `storage_unavailable`, `shutdown`",
                _504="`timed_out`",
            ),
        },
    }


_PROXY_UNKNOWN = "`MISSING_SECRET`, `INVALID_SECRET`, `SIGNATURE_INVALID`, `SIGNATURE_EXPIRED`, `MISSING_SIGNATURE`"
_PROXY_ID = [_path("id", "The stream, as `Location` names it")]
_PROXY_SIGNED = [
    *_PROXY_ID,
    _query("expires", "Part of a signed URL: unix seconds", {"type": "integer"}),
    _query("signature", "Part of a signed URL"),
]


def _proxy_operation(summary: str, parameters: list[Schema], responses: Schema, **errors: str) -> Schema:
    return {
        "tags": ["proxy protocol"],
        "summary": summary,
        "parameters": parameters,
        "responses": {
            **responses,
            **_errors("ProxyError", **{"_401": _PROXY_UNKNOWN, "_502": "`STORAGE_ERROR`", **errors}),
        },
    }


_LOCATION = _answered("Location", wire.UPSTREAM_CONTENT_TYPE)
_UNKNOWN_STREAM = "`STREAM_NOT_FOUND`"
PATHS["/v1/proxy"] = {
    "post": _proxy_operation(
        "Forward a request, and answer with the URL of its stream (open proxy protocol)",
        [
            _header(wire.UPSTREAM_URL, "What is called; `STREAMKEEP_ALLOW` admits it"),
            _header(wire.UPSTREAM_METHOD, "GET, POST, PUT, PATCH or DELETE"),
            _header(wire.UPSTREAM_AUTHORIZATION, "Sent as `Authorization`; that of this request is ours"),
            _header(wire.SIGNED_URL_TTL, "Seconds for which the URL is good, up to `STREAMKEEP_URL_SECONDS`"),
            _query("secret", "Our key, where no header can be set"),
            *_ASKED,
        ],
        {"201": {"description": "Upstream has accepted; the body is still coming", "headers": _LOCATION}},
        _400="`MISSING_UPSTREAM_URL`, `MISSING_UPSTREAM_METHOD`, `INVALID_UPSTREAM_METHOD`, `REDIRECT_NOT_ALLOWED`, "
        "`INVALID_ACTION`, " + _ASKED_IN_VAIN.upper(),
        _403="`UPSTREAM_NOT_ALLOWED`",
        _413="`BODY_TOO_LARGE`",
        _429="`TOO_MANY_GENERATIONS`, `RATE_LIMITED`: the key is at a limit",
        _502="Upstream's own error, with `Upstream-Status`; or `UPSTREAM_ERROR`, `STORAGE_ERROR`",
        _504="`UPSTREAM_TIMEOUT`",
    )
}
PATHS["/v1/proxy/{id}"] = {
    "get": _proxy_operation(
        "Read a stream, by its signed URL or with a key",
        [*_PROXY_ID, *_READ],
        {
            "200": {"description": "Bytes, or server-sent events in base64", "headers": _READ_HEADERS},
            "204": {"description": "Nothing new", "headers": _READ_HEADERS},
            "304": {"description": "What `If-None-Match` names"},
        },
        _400="`INVALID_OFFSET`, `INVALID_PARAMETER`",
        _404=_UNKNOWN_STREAM,
        _410="`GONE`",
    ),
    "head": _proxy_operation(
        "What a stream is, and where it ends",
        _PROXY_ID,
        {"200": {"description": "The tail, in headers", "headers": _READ_HEADERS}},
        _404=_UNKNOWN_STREAM,
        _410="`GONE`",
    ),
    "post": _proxy_operation(
        "A fresh URL, with a key",
        [*_PROXY_ID, _query("action", "`connect`", required=True)],
        {"200": {"description": "Renewed", "headers": _LOCATION}},
        _400="`INVALID_ACTION`",
        _404=_UNKNOWN_STREAM,
        _410="`GONE`",
    ),
    "patch": _proxy_operation(
        "Stop the upstream call, by the signed URL alone; idempotent",
        [*_PROXY_SIGNED, _query("action", "`abort`", required=True)],
        {"204": {"description": "Stopped; what came is kept"}},
        _400="`INVALID_ACTION`",
        _404=_UNKNOWN_STREAM,
        _410="`GONE`",
    ),
    "delete": _proxy_operation(
        "Stop and delete a stream, with a key; 204 also when there is none",
        _PROXY_ID,
        {"204": {"description": "There is none any more"}},
    ),
}
PATHS["/u/{upstream}/{path}"] = {
    method: _drop_in(method) for method in ("get", "head", "put", "post", "patch", "delete")
}


def _of_sessions(
    summary: str, answer: str | None, status: str = "200", *, body: str | None = None, **more: Any
) -> Schema:
    """`answer` None: there is none. `errors` are beside those that every route has."""
    errors: Schema = {"_404": "`not_found`", **more.pop("errors", {})}
    written = {"description": "Written, now or before", "headers": _answered(wire.NEXT_OFFSET)}
    if body is not None:
        more["requestBody"] = {"content": _json(body)}
        errors |= {"_413": "`body_too_large`"}
    return {
        "tags": ["sessions"],
        "summary": summary,
        **more,
        "responses": {
            status: written if answer is None else _returned("Here it is", answer),
            **_errors(
                **errors,
                _400="`invalid_body`, `invalid_id`, `invalid_parameter` and others, told in the message",
                _401="`missing_credentials`, `invalid_credentials`",
                _403="`foreign_actor`: the token is another one's; `not_permitted`, `upstream_not_allowed`",
                _503="`storage_unavailable`: send it again, with its id",
            ),
        },
    }


_SESSION_ID = _path("session_id", "The session")
_LIMIT = _query("limit", "Rows, 100 by default", {"type": "integer", "minimum": 1, "maximum": 500})
_CLOSED = "`stream_closed`"
_TAKEN = "`message_exists`: there is, was, or will be another message of this id"
_ANSWERED = {"_409": "`already_answered`: somebody has, and otherwise"}
_SESSION_PATHS: dict[str, Schema] = {
    "": {
        "put": _of_sessions(
            "Make a session, or find it",
            "DurableSession",
            body="NewSession",
            errors={"_409": "`not_a_session`, `stream_exists`: another stream is there"},
        ),
        "get": _of_sessions("A session: its name, its stream, and counts", "DurableSession"),
        "patch": _of_sessions("Give a session another name", "DurableSession", body="RenamedSession"),
        "delete": _of_sessions("Delete a session with its stream and its generations", None, "204"),
    },
    "/messages": {
        "post": _of_sessions(
            "Write a message, and call the agents that answer it",
            "WrittenMessage",
            body="NewMessage",
            errors={"_409": f"{_TAKEN}; {_CLOSED}"},
        ),
        "get": _of_sessions(
            "Messages, as the session's events make them",
            "SessionMessages",
            parameters=[_query("before", "The message that the page ends before"), _LIMIT],
        ),
    },
    "/regenerate": {
        "post": _of_sessions(
            "Have the answers from a message on written anew",
            "WrittenMessage",
            body="Regeneration",
            errors={"_404": "`not_found`, `message_not_found`", "_409": f"{_TAKEN}; {_CLOSED}"},
        )
    },
    "/stop": {"post": _of_sessions("Stop the answers under way, or one of them", None, "204", body="StopRequest")},
    "/tool-results": {
        "post": _of_sessions(
            "Tell what a tool gave that ran here",
            *(None, "204"),
            body="ToolOutcome",
            errors={"_404": "`not_found`, `tool_call_not_found`", **_ANSWERED},
        )
    },
    "/approvals/{approval_id}": {
        "post": _of_sessions(
            "Approve of a tool call, or not",
            *(None, "204"),
            body="ApprovalAnswer",
            parameters=[_path("approval_id", "As the agent named it")],
            errors={"_404": "`not_found`, `approval_not_found`", **_ANSWERED},
        )
    },
    "/presence/{actor_id}": {
        "put": _of_sessions(
            "Say that an actor is there",
            *(None, "204"),
            body="NewPresence",
            parameters=[_path("actor_id", "Who it is")],
        ),
        "delete": _of_sessions("Say that an actor has left", None, "204", parameters=[_path("actor_id", "Who it is")]),
    },
    "/agents": {
        "get": _of_sessions("The agents of a session, without their secrets", "SessionAgents"),
        "post": _of_sessions("Have agents take part", "Success", body="SessionAgents"),
    },
    "/agents/{agent_id}": {
        "delete": _of_sessions(
            "Have an agent take part no more",
            *(None, "204"),
            parameters=[_path("agent_id", "Its id")],
            errors={"_404": "`not_found`, `agent_not_found`"},
        )
    },
    "/fork": {
        "post": _of_sessions(
            "A new session with this one's history",
            *("DurableSession", "201"),
            body="ForkRequest",
            errors={"_404": "`not_found`, `message_not_found`", "_409": "`session_exists`, `stream_exists`"},
        )
    },
    "/compare/{other_id}": {
        "get": _of_sessions(
            "What two sessions have in common, and what each has alone",
            "Comparison",
            parameters=[_path("other_id", "The other session")],
        )
    },
    "/export": {"get": _of_sessions("All of a session as one JSON document", "SessionExport")},
}
for _rest, _operations in _SESSION_PATHS.items():
    for _operation in _operations.values():
        _operation["parameters"] = [_SESSION_ID, *_operation.get("parameters", [])]
    PATHS[f"/v1/sessions/{{session_id}}{_rest}"] = _operations
PATHS["/v1/sessions/{session_id}"]["put"]["responses"]["201"] = _returned("Made", "DurableSession")
PATHS["/v1/sessions/{session_id}"]["delete"]["responses"]["202"] = {"description": "Gone; some data are still to go"}
PATHS["/v1/sessions"] = {
    "get": _of_sessions(
        "Sessions, newest first, by a text in their ids and names",
        "DurableSessions",
        parameters=[
            _query("search", "A text in their ids or names"),
            _query("before", "The `next` of the page before"),
            _LIMIT,
        ],
    )
}


def complete(schema: Schema) -> Schema:
    """Add the raw routes to FastAPI's own document."""
    for path, methods in PATHS.items():
        schema["paths"].setdefault(path, {}).update(methods)
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    components["securitySchemes"] = {_WAKE_TOKEN: {"type": "http", "scheme": "bearer"}}
    return schema
