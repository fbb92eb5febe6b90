"""What the repository may not contain."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".lock", ".html", ".js", ".css", ".sh", ""}
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:root|home/\w+|work|opt/wheels|Users/\w+)/")
REGISTRY = re.compile(r"pypi\.org|pythonhosted|repo1?\.maven|maven\.org|registry\.npmjs|download\.pytorch|deb\.debian", re.IGNORECASE)
UNPINNED = re.compile(r"^(?!#|$)(?![\w.\-]+==[\w.+!]+$)", re.MULTILINE)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def found(pattern: re.Pattern[str]) -> list[str]:
    """`file:line` of every match in the tracked text files, this one apart."""
    hits = []
    for path in tracked():
        if path.suffix in TEXT and path != Path(__file__):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if pattern.search(line):
                    hits.append(f"{path.relative_to(ROOT)}:{number}")
    return hits


def test_no_file_names_a_package_registry() -> None:
    assert found(REGISTRY) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert found(MACHINE_PATH) == []


def test_no_merge_was_left_half_done() -> None:
    assert found(re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)) == []


def test_nothing_is_loaded_by_pickle() -> None:
    assert [hit for hit in found(re.compile(r"\bpickle\.loads?\(|(?<!safetensors\.)torch\.load\(")) if not hit.startswith("tests/")] == []


def test_every_requirement_is_pinned_once() -> None:
    names: dict[str, str] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text()
        assert not UNPINNED.search(text), f"{path.name}: a line that is not name==version"
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name = line.partition("==")[0].lower().replace("_", "-")
                assert name not in names, f"{name} is in {path.name} and in {names[name]}"
                names[name] = path.name


def test_every_jar_is_pinned_by_its_digest() -> None:
    from jobs.local.jars import LOCK, parse

    jars = parse(LOCK.read_text())
    assert {jar.purpose for jar in jars} == {"broker", "connector", "parquet"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert len({jar.path for jar in jars}) == len(jars)
