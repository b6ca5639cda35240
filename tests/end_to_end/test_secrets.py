"""What is secret stays out of the logs: keys in headers and queries, bodies, signed URLs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.serving import served_process
from tests.upstream import upstream, whole


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_reaches_the_log_whatever_happens(database_url: str, tmp_path: Path, log_format: str) -> None:
    """Text for people, and JSON for machines."""
    log = tmp_path / "log"
    key = base64.b64encode(b"0123456789 key-secret 0123456789"[:32]).decode()
    environ = {
        "STREAMKEEP_LOG_LEVEL": "debug",
        "STREAMKEEP_LOG_FORMAT": log_format,
        "STREAMKEEP_ENCRYPTION_KEYS": f"*={key}",
    }
    async with (
        upstream(whole(b"data: the-answer\n\n")) as server,
        served_process(database_url=database_url, log=log, environ=environ) as process,
    ):
        headers = {"X-Proxy-Url": f"{server.url}/v1?key=query-secret", "Authorization": "Bearer header-secret"}
        created = await process.client.post("/api/chat/1", headers=headers, content=b"body-secret")
        assert created.status_code == 200
        stream_url = created.json()["streamUrl"]
        signature = stream_url.partition("signature=")[2]
        assert (await process.client.get(stream_url + "&live=long-poll&offset=-1")).status_code == 200
        refused = {**headers, "X-Proxy-Url": "http://user:pass-secret@10.0.0.1/?key=query-secret"}
        answers = [
            await process.client.post("/api/chat/2", headers=refused, content=b"body-secret"),
            await process.client.post(
                "/api/chat/3", headers={**headers, "X-Proxy-Url": "http://127.0.0.1:9/?key=query-secret"}
            ),
            await process.client.get(stream_url[:-3]),
        ]
        assert [answer.status_code for answer in answers] == [400, 502, 401]
        deleted = await process.client.delete("/api/chat/1")
        assert deleted.status_code == 200
        answers += [deleted, await process.client.get(stream_url)]
        assert answers[-1].status_code == 410
        said = json.dumps([answer.json() for answer in answers])
    written = log.read_text()
    assert "POST /api/chat/1" in written
    if log_format == "json":
        lines = [json.loads(line) for line in written.splitlines()]
        paths = {line["path"] for line in lines if "path" in line}
        assert {"/api/chat/1", "/stream/data"} <= paths
        assert all(line["request"] for line in lines if "path" in line)
    for secret in ("query-secret", "header-secret", "body-secret", "pass-secret", "the-answer", signature, key):
        assert secret not in written
        assert secret not in said
