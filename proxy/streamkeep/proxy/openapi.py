"""The part of `/openapi.json` that FastAPI cannot know: the raw routes, with their headers and errors."""

from __future__ import annotations

from typing import Any

from streamkeep.proxy.rules import wire

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_ERROR: Schema = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {**_TEXT, "description": "For machines"},
        "message": {**_TEXT, "description": "For people"},
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
        "contentType": {"type": ["string", "null"]},
        "upstreamStatus": {"type": ["integer", "null"]},
        "upstreamHeaders": {"type": "object", "additionalProperties": _TEXT},
        "state": {"enum": ["creating", "running", "done", "error", "cancelled"]},
        "code": {**_TEXT, "description": "How it ended"},
        "createdAt": {**_TEXT, "format": "date-time"},
    },
}
SCHEMAS: Schema = {"Error": _ERROR, "Generation": _GENERATION}


def _errors(**by_status: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status[1:]: {"description": text, "content": content} for status, text in by_status.items()}


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
_READ_HEADERS = _answered(
    wire.NEXT_OFFSET, wire.UP_TO_DATE, wire.CLOSED, wire.CURSOR, wire.UPSTREAM_STATUS, wire.UPSTREAM_CONTENT_ENCODING
)
_READ_ERRORS = _errors(
    _400="`invalid_offset`, `invalid_parameter`, `invalid_id`",
    _401="`signature_invalid`, `signature_expired`",
    _404="`not_found`: no such stream or generation, or upstream refused it",
    _410="`gone`: deleted, or ended longer ago than data are kept",
    _503="`not_started`: upstream has not answered yet; `storage_unavailable`",
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
_CREATE_HEADERS = _answered("Location", "Content-Type", wire.STREAM_TTL, wire.STREAM_EXPIRES_AT)
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
        ],
        "requestBody": {"content": {"*/*": {}}},
        "responses": {
            "201": {"description": "Created", "headers": {**_WRITE_HEADERS, **_CREATE_HEADERS}},
            "200": {"description": "It is there, as asked for", "headers": {**_WRITE_HEADERS, **_CREATE_HEADERS}},
            **_errors(
                _400="`invalid_path`, `invalid_header`, `invalid_offset`, `invalid_fork`, `invalid_json`",
                _403="`read_only`",
                _404="`not_found`: the source of the fork",
                _409="`stream_exists`, `content_type_mismatch`",
                _413="`body_too_large`",
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
                _503="`storage_unavailable`: stored or not",
            ),
        },
    },
    "get": _read("A stream of the open protocol", _STREAM_PATH),
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

PATHS: Schema = {
    "/v1/stream/{path}": _OPEN_STREAM,
    "/api/{session_id}/{request_id}": {
        "post": {
            "tags": ["transport"],
            "summary": "Forward a request; its response becomes a durable stream",
            "parameters": [
                *_IDS,
                _header(wire.PROXY_URL, "The URL to call; required unless resuming"),
                _header(wire.PROXY_METHOD, "GET, HEAD, PUT, PATCH, DELETE or POST (default)"),
                _header(wire.RESUME_ACTIVE_GENERATION, "Any value but `false`: find what runs, call nothing"),
            ],
            "requestBody": {"description": "Goes to upstream as it is", "content": {"*/*": {}}},
            "responses": {
                "200": {
                    "description": "Upstream accepted (any 2xx), or these ids are known and this joins or replays them",
                    "headers": _answered(wire.SESSION_ID, wire.REQUEST_ID, wire.REPLAYED),
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Generation"}}},
                },
                "204": {"description": "Resuming, and nothing runs"},
                "default": {
                    "description": "Upstream's own error: its status, headers and body, and `Upstream-Status`",
                    "headers": _answered(wire.UPSTREAM_STATUS),
                },
                **_errors(
                    _400="`missing_upstream_url`, `invalid_upstream_url`, `invalid_upstream_method`, `invalid_id`",
                    _403="`upstream_not_allowed`",
                    _409="`request_conflict`: the ids belong to another request; `cancelled`",
                    _410="`gone`: the ids were used before, and the data are gone",
                    _413="`body_too_large`",
                    _502="`upstream_unreachable`, `upstream_failed`, `redirect_refused`, `owner_lost`",
                    _503="`draining`, `storage_unavailable`, `shutdown`",
                    _504="`timed_out`",
                ),
            },
        }
    },
    "/stream/data": {
        "get": _read("A generation's bytes", _BY_IDS),
        "head": _head("Where a generation's bytes end", _BY_IDS),
    },
    "/stream/control": {
        "get": _read("A generation's terminal event", _BY_IDS),
        "head": _head("Where a generation's events end", _BY_IDS),
    },
} | {
    f"/v1/stream/generations/{{session_id}}/{{request_id}}/{which}": {
        "get": _read(f"A generation's {which} stream", _IDS),
        "head": _head(f"Where a generation's {which} stream ends", _IDS),
    }
    for which in ("data", "control")
}


def complete(schema: Schema) -> Schema:
    """Add the raw routes to FastAPI's own document."""
    for path, methods in PATHS.items():
        schema["paths"].setdefault(path, {}).update(methods)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(SCHEMAS)
    return schema
