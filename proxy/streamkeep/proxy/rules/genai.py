"""What a call to a model is named in traces, by the semantic conventions for generative AI. It labels, and decides nothing.

Beside `endings.py` the only place that knows vendors, and looked at only while tracing is on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_MODEL_BODY_BYTES = 256 * 1024
"""Larger request bodies are not parsed for the name of their model: it would keep others waiting."""

_MAX_NAME_LENGTH = 200
_OPERATIONS = (
    (re.compile(r"/chat/completions/?$|/v1/messages/?$|/responses/?$|/api/chat/?$"), "chat"),
    (re.compile(r"/completions/?$"), "text_completion"),
    (re.compile(r"/embeddings/?$|:(?:batchE|e)mbedContents?$"), "embeddings"),
    (re.compile(r":(?:streamG|g)enerateContent$"), "generate_content"),
)
_MODEL_IN_PATH = re.compile(r"/(?:models|deployments)/([^/:]+)")
_PROVIDERS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.mistral.ai": "mistral_ai",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "x_ai",
    "api.cohere.com": "cohere",
    "api.perplexity.ai": "perplexity",
}
_PROVIDERS_BY_SUFFIX = {
    ".openai.azure.com": "azure.ai.openai",
    ".services.ai.azure.com": "azure.ai.inference",
    "-aiplatform.googleapis.com": "gcp.vertex_ai",
    ".amazonaws.com": "aws.bedrock",
}


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request to an upstream as a trace names it. `operation` is None where it is no call to a model that we know,
    `provider` and `model` where they are not known."""

    operation: str | None
    provider: str | None
    model: str | None
    address: str
    port: int

    @classmethod
    def of(cls, url: str, body: bytes | None) -> ModelCall:
        """Read a URL that was allowed already, and the request's body if it is at hand."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
        operation = next((name for path, name in _OPERATIONS if path.search(parts.path)), None)
        if operation is None:
            return cls(None, None, None, host, port)
        return cls(operation, _provider(host), _model_in(body) or _model_at(parts.path), host, port)


def clean_name(value: object) -> str | None:
    """A vendor's word as a label: text of a bounded length that every encoder takes."""
    if not isinstance(value, str) or not value:
        return None
    return value[:_MAX_NAME_LENGTH].encode(errors="replace").decode()


def _provider(host: str) -> str | None:
    by_suffix = (name for suffix, name in _PROVIDERS_BY_SUFFIX.items() if host.endswith(suffix))
    return _PROVIDERS.get(host) or next(by_suffix, None)


def _model_in(body: bytes | None) -> str | None:
    if not body or len(body) > MAX_MODEL_BODY_BYTES:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return clean_name(value.get("model")) if isinstance(value, dict) else None


def _model_at(path: str) -> str | None:
    found = _MODEL_IN_PATH.search(path)
    return None if found is None else clean_name(found[1])
