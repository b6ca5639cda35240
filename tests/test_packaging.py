"""What a user gets from `pip install`: the wheel's contents, and its commands in environments that hold nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.installed import UPSTREAM_BODY, free_port, read_to_the_end, running, tiny_upstream
from tests.serving import CERTIFICATES

ROOT = Path(__file__).parents[1]
PACKAGES = ("adapters", "client", "demos", "proxy", "sessions", "storage")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("client-only"), f"{wheel}")


@pytest.fixture(scope="module")
def with_proxy(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("with-proxy"), f"{wheel}[proxy]", "openai")


@pytest.fixture
def upstream() -> Iterator[str]:
    with tiny_upstream() as url:
        yield url


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def environment(folder: Path, *requirements: str) -> Path:
    """A new virtual environment that holds these and what they ask for, nothing else; gives the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip("--python", folder / "bin" / "python", "install", "--no-compile", *requirements)
    return folder / "bin"


def run(command: list[str | Path], cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=bare_environ(**extra), cwd=cwd, check=False, capture_output=True, text=True, timeout=60
    )


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, verify=CERTIFICATES, timeout=5).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)
        else:
            return


def bare_environ(**extra: str) -> dict[str, str]:
    """Nothing of this process's environment that could lead a command back to the source tree or to a database."""
    kept = ("PATH", "HOME", "TMPDIR", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ} | extra


def test_wheel_holds_every_source_file_and_nothing_besides(wheel: Path) -> None:
    source = {
        str(path.relative_to(ROOT / package))
        for package in PACKAGES
        for path in (ROOT / package / "streamkeep").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == source
    assert "streamkeep/__init__.py" not in packed
    assert {f"streamkeep/{package}/py.typed" for package in PACKAGES} <= packed
    assert "streamkeep/storage/postgres/migrations/0001_streams.sql" in packed


def test_wheel_carries_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_changelog_has_a_section_for_this_version() -> None:
    assert f"\n## {importlib.metadata.version('streamkeep')}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("arguments", [["--help"], ["fetch", "--help"]])
def test_client_install_has_the_clients_commands(client_only: Path, tmp_path: Path, arguments: list[str]) -> None:
    ended = run([client_only / "streamkeep", *arguments], tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "fetch" in ended.stdout


def test_client_install_says_what_serving_needs(client_only: Path, tmp_path: Path) -> None:
    ended = run([client_only / "streamkeep", "serve"], tmp_path)
    assert ended.returncode == 2
    assert "pip install 'streamkeep[proxy]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_client_install_imports_its_public_names_without_the_service(client_only: Path, tmp_path: Path) -> None:
    code = "from streamkeep.client import *; import sys; print(sorted(m for m in sys.modules if 'asyncpg' in m))"
    ended = run([client_only / "python", "-c", code], tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


def test_proxy_install_serves_a_generation_from_its_own_postgres(
    with_proxy: Path, upstream: str, tmp_path: Path
) -> None:
    environ = bare_environ(
        STREAMKEEP_PORT=str(free_port()), STREAMKEEP_DATA_DIR=str(tmp_path / "data"), STREAMKEEP_ALLOW=f"{upstream}/**"
    )
    with running([with_proxy / "streamkeep", "serve"], environ=environ, cwd=tmp_path, logs=tmp_path) as proxy:
        made = httpx.post(f"{proxy.url}/api/chat/1", headers={"X-Proxy-Url": f"{upstream}/v1/chat"}, content=b"{}")
        assert made.status_code == 200, made.text
        assert read_to_the_end(made.json()["streamUrl"]) == UPSTREAM_BODY
        loaded = {Path(library.path).parts for library in psutil.Process(proxy.process.pid).memory_maps()}
        for name in ("uvloop", "httptools", "asyncpg"):
            assert any(name in parts for parts in loaded), f"{name} is not in use"
        assert proxy.terminate() == 0, proxy.output
    assert f"ready at {proxy.url}" in proxy.output


def test_newcomers_pasted_example_is_killed_and_run_again(with_proxy: Path, tmp_path: Path) -> None:
    (tmp_path / "story.py").write_text((ROOT / "examples" / "resume_openai.py").read_text("utf-8"), "utf-8")
    ports = {"proxy": free_port(), "vendor": free_port()}
    proxy_url, vendor_url = (f"http://127.0.0.1:{port}" for port in ports.values())
    environ = bare_environ(
        HOME=str(tmp_path),
        STREAMKEEP_PORT=str(ports["proxy"]),
        STREAMKEEP_DATA_DIR=str(tmp_path / "data"),
        STREAMKEEP_ALLOW=f"{vendor_url}/**",
    )
    vending: list[str | Path] = [with_proxy / "streamkeep", "vendor", "--port", str(ports["vendor"])]
    story: list[str | Path] = [with_proxy / "python", "story.py", proxy_url, vendor_url]
    with (
        running([with_proxy / "streamkeep", "serve"], environ=environ, cwd=tmp_path, logs=tmp_path),
        subprocess.Popen(vending, env=environ, cwd=tmp_path) as vendor,
    ):
        try:
            wait_until_it_answers(f"{vendor_url}/_fake/calls")
            with subprocess.Popen(story, env=environ, cwd=tmp_path, stdout=subprocess.PIPE) as killed:
                assert killed.stdout is not None
                heard = killed.stdout.read(20)
                killed.kill()
                heard += killed.stdout.read()
            again = subprocess.run(story, env=environ, cwd=tmp_path, capture_output=True, check=True, timeout=60)
            assert again.stdout.startswith(heard)
            assert len(again.stdout) > len(heard)
            assert httpx.get(f"{vendor_url}/_fake/calls").json()["count"] == 1
        finally:
            vendor.terminate()
