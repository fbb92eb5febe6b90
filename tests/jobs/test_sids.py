"""`sidstream sids` as a person types it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.sids import command
from model.sid import minibatch
from model.sid.bundle import CODEBOOKS, FOLDER, POINTER, Bundle
from model.sid.versions import Migration
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
        (["append", "nowhere.parquet"], 1, "sids build"),
        (["build", "--catalogue", "nowhere.parquet"], 2, "nowhere.parquet cannot be read as a Parquet file"),
        (["migrate", "--from", "sid-none"], 1, "no bundle sid-none"),
        (["migrate", "--from", "sid-none", "--out", "new.parquet"], 2, "--sids and --out belong together"),
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


def file_of(path: Path, first: int, count: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed + first)
    vectors = {name: rng.standard_normal((count, 6)).tolist() for name in ("content", "creative")}
    pq.write_table(pa.table({"item_id": np.arange(first, first + count), **vectors}), path)
    return path


@pytest.fixture
def made(home: Path, tmp_path: Path) -> ModelStore:
    """A store with a bundle of items 0 to 59, made from a file."""
    result = sids("build", "--catalogue", str(file_of(tmp_path / "catalogue.parquet", 0, 60)))
    assert result.exit_code == 0, result.output
    return ModelStore(home / "models")


def test_append_makes_a_new_current_version_where_no_old_sid_has_changed(made: ModelStore, tmp_path: Path) -> None:
    old = Bundle.load(made)
    result = sids("append", str(file_of(tmp_path / "more.parquet", 60, 15)), "--json")
    assert result.exit_code == 0, result.output
    new = Bundle.load(made)
    assert json.loads(result.stdout) | {"quality": None} == {"version": new.version, "parent": old.version, "appended": 15, "quality": None}
    assert (new.sids_of(old.item_ids) == old.sids).all() and len(new.item_ids) == 75


def test_migrate_writes_the_map_and_translates_a_file(made: ModelStore, tmp_path: Path) -> None:
    old = Bundle.load(made)
    assert sids("build", "--catalogue", str(file_of(tmp_path / "later.parquet", 0, 60)), "--seed", "9").exit_code == 0
    new = Bundle.load(made)
    strange = next(list(sid) for sid in np.ndindex(*old.code_counts) if not old.items_of(sid))
    asked, out = tmp_path / "asked.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"sid": [old.sids[7].tolist(), strange], "note": ["a", "b"]}), asked)
    result = sids("migrate", "--from", old.version, "--sids", str(asked), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "60 items are in both" in result.stdout and "1 of them to nothing" in result.stdout
    assert pq.read_table(out).to_pylist() == [{"sid": new.sids[7].tolist(), "note": "a"}, {"sid": None, "note": "b"}]
    assert Migration.load(made, old.version, new.version).items.num_rows == 60


@pytest.mark.parametrize(
    ("sid", "line"), [([0, 0, 0, 99], "row 1 is [0, 0, 0, 99]"), ([0, 0], "row 1: [0, 0] is no SID"), (None, "row 1: None")]
)
def test_sids_out_of_the_vocabulary_are_refused_by_row(made: ModelStore, tmp_path: Path, sid: list[int] | None, line: str) -> None:
    old = Bundle.load(made)
    asked = tmp_path / "asked.parquet"
    pq.write_table(pa.table({"sid": [old.sids[0].tolist(), sid]}), asked)
    result = sids("migrate", "--from", old.version, "--sids", str(asked), "--out", str(tmp_path / "out.parquet"))
    assert result.exit_code == 1 and line in result.stderr and not (tmp_path / "out.parquet").exists()


def test_broken_embeddings_and_known_items_are_refused_by_row(made: ModelStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "broken.parquet", 60, 5)
    table = pq.read_table(path)
    vectors = table["content"].to_pylist()
    vectors[3][2] = math.nan
    pq.write_table(table.set_column(1, "content", pa.array(vectors)), path)
    for arguments in (["append", str(path)], ["build", "--catalogue", str(path)]):
        result = sids(*arguments)
        assert result.exit_code == 1 and "column content: row 3 (item 63) is zero or not finite" in result.stderr
    known = sids("append", str(file_of(tmp_path / "known.parquet", 59, 2)))
    assert known.exit_code == 1 and "item 59 is in bundle" in known.stderr


def test_variants_come_from_the_configuration(home: Path, tmp_path: Path) -> None:
    config, catalogue = tmp_path / "sidstream.yaml", file_of(tmp_path / "catalogue.parquet", 0, 60)
    config.write_text("sids: {codes: 8, hash_columns: [item_id], balance: exact}\n")
    assert sids("build", "--catalogue", str(catalogue), "--config", str(config)).exit_code == 0
    loaded = Bundle.load(ModelStore(home / "models"))
    assert loaded.levels == 5 and loaded.recipe.hash_columns == ("item_id",) and loaded.recipe.variant.balance == "exact"


def test_plots_are_drawn_into_a_folder(made: ModelStore, tmp_path: Path) -> None:
    result = sids("report", "--plots", str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    drawn = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in drawn] == ["probe.png", "recall.png", "usage.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_build_by_mini_batches_that_was_killed_goes_on_to_the_same_bundle(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, catalogue = tmp_path / "sidstream.yaml", file_of(tmp_path / "catalogue.parquet", 0, 200)
    config.write_text("sids: {codes: 8, content_levels: 1, creative_levels: 1, minibatch: always, minibatch_steps: 21}\n")
    arguments = ["build", "--catalogue", str(catalogue), "--config", str(config)]
    assert sids(*arguments).exit_code == 0
    unbroken = Bundle.load(ModelStore(home / "models"))
    monkeypatch.setenv("SIDSTREAM_HOME", str(tmp_path / "other"))
    saved = minibatch._State.save
    calls = []

    def killed(*state: Any) -> None:
        saved(*state)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(minibatch._State, "save", killed)
        assert sids(*arguments).exit_code != 0
    assert list((tmp_path / "other" / "checkpoints" / "sids").iterdir())
    result = sids(*arguments)
    assert result.exit_code == 0 and "resumed=True" in result.stderr
    assert Bundle.load(ModelStore(tmp_path / "other" / "models")).version == unbroken.version
    assert not list((tmp_path / "other" / "checkpoints" / "sids").iterdir())


def test_mini_batches_refuse_variants_that_they_do_not_have(home: Path, tmp_path: Path) -> None:
    config, catalogue = tmp_path / "sidstream.yaml", file_of(tmp_path / "catalogue.parquet", 0, 20)
    config.write_text("sids: {codes: 8, minibatch: always, balance: exact}\n")
    result = sids("build", "--catalogue", str(catalogue), "--config", str(config))
    assert result.exit_code == 2 and "sids.minibatch to never" in result.stderr
