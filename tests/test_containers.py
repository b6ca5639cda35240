"""The compose file and the image: checked by the specification, and the image's steps played where no engine is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from compose_spec import PyCompose

from streamkeep.proxy import Settings
from tests.installed import free_port, running

ROOT = Path(__file__).parents[1]
# As it is with nothing set in the shell: every variable has its default.
COMPOSE = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text("utf-8"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of a Dockerfile."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    steps = re.sub(r"\\\n\s*", " ", "\n".join(lines)).split("\n")
    return [Instruction(*step.split(maxsplit=1)) for step in steps if step.strip()]


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE)
    return document


def test_compose_file_follows_the_compose_specification() -> None:
    PyCompose.from_yaml(COMPOSE).validate()


@pytest.mark.parametrize(("right", "wrong"), [("ports:", "port:"), ("40s", "forty"), ("service_healthy", "healthy")])
def test_check_of_the_compose_file_notices_mistakes(right: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.removesuffix(":")):
        PyCompose.from_yaml(COMPOSE.replace(right, wrong))


def test_compose_publishes_the_proxy_on_loopback_and_nothing_else() -> None:
    published = {name: service.get("ports", []) for name, service in compose()["services"].items()}
    assert published == {"postgres": [], "proxy": ["127.0.0.1:4000:4000"], "vendor": []}


def test_compose_gives_the_proxy_the_database_that_it_starts() -> None:
    services = compose()["services"]
    made = services["postgres"]["environment"]
    user, password, name = made["POSTGRES_USER"], made["POSTGRES_PASSWORD"], made["POSTGRES_DB"]
    assert services["proxy"]["environment"]["DATABASE_URL"] == f"postgresql://{user}:{password}@postgres:5432/{name}"
    assert services["proxy"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert re.fullmatch(r"postgres:\d+", services["postgres"]["image"]), "the major version is pinned"


def test_compose_declares_every_volume_that_it_mounts() -> None:
    document = compose()
    mounted = {volume.split(":")[0] for s in document["services"].values() for volume in s.get("volumes", [])}
    assert mounted == document["volumes"].keys()


def test_compose_waits_longer_for_the_end_than_the_proxy_drains() -> None:
    grace = re.fullmatch(r"(\d+)s", compose()["services"]["proxy"]["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) >= Settings().drain_seconds + 5


def test_every_variable_named_for_containers_is_a_setting() -> None:
    named = set(re.findall(r"\bSTREAMKEEP_\w+", COMPOSE + (ROOT / "Dockerfile").read_text("utf-8")))
    assert named <= {f"STREAMKEEP_{name.upper()}" for name in Settings.__dataclass_fields__}


def test_everything_that_the_image_copies_is_sent_to_the_engine() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    copied = {source for step in dockerfile() if step.name == "COPY" for source in step.words[:-1]}
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


def test_image_starts_from_a_python_that_the_package_admits() -> None:
    base = next(step.text for step in dockerfile() if step.name == "FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert version is not None
    assert int(version[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_image_runs_as_a_user_of_its_own() -> None:
    steps = dockerfile()
    user = next(step for step in steps if step.name == "USER")
    assert user.text not in {"root", "0"}
    assert any(step.name == "RUN" and step.words[0] == "useradd" and user.text in step.words for step in steps)
    assert [step.name for step in steps].index("USER") < [step.name for step in steps].index("CMD")


@dataclass(slots=True)
class PlayedImage:
    """A Dockerfile's steps played in a folder that starts out empty; a virtual environment stands for the base image.

    Only `useradd` is left out, since it would change the machine; the command runs as whoever runs the tests.
    """

    folder: Path
    working_directory: Path = field(init=False)
    environ: dict[str, str] = field(init=False)
    command: list[str] = field(init=False)
    healthcheck: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.working_directory = self.folder
        kept = {name: value for name, value in os.environ.items() if not fnmatch(name, "STREAMKEEP_*")}
        self.environ = kept | {"PATH": f"{self.folder / 'base' / 'bin'}:/usr/bin:/bin"}
        self.environ.pop("DATABASE_URL", None)
        self.environ.pop("PYTHONPATH", None)

    def play(self, step: Instruction) -> None:
        match step.name:
            case "FROM":
                subprocess.run([sys.executable, "-m", "venv", self.folder / "base"], check=True)
            case "ENV":
                pairs = (word.split("=", 1) for word in step.words)
                self.environ |= {name: self._here(value) for name, value in pairs}
            case "WORKDIR":
                self.working_directory = Path(self._here(step.text))
                self.working_directory.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(*step.words)
            case "RUN":
                self._run([word for word in step.words if not word.startswith("--mount=")])
            case "CMD":
                self.command = json.loads(step.text)
            case "HEALTHCHECK":
                self.healthcheck = json.loads(step.text.partition(" CMD ")[2])
            case "USER" | "EXPOSE":
                pass
            case other:
                pytest.fail(f"this test does not know what {other} does")

    def is_healthy(self) -> bool:
        probe = subprocess.run(self.healthcheck, check=False, env=self.environ, stderr=subprocess.DEVNULL)
        return probe.returncode == 0

    def _here(self, value: str) -> str:
        """A path of the image as one below the folder; anything else as it is."""
        return str(self.folder / value[1:]) if value.startswith("/") else value

    def _copy(self, *words: str) -> None:
        *sources, destination = words
        target = self.working_directory / destination
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)

    def _run(self, command: list[str]) -> None:
        if command[0] != "useradd":
            subprocess.run(command, env=self.environ, cwd=self.working_directory, check=True)


@pytest.mark.slow
def test_steps_of_the_image_make_a_proxy_that_answers_and_stops(tmp_path: Path, database_url: str) -> None:
    image = PlayedImage(tmp_path)
    for step in dockerfile():
        image.play(step)
    image.environ |= {"DATABASE_URL": database_url, "STREAMKEEP_PORT": str(free_port())}
    assert not image.is_healthy()
    with running(image.command, environ=image.environ, cwd=image.working_directory, logs=tmp_path) as proxy:
        assert image.is_healthy()
        assert proxy.terminate() == 0, proxy.output
    assert not Path(image.environ["STREAMKEEP_DATA_DIR"], "postgres").exists(), "DATABASE_URL names the server"


@pytest.fixture
def engine() -> None:
    for command in (["docker", "compose", "version"], ["docker", "info"]):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            pytest.skip(f"no Docker engine answers ({shlex.join(command)} failed): no container was run")


@pytest.fixture
def composed(engine: None) -> Iterator[str]:
    """The compose file's services, running; gives the URL on which the host reaches the proxy."""
    port = free_port()
    command = ["docker", "compose", "--project-name", f"streamkeep-test-{uuid.uuid4().hex[:8]}"]
    environ = os.environ | {"STREAMKEEP_PORT": str(port)}
    try:
        subprocess.run([*command, "up", "--build", "--detach", "--wait"], cwd=ROOT, env=environ, check=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "down", "--volumes", "--rmi", "local"], cwd=ROOT, env=environ, check=True)


@pytest.mark.slow
def test_composed_proxy_answers_on_the_hosts_loopback(composed: str) -> None:
    assert httpx.get(f"{composed}/ready").status_code == 200
