"""Who may import whom: arrows point down the table of `docs/design.md`, section 2, only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "model": {"kernels"},
    "streaming": set(),
    "features": {"streaming"},
    "generation": {"model", "kernels"},
    "serving": {"model", "features", "streaming", "kernels"},
    "jobs": {"kernels", "model", "streaming", "features", "generation", "serving"},
}
CLIENTS = {"confluent_kafka", "pyflink", "redis", "feast", "fastapi"}  # a model that knows one of these is no longer only a model


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_is_below_it(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no files"
    forbidden = set(ALLOWED) - ALLOWED[folder] - {folder}
    wrong = {str(path.relative_to(ROOT)): sorted(names) for path in files if (names := imported(path) & forbidden)}
    assert not wrong


@pytest.mark.parametrize("folder", ["kernels", "model"])
def test_the_model_knows_no_service(folder: str) -> None:
    wrong = {str(path.relative_to(ROOT)): sorted(names) for path in (ROOT / folder).rglob("*.py") if (names := imported(path) & CLIENTS)}
    assert not wrong


def test_an_import_inside_a_function_counts(tmp_path: Path) -> None:
    path = tmp_path / "sneaky.py"
    path.write_text("def f():\n    from jobs.settings import load\n    return load\n")
    assert imported(path) == {"jobs"}
