"""Keys from outside: the command, servers that run meanwhile, and the first start."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time

import httpx
import pytest

from streamkeep.proxy.__main__ import main
from streamkeep.proxy.rules.signing import Signer
from streamkeep.storage import StreamKey
from streamkeep.storage.postgres import PostgresStore
from tests.serving import ServedProcess, served_process, serving

KEY = re.compile(r"stk_[0-9a-f]{16}_[0-9a-f]{64}")


async def command(*arguments: str, database_url: str) -> tuple[int | None, str, str]:
    """Run `streamkeep …`: exit code, output, errors."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMKEEP_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamkeep.proxy", *arguments),
        env={**environ, "DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


async def made(database_url: str, *arguments: str) -> str:
    code, said, _ = await command("keys", "create", *arguments, database_url=database_url)
    assert code == 0
    assert KEY.fullmatch(said.strip())
    return said.strip()


async def status(process: ServedProcess, key: str | None = None) -> int:
    headers = {} if key is None else {"Streamkeep-Key": key}
    return (await process.client.get("/v1/stream/a", headers=headers)).status_code


async def until(process: ServedProcess, expected: int, key: str | None = None) -> None:
    async with asyncio.timeout(60):
        while await status(process, key) != expected:
            await asyncio.sleep(0.05)


async def test_n21_a_running_server_learns_of_its_first_key_and_of_its_end(database_url: str) -> None:
    async with served_process(database_url=database_url) as process:
        assert await status(process) == 404
        key = await made(database_url, "--tenant", "acme", "--name", "n", "--upstream", "openai", "--expires", "30d")
        await until(process, 401)
        assert await status(process, key) == 404
        _, listed, _ = await command("keys", "list", database_url=database_url)
        assert "acme\tactive\tn\topenai" in listed
        assert key.split("_")[1] in listed
        assert key.split("_")[2] not in listed
        assert (await command("keys", "revoke", key, database_url=database_url))[0] == 0
        await until(process, 401, key)
        assert await status(process) == 401


async def test_without_keys_nobody_else_is_served(database_url: str) -> None:
    code, said, complained = await command("serve", "--host", "0.0.0.0", "--port", "0", database_url=database_url)
    assert (code, said) == (2, "")
    assert "streamkeep keys create" in complained


async def test_the_first_start_makes_a_key_and_shows_it_once(database_url: str) -> None:
    for is_first in (True, False):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streamkeep.proxy", "serve", "--host", "0.0.0.0", "--port", "0", "--first-key"),
            env={**os.environ, "DATABASE_URL": database_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            said = (await process.stdout.readuntil(b"Stop: Ctrl-C\n")).decode()
            shown = set(KEY.findall(said))
            assert len(shown) == is_first
            port = re.search(r"http://0\.0\.0\.0:([0-9]+)", said)
            assert port is not None
            base = f"http://127.0.0.1:{port[1]}"
            async with httpx.AsyncClient(base_url=base) as client:
                assert (await client.get("/v1/stream/a")).status_code == 401
                for key in shown:
                    assert (await client.get("/v1/stream/a", headers={"Streamkeep-Key": key})).status_code == 404
            process.terminate()
            await process.wait()


async def test_an_instance_learns_of_a_new_signing_key_when_it_meets_one(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with serving(store) as proxy:
        await proxy.client.put("/v1/stream/a")
        key = await store.keys.rotate_signing_key(b"n" * 32)
        signer = Signer(key.id, {key.id: key.secret})
        query = signer.query(StreamKey("default", "a"), expires=int(time.time()) + 60)
        async with asyncio.timeout(60):
            while (await proxy.client.get(f"/v1/stream/a?{query}")).status_code != 200:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--tenant", "a/b"],
        ["create", "--upstream", "https://**"],
        ["create", "--max-running", "0"],
        ["create", "--max-per-minute", "many"],
        ["create", "--expires", "soon"],
        ["create", "--expires", "999999w"],
        ["create", "--name", "two\nlines"],
        ["revoke", "stk_nothing"],
        [],
    ],
)
def test_a_misused_command_says_so(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    code = main(["keys", *arguments])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert "Usage: streamkeep keys" in said.err
