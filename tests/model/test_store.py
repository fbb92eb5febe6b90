"""The model store, on a folder and on a file system that is not local."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from model.store import ModelStore, StoreError


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read_back_and_listed(store: ModelStore) -> None:
    store.write("versions/v2/manifest.json", b"{}")
    store.write("versions/v1/manifest.json", b"\x00\xff")
    assert store.read("versions/v1/manifest.json") == b"\x00\xff"
    assert store.list("versions") == ["v1", "v2"]
    assert store.list() == ["versions"]
    assert store.exists("versions/v1/manifest.json") and not store.exists("versions/v3/manifest.json")


def test_a_deleted_version_is_gone_and_deleting_it_again_does_nothing(store: ModelStore) -> None:
    store.write("versions/v1/a", b"1")
    store.delete("versions/v1")
    store.delete("versions/v1")
    assert not store.exists("versions/v1/a")


def test_a_missing_file_is_an_error_that_names_it(store: ModelStore) -> None:
    with pytest.raises(StoreError, match=r"versions/none/manifest\.json: no such file"):
        store.read("versions/none/manifest.json")
    assert store.list("nothing") == []


def test_a_pointer_is_unset_then_names_the_last_version_set(store: ModelStore) -> None:
    assert store.pointer("CURRENT") is None
    store.point("CURRENT", "v1")
    store.point("CURRENT", "v2")
    assert store.pointer("CURRENT") == "v2"


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_no_path_leaves_the_store(store: ModelStore, path: str) -> None:
    with pytest.raises(StoreError, match="not a path inside"):
        store.write(path, b"")


def test_a_reader_never_sees_half_a_pointer(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    names = {f"v{i}" * 2000 for i in (1, 2)}
    store.point("CURRENT", min(names))
    done = threading.Event()
    seen: set[str | None] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.pointer("CURRENT"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(100):
        store.point("CURRENT", sorted(names)[turn % 2])
    done.set()
    reader.join()
    assert seen <= names and store.list() == ["CURRENT"]


def test_only_a_folder_has_local_paths(tmp_path: Path) -> None:
    folder = ModelStore(tmp_path)
    folder.write("a/b", b"x")
    path = folder.local_path("a/b")
    assert path is not None and path.read_bytes() == b"x"
    assert ModelStore("memory://none").local_path("a/b") is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/a: (Not a directory|File exists)"):
        ModelStore(tmp_path / "file").write("a", b"")


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(StoreError, match="nosuch"):
        ModelStore("nosuch://x")
