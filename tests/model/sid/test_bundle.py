"""The bundle: SIDs there and back, equal content under an equal name, and nothing damaged is ever loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.sid import bundle
from model.sid.bundle import Bundle, BundleError
from model.sid.encoder import CatalogueError
from model.store import ModelStore


def catalogue(items: int = 120, seed: int = 0, embeddings: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "item_id": rng.permutation(items * 3)[:items] - items,
        "author_id": rng.integers(20, size=items),
        "tag": rng.integers(9, size=items),
        "video_type": rng.choice(["NORMAL", "AD"], items),
        "upload_type": rng.choice(["Web", "Camera", "Import"], items),
        "upload_ts": rng.integers(10**12, size=items),
        "duration_ms": rng.integers(5_000, 90_000, items),
        "width": rng.choice([540, 720], items),
        "height": rng.choice([960, 1280], items),
        "music_id": rng.integers(40, size=items),
        "music_type": rng.integers(4, size=items),
    }
    if embeddings:
        columns |= {"content": list(rng.standard_normal((items, 6))), "creative": list(rng.standard_normal((items, 4)))}
    return pa.table(columns)


@pytest.fixture(scope="module")
def built() -> Bundle:
    return bundle.build(catalogue(), codes=8)


@pytest.fixture
def store(tmp_path: Path, built: Bundle) -> ModelStore:
    store = ModelStore(tmp_path)
    built.save(store)
    store.point(bundle.POINTER, built.version)
    return store


def test_an_item_has_a_sid_and_the_sid_has_the_item(built: Bundle) -> None:
    for item in built.item_ids.tolist():
        sid = built.sid_of(item)
        assert sid is not None and len(sid) == built.levels == 4
        assert item in built.items_of(sid)
        assert all(0 <= code < count for code, count in zip(sid, built.code_counts, strict=True))


def test_the_items_of_a_prefix_are_those_whose_sids_begin_with_it(built: Bundle) -> None:
    sids = built.sids.tolist()
    for length in range(5):
        prefix = sids[0][:length]
        assert built.items_of(prefix) == [item for item, sid in zip(built.item_ids.tolist(), sids, strict=True) if sid[:length] == prefix]


def test_an_unknown_item_has_no_sid_and_an_impossible_sid_no_item(built: Bundle) -> None:
    stranger = int(built.item_ids.max()) + 1
    assert built.sid_of(stranger) is None
    found = built.sids_of([stranger, built.item_ids[3]])
    assert found[0].tolist() == [-1] * 4 and found[1].tolist() == built.sids[3].tolist()
    for sid in ([99, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0, 0]):
        assert built.items_of(sid) == []
        with pytest.raises(ValueError, match="not SIDs of bundle"):
            built.embedding_of(sid)


def test_a_sid_stands_for_the_sum_of_its_centroids(built: Bundle) -> None:
    sid = built.sids[5].tolist()
    content, creative = built.embedding_of(sid)
    assert np.array_equal(content, built.content[0][sid[0]] + built.content[1][sid[1]])
    assert np.array_equal(creative, built.creative[0][sid[2]] + built.creative[1][sid[3]])


def test_what_is_loaded_is_what_was_built(built: Bundle, store: ModelStore) -> None:
    loaded = Bundle.load(store)
    assert loaded.version == built.version and loaded.code_counts == built.code_counts and loaded.quality == built.quality
    assert loaded.catalogue.equals(built.catalogue)
    assert (loaded.sids == built.sids).all() and (loaded.item_ids == built.item_ids).all()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(loaded.content + loaded.creative, built.content + built.creative, strict=True))


def test_the_same_seed_gives_the_same_files_and_another_seed_another_version(tmp_path: Path, built: Bundle) -> None:
    again, other = bundle.build(catalogue(), codes=8), bundle.build(catalogue(), codes=8, seed=1)
    assert again.version == built.version != other.version
    bodies = []
    for number, one in enumerate((built, again)):
        store = ModelStore(tmp_path / str(number))
        one.save(store)
        folder = f"{bundle.FOLDER}/{one.version}"
        bodies.append({name: store.read(f"{folder}/{name}") for name in store.list(folder)})
    assert bodies[0] == bodies[1] and set(bodies[0]) == {bundle.CODEBOOKS, bundle.CATALOGUE, bundle.MANIFEST}


def test_saving_twice_changes_nothing(store: ModelStore, built: Bundle) -> None:
    path = store.local_path(f"{bundle.FOLDER}/{built.version}/{bundle.MANIFEST}")
    assert path is not None
    before = path.stat().st_mtime_ns
    built.save(store)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", [bundle.CODEBOOKS, bundle.CATALOGUE, bundle.MANIFEST])
@pytest.mark.parametrize("damage", ["a bit", "truncated", "empty", "gone"])
def test_a_damaged_file_is_refused_by_name(store: ModelStore, built: Bundle, name: str, damage: str) -> None:
    path = store.local_path(f"{bundle.FOLDER}/{built.version}/{name}")
    assert path is not None
    body = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "a bit":
        # In the manifest: a digit of the first checksum, which leaves it valid JSON.
        place = body.index(b'"sha256": "') + 11 if name == bundle.MANIFEST else len(body) // 2
        body[place] = ord("0") if body[place] != ord("0") else ord("1")
        path.write_bytes(body)
    else:
        path.write_bytes(body[: len(body) // 2] if damage == "truncated" else b"")
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.load(store)


def test_a_manifest_of_another_schema_is_refused(store: ModelStore, built: Bundle) -> None:
    path = f"{bundle.FOLDER}/{built.version}/{bundle.MANIFEST}"
    store.write(path, json.dumps(json.loads(store.read(path)) | {"schema": "bundle/2"}).encode())
    with pytest.raises(BundleError, match="schema bundle/1 is expected"):
        Bundle.load(store)


def test_a_store_without_a_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="sids build"):
        Bundle.load(ModelStore(tmp_path))


def test_embeddings_that_come_with_the_catalogue_are_used() -> None:
    own = catalogue(embeddings=True)
    made = bundle.build(own, codes=16)
    for factor in ("content", "creative"):
        given = np.array(own[factor].to_pylist())
        given /= np.linalg.norm(given, axis=1, keepdims=True)
        assert np.allclose(np.array(made.catalogue[factor].to_pylist()), given, atol=1e-6)
    assert made.embedding_of(made.sids[0])[0].shape == (6,) and made.embedding_of(made.sids[0])[1].shape == (4,)


def test_levels_and_codes_are_as_configured() -> None:
    made = bundle.build(catalogue(embeddings=True), content_levels=3, creative_levels=1, codes=4)
    assert made.code_counts == (4, 4, 4, 4) and made.content_levels == 3


def test_a_catalogue_of_one_video_has_a_sid() -> None:
    made = bundle.build(catalogue(items=1))
    assert made.items_of(made.sids[0]) == made.item_ids.tolist() and made.code_counts == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (catalogue().slice(0, 0), "no items"),
        (pa.concat_tables([catalogue(3), catalogue(3)]), "occurs 2 times"),
        (catalogue().drop_columns(["tag"]), "column tag: missing"),
        (
            catalogue(2).append_column("content", pa.array([[1.0], [0.0]])).append_column("creative", pa.array([[1.0], [1.0]])),
            "column content",
        ),
        (
            catalogue(2).append_column("content", pa.array([[1.0], [1.0]])).append_column("creative", pa.array([[1.0], None])),
            "column creative",
        ),
    ],
)
def test_a_catalogue_that_cannot_be_embedded_is_refused_by_column(broken: pa.Table, message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        bundle.build(broken)
