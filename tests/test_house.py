"""The rules of the house, kept by tests: who may import whom, what a module is called, what is bounded."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APPS = ("tenants", "billing", "gateway", "dashboard", "demo")
# Who may import whom, itself aside. Hidden imports inside functions count.
MAY_IMPORT = {
    "tenants": set(),
    "billing": {"tenants"},
    "gateway": {"tenants", "billing"},
    "dashboard": {"tenants", "billing", "gateway"},
    "demo": {"gateway"},
}
DRAWERS = {"utils", "helpers", "services", "common", "misc", "base", "manager"}
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
TEST_FILE_LINES_MAX = 700


def tracked(pattern: str) -> list[Path]:
    """Return the files of the project, as git knows them or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


SOURCES = [path for path in tracked("*.py") if "migrations" not in path.parts]
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]


def app_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_run_one_way(path: Path) -> None:
    app = app_of(path)
    if app not in MAY_IMPORT:
        return

    for module in imported(path):
        other = module.split(".")[0]
        allowed = other not in APPS or other == app or other in MAY_IMPORT[app]
        assert allowed, f"{app} imports {module}"


def test_the_demo_takes_only_the_counting_from_the_gateway() -> None:
    for path in SOURCES:
        if app_of(path) == "demo":
            foreign = {name for name in imported(path) if name.split(".")[0] == "gateway"}
            assert all(name.startswith(("gateway.counting", "gateway.errors")) for name in foreign)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_modules_are_nouns_and_short(path: Path) -> None:
    assert path.stem not in DRAWERS
    lines_max = TEST_FILE_LINES_MAX if app_of(path) == "tests" else FILE_LINES_MAX
    assert len(path.read_text().splitlines()) <= lines_max


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_functions_are_one_thought(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def test_views_reach_data_only_through_their_organization() -> None:
    for path in SOURCES:
        if path.parent.name == "api" or path.stem == "views":
            assert ".objects" not in path.read_text(), path


def test_the_data_plane_holds_no_database_connection() -> None:
    """Only the loader's thread uses the ORM; the rest of the hot path must not even import a way to it."""
    for path in tracked("gateway/api/*.py") + [
        ROOT / "gateway" / f"{name}.py"
        for name in ("handler", "relay", "listener", "protocol", "sse")
    ]:
        assert not {"django.db", "django.db.models"} & set(imported(path)), path


def test_the_counting_is_pure() -> None:
    for path in [
        *tracked("gateway/counting/*.py"),
        *(ROOT / "billing" / f"{name}.py" for name in ("money", "periods", "rating", "tiers")),
        ROOT / "gateway/metering.py",
    ]:
        assert not any(module.startswith("django") for module in imported(path)), path


def test_every_variable_is_in_the_example() -> None:
    code = "".join(path.read_text() for path in tracked("gateway/settings.py"))
    read = set(re.findall(r'env_\w+\(\s*"([A-Z_]+)"', code))
    example = (ROOT / ".env.example").read_text()
    listed = set(re.findall(r"^#? ?([A-Z_]+)=", example, re.M))

    assert len(read) > 20
    assert read - listed == set()
    assert listed - read == set()


def test_requirements_are_pinned_and_hashed() -> None:
    for path in tracked("requirements*.txt"):
        text = path.read_text()
        assert "://" not in text, "an index or a URL"
        for block in re.split(r"\n(?=[a-z])", text):
            assert "==" in block.splitlines()[0]
            assert "--hash=sha256:" in block


def test_each_app_says_what_it_owns() -> None:
    for app in ("tenants", "billing", "gateway", "dashboard"):
        text = (ROOT / app / "README.md").read_text().lower()
        assert all(word in text for word in ("owns", "does not own", "invariants")), app


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in tracked("docs/decisions/*.md"))

    assert numbers == list(range(1, len(numbers) + 1))
