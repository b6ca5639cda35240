"""A server of web pages on an origin of its own, as an application that uses the proxy has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_EMPTY_ICON = ("image/x-icon", b"")


@dataclass(slots=True)
class Pages:
    """The server: its origin in `url`, and what it serves, by path, as a content type and a body."""

    url: str
    contents: dict[str, tuple[str, bytes]] = field(default_factory=lambda: {"/favicon.ico": _EMPTY_ICON})

    def put(self, path: str, content: str | bytes, content_type: str = "text/html; charset=utf-8") -> str:
        """Serve something at a path; its whole URL."""
        self.contents[path] = (content_type, content.encode() if isinstance(content, str) else content)
        return self.url + path

    def put_module(self, path: str, module: str) -> str:
        """Serve a page that runs an ES module and has an element `main`; the page's URL."""
        self.put(f"{path}.js", module, "text/javascript; charset=utf-8")
        head = f'<meta charset="utf-8"><title>page</title><script type="module" src="{path}.js"></script>'
        return self.put(path, f'<!doctype html><html lang="en"><head>{head}</head><body><main></main></body></html>')


@contextmanager
def serving_pages() -> Iterator[Pages]:
    """Serve pages on a free port of 127.0.0.1."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content_type, body = pages.contents.get(self.path.partition("?")[0], (None, b""))
            self.send_response(404 if content_type is None else 200)
            self.send_header("Content-Type", content_type or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        pages = Pages(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield pages
        finally:
            server.shutdown()
            thread.join()
