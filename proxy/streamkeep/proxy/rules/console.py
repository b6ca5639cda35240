"""The console's pages: who gets them, and what a browser may do on them."""

from __future__ import annotations

_HTML = "text/html"

# Nothing but our own files, and no way to make markup or code of a text: what streams hold is shown and cannot run.
# Blobs are pictures, sound and video of types that the page lists.
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src 'self' blob:", "media-src blob:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        "require-trusted-types-for 'script'",
    )
)


def prefers_html(accept: str | None) -> bool:
    """Whether whoever asks is a browser: HTML is named, and nothing that is named weighs more."""
    weights: dict[str, float] = {}
    for part in (accept or "").lower().split(","):
        media_type, *parameters = (text.strip() for text in part.split(";"))
        weights[media_type] = _weight(parameters)
    wanted = weights.get(_HTML, 0.0)
    return wanted > 0 and wanted >= max(weights.values())


def _weight(parameters: list[str]) -> float:
    given = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    try:
        return float(given)
    except ValueError:
        return 0.0
