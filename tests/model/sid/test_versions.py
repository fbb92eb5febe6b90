"""Versions of a bundle: what is appended changes nothing, and every old SID is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.sid import bundle, versions
from model.sid.bundle import Bundle, BundleError, Recipe
from model.sid.encoder import CatalogueError
from model.store import ModelStore


def attributes(items: int, first: int = 0, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([seed, first])
    return pa.table(
        {
            "item_id": np.arange(first, first + items),
            "author_id": rng.integers(20, size=items),
            "tag": rng.integers(9, size=items),
            "video_type": rng.choice(["NORMAL", "AD"], items),
            "upload_type": rng.choice(["Web", "Camera", "Import"], items),
            "duration_ms": rng.integers(5_000, 90_000, items),
            "width": rng.choice([540, 720], items),
            "height": rng.choice([960, 1280], items),
            "music_id": rng.integers(40, size=items),
            "music_type": rng.integers(4, size=items),
        }
    )


def embedded(items: int, first: int = 0, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([seed, first, 1])
    columns = {"content": list(rng.standard_normal((items, 6))), "creative": list(rng.standard_normal((items, 4)))}
    table = attributes(items, first, seed).select(["item_id", "tag"])
    for name, rows in columns.items():
        table = table.append_column(name, pa.array(rows, pa.list_(pa.float32())))
    return table


@pytest.fixture(scope="module")
def old() -> Bundle:
    return bundle.build(embedded(150), codes=8)


def test_appending_changes_no_sid_and_says_where_it_comes_from(old: Bundle) -> None:
    new = versions.append(old, embedded(40, 1000))
    assert (new.sids[:150] == old.sids).all() and new.version != old.version and new.parent == old.version
    assert all(a.tobytes() == b.tobytes() for a, b in zip(old.content + old.creative, new.content + new.creative, strict=True))
    assert new.item_ids[150:].tolist() == list(range(1000, 1040))
    assert len(np.unique(new.sids, axis=0)) == 190
    assert old.item_ids.shape == (150,)


def test_a_new_video_with_the_embeddings_of_an_old_one_takes_its_sid(old: Bundle) -> None:
    twin = old.catalogue.slice(7, 1).drop_columns(["sid"]).set_column(0, "item_id", pa.array([5000]))
    assert versions.append(old, twin).sid_of(5000) == old.sid_of(7)


def test_attributes_alone_are_embedded_where_the_old_items_lie() -> None:
    whole = attributes(400)
    old = bundle.build(whole.slice(0, 360), codes=16)
    new = versions.append(old, whole.slice(360, 40))
    assert (new.sids[:360] == old.sids).all()
    # A video that is appended is near the old one that has all its attributes but the id.
    copy = whole.slice(0, 40).set_column(0, "item_id", pa.array(range(9000, 9040)))
    content, creative = (vectors[360:] for vectors in versions.append(old, copy).vectors())
    ours = old.vectors()
    assert (content * ours[0][:40]).sum(axis=1).mean() > 0.9 and (creative * ours[1][:40]).sum(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (embedded(5, 148), "item 148 is in bundle sid-.* already"),
        (pa.concat_tables([embedded(2, 900), embedded(2, 900)]), "occurs 2 times"),
        (embedded(3, 900).drop_columns(["tag"]), "column tag: missing"),
        (embedded(3, 900).set_column(1, "tag", pa.array(["a", "b", "c"])), "column types"),
        (embedded(3, 900).set_column(2, "content", pa.array([[1.0] * 5] * 3)), "column content: 5 numbers a row, bundle .* has 6"),
        (
            embedded(2, 900).set_column(3, "creative", pa.array([[1.0] * 4, [float("nan")] * 4])),
            "column creative: row 1 .item 901. is zero",
        ),
    ],
)
def test_items_that_cannot_be_appended_are_refused(old: Bundle, items: pa.Table, message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        versions.append(old, items)


def test_a_migration_maps_every_item_and_every_sid_and_survives_its_file(old: Bundle, tmp_path: Path) -> None:
    new = bundle.build(pa.concat_tables([embedded(150).slice(10), embedded(30, 2000)]), codes=8, seed=4)
    made = versions.migrate(old, new)
    store = ModelStore(tmp_path)
    made.save(store)
    for migration in (made, versions.Migration.load(store, old.version, new.version)):
        assert migration.items["item_id"].to_pylist() == list(range(10, 150))
        # Every SID is one item's here, so the map of SIDs is that of the items.
        assert (migration.translate(old.sids[10:], old.version) == new.sids[:140]).all()
        gone = migration.translate([*old.sids[:3].tolist(), old.sids[20].tolist()], old.version)
        assert (gone[:3] == -1).all() and (gone[3] >= 0).all()


def test_where_items_of_one_sid_go_apart_the_one_nearest_to_it_decides() -> None:
    recipe = Recipe(collisions="share")
    old = bundle.build(embedded(60), codes=2, content_levels=1, creative_levels=1, recipe=recipe)
    new = bundle.build(embedded(60), codes=8, recipe=recipe)
    migration = versions.migrate(old, new)
    content, creative = old.vectors()
    rebuilt = old.embeddings_of(old.sids)
    wrong = ((content - rebuilt[0]) ** 2).sum(axis=1) + ((creative - rebuilt[1]) ** 2).sum(axis=1)
    for sid in np.unique(old.sids, axis=0):
        rows = np.flatnonzero((old.sids == sid).all(axis=1))
        assert (migration.translate([sid], old.version)[0] == new.sids[rows[wrong[rows].argmin()]]).all()


def test_sids_of_another_version_and_other_files_are_refused(old: Bundle, tmp_path: Path) -> None:
    new = bundle.build(embedded(150), codes=8, seed=5)
    migration = versions.migrate(old, new)
    with pytest.raises(BundleError, match=f"SIDs of bundle {new.version} cannot be translated"):
        migration.translate(old.sids, new.version)
    with pytest.raises(ValueError, match="4 codes a row are expected"):
        migration.translate(old.sids[:, :3], old.version)
    with pytest.raises(BundleError, match="no item in common"):
        versions.migrate(old, bundle.build(embedded(20, 700), codes=4))
    store = ModelStore(tmp_path)
    with pytest.raises(BundleError, match="sids migrate"):
        versions.Migration.load(store, old.version, new.version)
    migration.save(store)
    path = f"{versions.MIGRATIONS}/{old.version}--{new.version}/{versions.MAP}"
    store.write(path, store.read(path)[:-1])
    with pytest.raises(BundleError, match=r"map\.parquet"):
        versions.Migration.load(store, old.version, new.version)
