"""`sidstream sids` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jobs.sids import command
from model.sid.bundle import CODEBOOKS, FOLDER, POINTER, Bundle
from model.store import ModelStore


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDSTREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def sids(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_build_writes_the_bundle_makes_it_current_and_prints_its_quality(home: Path) -> None:
    result = sids("build", "--items", "150", "--users", "10", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    loaded = Bundle.load(ModelStore(home / "models"))
    assert loaded.version == printed["version"] and loaded.quality == printed["quality"]
    assert len(loaded.item_ids) == 150


def test_report_prints_what_build_printed(home: Path) -> None:
    built = sids("build", "--items", "150", "--users", "10")
    reported = sids("report")
    assert reported.exit_code == 0
    assert built.stdout.splitlines()[1:] == reported.stdout.splitlines()[1:]
    assert "collision, share of videos" in reported.stdout


def test_sizes_come_from_the_configuration(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "sidstream.yaml"
    config.write_text(f"model_store: {tmp_path / 'elsewhere'}\nsids: {{content_levels: 1, creative_levels: 2, codes: 5}}\n")
    assert sids("build", "--items", "60", "--users", "5", "--config", str(config)).exit_code == 0
    assert Bundle.load(ModelStore(tmp_path / "elsewhere")).code_counts == (5, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["build", "--source", "kuairand"], 2, "needs --dir"),
        (["build", "--source", "kuairand", "--dir", "/nonexistent"], 1, "/nonexistent is not a folder"),
        (["report"], 1, "sids build"),
        (["report", "--version", "sid-none"], 1, "no bundle sid-none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(home: Path, arguments: list[str], code: int, line: str) -> None:
    result = sids(*arguments)
    assert result.exit_code == code
    assert line in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_report_refuses_a_damaged_bundle_by_file(home: Path) -> None:
    sids("build", "--items", "60", "--users", "5")
    store = ModelStore(home / "models")
    path = store.local_path(f"{FOLDER}/{store.pointer(POINTER)}/{CODEBOOKS}")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-4])
    result = sids("report")
    assert result.exit_code == 1 and CODEBOOKS in result.stderr
