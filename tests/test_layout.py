"""What the layout promises, read from the source itself: which way imports point, and what stays out of where."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    name: ROOT / name / "streamkeep" / name for name in ("adapters", "client", "demos", "proxy", "sessions", "storage")
}
ARROWS: dict[str, set[str]] = {
    "adapters": {"client", "sessions"},
    "client": {"sessions"},
    "demos": {"adapters", "client", "proxy", "sessions", "storage"},
    "proxy": {"sessions", "storage"},
    "sessions": set(),
    "storage": set(),
}
VENDOR_SDKS = {
    "agents",
    "anthropic",
    "google",
    "langchain",
    "langchain_core",
    "langchain_openai",
    "langgraph",
    "litellm",
    "openai",
    "pydantic_ai",
}
NOT_IN_RULES = {
    *("asyncio", "anyio", "concurrent", "multiprocessing", "selectors", "signal", "subprocess", "threading"),
    *("http", "socket", "ssl", "aiohttp", "httpx", "httptools", "fastapi", "starlette", "uvicorn", "uvloop", "urllib3"),
    *("io", "os", "pathlib", "platformdirs", "shutil", "tempfile", "asyncpg", "sqlite3"),
    *("random", "secrets", "tenacity", "time", "uuid", "logging"),
}
VAGUE_NAMES = {"common", "helpers", "manager", "misc", "util", "utils"}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: the package it belongs to, where it stands, and what it says."""

    package: str
    path: Path
    tree: ast.Module

    @property
    def is_rule(self) -> bool:
        return self.package == "sessions" or not {"rules", "_rules"}.isdisjoint(self.path.parts)

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"

    def imports(self) -> Iterator[tuple[str, ast.AST]]:
        """The full name of everything imported, inside functions too; `from a import b` is `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((f"{'.' * node.level}{node.module or ''}.{alias.name}", node) for alias in node.names)

    def calls(self) -> Iterator[tuple[str, ast.AST]]:
        """What is called, as it is written."""
        return ((ast.unparse(node.func), node) for node in ast.walk(self.tree) if isinstance(node, ast.Call))


@cache
def modules() -> list[Module]:
    return [
        Module(package, path, ast.parse(path.read_text("utf-8"), path))
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    ]


def rules() -> list[Module]:
    return [module for module in modules() if module.is_rule]


def test_no_import_is_relative() -> None:
    """Such an import would hide which way its arrow points."""
    assert [m.at(node) for m in modules() for name, node in m.imports() if name.startswith(".")] == []


def test_arrows_between_packages_point_one_way() -> None:
    assert [
        f"{m.at(node)} imports {name}"
        for m in modules()
        for name, node in m.imports()
        if name.startswith("streamkeep.") and name.split(".")[1] not in {m.package, *ARROWS[m.package]}
    ] == []


def test_vendor_sdks_are_imported_by_adapters_alone() -> None:
    assert [
        f"{m.at(node)} imports {name}"
        for m in modules()
        for name, node in m.imports()
        if m.package != "adapters" and name.split(".")[0] in VENDOR_SDKS
    ] == []


def test_rules_import_nothing_that_does_io_or_reads_a_clock() -> None:
    assert [
        f"{m.at(node)} imports {name}"
        for m in rules()
        for name, node in m.imports()
        if name.split(".")[0] in NOT_IN_RULES or name.startswith("urllib.request.")
    ] == []


def test_rules_await_nothing_open_nothing_and_ask_for_no_time() -> None:
    awaits = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    assert [m.at(node) for m in rules() for node in ast.walk(m.tree) if isinstance(node, awaits)] == []
    assert [
        f"{m.at(node)} calls {name}"
        for m in rules()
        for name, node in m.calls()
        if name in {"open", "print", "input"} or name.split(".")[-1] in {"now", "utcnow", "today"}
    ] == []


def test_only_main_modules_print() -> None:
    others = [module for module in modules() if module.path.name != "__main__.py"]
    assert [m.at(node) for m in others for name, node in m.calls() if name == "print"] == []


def test_only_main_modules_read_the_environment() -> None:
    """But for the embedded server, which hands it on to the programs that it starts."""
    others = [m for m in modules() if m.path.name != "__main__.py" and "embedded" not in m.path.parts]
    assert [
        m.at(node)
        for m in others
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
    ] == []


def test_no_middleware_stands_between_a_hot_path_and_its_reader() -> None:
    """Starlette's function middleware costs more for each chunk than everything else together."""
    proxy = [module for module in modules() if module.package == "proxy"]
    assert [m.at(node) for m in proxy for name, node in m.imports() if name.endswith(".BaseHTTPMiddleware")] == []
    assert [m.at(node) for m in proxy for name, node in m.calls() if name.endswith(".middleware")] == []


def test_init_modules_only_gather_names() -> None:
    def is_allowed(node: ast.stmt) -> bool:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_list_of_names = isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" in ast.unparse(node)
        return is_docstring or is_list_of_names or isinstance(node, ast.Import | ast.ImportFrom)

    inits = [module for module in modules() if module.path.name == "__init__.py"]
    assert [m.at(node) for m in inits for node in m.tree.body if not is_allowed(node)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_all_lists_every_public_name(package: str) -> None:
    namespace = importlib.import_module(f"streamkeep.{package}")
    init = next(module for module in modules() if module.path == PACKAGES[package] / "__init__.py")
    imported = {name.rpartition(".")[2] for name, _ in init.imports() if not name.startswith("__future__.")}
    assert sorted(namespace.__all__) == sorted(imported)
    assert [name for name in namespace.__all__ if not hasattr(namespace, name)] == []


def test_no_file_hides_the_other_folders_from_the_namespace() -> None:
    """An `__init__.py` beside one of the packages would, and the type checker would not notice."""
    for folder in PACKAGES.values():
        assert {path.name for path in folder.parent.iterdir()} - {"__pycache__"} == {folder.name}


def test_every_package_is_typed_and_every_folder_with_code_is_a_package() -> None:
    assert [str(folder) for folder in PACKAGES.values() if not (folder / "py.typed").exists()] == []
    assert [m.at(m.tree) for m in modules() if not (m.path.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_short_guide_that_names_files_which_exist(package: str) -> None:
    guide = (ROOT / package / "README.md").read_text("utf-8")
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", guide)
    assert guide.startswith("# ")
    assert len(guide.partition("\n## ")[0].splitlines()) <= 25, "without the how-tos that follow"
    assert [name for name in named if not (PACKAGES[package] / name).exists() and not (ROOT / name).exists()] == []


def test_module_names_say_what_a_thing_is() -> None:
    assert [m.at(m.tree) for m in modules() if m.path.stem.strip("_") in VAGUE_NAMES] == []


def test_names_on_the_wire_are_equal_on_both_sides() -> None:
    client = text_constants(PACKAGES["client"] / "_rules" / "wire.py")
    proxy = text_constants(PACKAGES["proxy"] / "rules" / "wire.py")
    shared = client.keys() & proxy.keys()
    assert shared, "the two sides share no name: one of them was renamed"
    assert {name: client[name] for name in shared} == {name: proxy[name] for name in shared}


def text_constants(path: Path) -> dict[str, str]:
    """The text constants of a module, in lower case: header names are compared without regard to case."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text("utf-8"), path).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value)))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(value)))
            ):
                found[name] = value.lower()
    return found
