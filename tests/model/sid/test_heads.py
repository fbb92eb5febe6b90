"""From states to a bundle: which items are paired, and heads that stay with the bundle."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.sids import command
from model.sid import heads
from model.sid.bundle import Bundle
from model.store import ModelStore


def pairs_of(found: heads.Pairs) -> dict[tuple[int, int], float]:
    return dict(zip(zip(found.left.tolist(), found.right.tolist(), strict=True), found.value.tolist(), strict=True))


def test_content_pairs_are_products_and_swing_and_an_item_alone_is_paired_with_itself() -> None:
    catalogue = pa.table(
        {"item_id": [10, 11, 12, 13, 14, 15], "product_id": ["a", "a", None, None, "b", "c"], "template_id": [1, 2, 2, 2, 3, 4]}
    )
    together = pa.table({"item_ids": [[12, 13, 99], [13, 12], [14, 15]]})
    content, creative = map(pairs_of, heads.mined(catalogue, together))
    assert set(content) == {(0, 1), (1, 0), (2, 3), (3, 2), (4, 4), (5, 5)}
    assert set(creative) == {(0, 0), (4, 4), (5, 5), *itertools.permutations([1, 2, 3], 2)}
    # Products and Swing are drawn equally often, and an item alone as often as another.
    assert content[0, 1] == pytest.approx(content[2, 3]) == pytest.approx(content[4, 4])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDSTREAM_HOME", str(tmp_path / "home"))
    (tmp_path / "sidstream.yaml").write_text("sids: {codes: 8, heads: {dimensions: 6, steps: 30, batch: 64}}\n")
    return tmp_path


def files(folder: Path, first: int, count: int, width: int = 10) -> tuple[str, str]:
    """A catalogue with products of two, and states of its items in another order, of products that are alike."""
    items = np.arange(first, first + count)
    pq.write_table(pa.table({"item_id": items, "product_id": items // 2}), folder / "catalogue.parquet")
    rng = np.random.default_rng(first)
    states = (np.random.default_rng(3).standard_normal((400, width))[items // 2] + 0.2 * rng.standard_normal((count, width)))[::-1]
    pq.write_table(pa.table({"item_id": items[::-1].copy(), "states": states.tolist()}), folder / "states.parquet")
    return str(folder / "catalogue.parquet"), str(folder / "states.parquet")


def sids(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--config", str(home / "sidstream.yaml")])


def test_build_trains_heads_over_states_and_append_uses_the_same(home: Path) -> None:
    catalogue, states = files(home, 0, 80)
    result = sids(home, "build", "--catalogue", catalogue, "--embeddings", states)
    assert result.exit_code == 0, result.output
    store = ModelStore(home / "home" / "models")
    old = Bundle.load(store)
    kept = heads.load(store, old.version)
    assert old.vectors()[0].shape == (80, 6)
    joined = pq.read_table(states).sort_by("item_id")
    assert np.allclose(kept.embed(*heads.states_of(joined))[0], old.vectors()[0], atol=1e-6)
    # An item of a product that is known already, with the very states of its twin, gets the twin's embedding.
    twin = joined["states"][7].as_py()
    pq.write_table(pa.table({"item_id": [500], "product_id": [3]}), catalogue)
    pq.write_table(pa.table({"item_id": [500], "states": [twin]}), states)
    result = sids(home, "append", catalogue, "--embeddings", states)
    assert result.exit_code == 0, result.output
    new = Bundle.load(store)
    assert (new.sids[:80] == old.sids).all() and np.allclose(new.vectors()[1][80], old.vectors()[1][7], atol=1e-6)
    assert new.version != old.version and heads.load(store, new.version).config == kept.config


def test_what_does_not_fit_is_refused_in_one_line(home: Path) -> None:
    catalogue, states = files(home, 0, 30)
    assert sids(home, "build", "--catalogue", catalogue, "--embeddings", states).exit_code == 0
    more, wide = files(home, 40, 4, width=12)

    def refused(code: int, line: str, *arguments: str) -> None:
        result = sids(home, *arguments)
        assert result.exit_code == code and line in result.stderr and "Traceback" not in result.stderr, result.output

    refused(1, "states of 12 numbers: the heads were trained on 10", "append", more, "--embeddings", wide)
    refused(2, "take one of them", "append", more, "--embeddings", wide, "--encoder", "transformers:x")
    refused(2, "the encoder x is unknown", "append", more, "--encoder", "x")
    refused(1, "column frames", "append", more, "--encoder", "transformers:x")
    pq.write_table(pq.read_table(wide).slice(1), wide)
    refused(1, "row 3 of the catalogue (item 43) has none", "append", more, "--embeddings", wide)
    refused(1, "item_id and states", "append", more, "--embeddings", more)
    states_of_nan = pa.table({"item_id": [40, 41, 42, 43], "states": [[1.0], [2.0], [float("nan")], [3.0]]})
    pq.write_table(states_of_nan, wide)
    refused(1, "column states: row 2 (item 42) is zero or not finite", "append", more, "--embeddings", wide)
