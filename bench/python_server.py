"""Serves an application of ASGI that is named as `module:name`, as uvicorn serves ours; its first line of output is the base URL."""

from __future__ import annotations

import socket
import sys

import uvicorn


def main() -> int:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            sys.argv[1], loop="uvloop", http="httptools", log_level="warning", access_log=False, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
