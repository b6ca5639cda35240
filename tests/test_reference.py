"""The API reference as `make reference` builds it: every public name is in it and explained, and no link leads nowhere."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    *(
        "streamkeep.client",
        "streamkeep.client.sessions",
        "streamkeep.client.state",
        "streamkeep.proxy",
        "streamkeep.storage",
    ),
    *(f"streamkeep.adapters.{path.stem}" for path in sorted((ROOT / "adapters/streamkeep/adapters").glob("[a-z]*.py"))),
]
MODULES.remove("streamkeep.adapters.litellm")  # it cannot be imported where the other SDKs are


class Page(HTMLParser):
    """What a page points to, and what can be pointed to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value and ":" not in value:
                self.links.add(value)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    build = ["make", "reference", f"VENV={sys.prefix}", f"REFERENCE={folder}"]
    made = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    return folder


def public_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    told = getattr(module, "__all__", ())
    for name, value in vars(module).items():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if name in told or (not told and value.__module__ == module.__name__ and not name.startswith("_")):
            yield name, value


def is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False))


def members(cls: type) -> Iterator[tuple[str, object]]:
    """What the class itself brings; what it takes over from other packages' classes is explained there."""
    foreign = {name for base in cls.__mro__ if not base.__module__.startswith("streamkeep.") for name in vars(base)}
    for name, value in inspect.getmembers(cls):
        is_own = name in vars(cls) and name not in foreign and not name.startswith("_")
        if is_own and (inspect.isroutine(value) or isinstance(value, property)):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_explained(name: str) -> None:
    module = importlib.import_module(name)
    classes = [value for _, value in public_names(module) if inspect.isclass(value)]
    by_protocol = {
        member for cls in classes if is_protocol(cls) for member, what in members(cls) if inspect.getdoc(what)
    }
    bare = [public for public, value in public_names(module) if not inspect.getdoc(value)]
    for cls in classes:
        explained = set() if is_protocol(cls) else by_protocol
        bare += [f"{cls.__name__}.{n}" for n, what in members(cls) if not inspect.getdoc(what) and n not in explained]
    assert inspect.getdoc(module)
    assert bare == []


def test_every_public_name_is_in_the_reference(reference: Path) -> None:
    missing = []
    for name in MODULES:
        page = Page((reference / (name.replace(".", "/") + ".html")).read_text())
        missing += [
            f"{name}.{public}" for public, _ in public_names(importlib.import_module(name)) if public not in page.ids
        ]
    assert missing == []


def test_no_link_of_the_reference_leads_nowhere(reference: Path) -> None:
    pages = {path.relative_to(reference): Page(path.read_text()) for path in reference.rglob("*.html")}
    assert len(pages) > len(MODULES)
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, fragment = urldefrag(unquote(link))
            where = (reference / path).parent / target if target else reference / path
            found = pages.get(where.resolve().relative_to(reference.resolve())) if where.is_file() else None
            if found is None or (fragment and fragment not in found.ids):
                broken.append(f"{path}: {link}")
    assert broken == []
