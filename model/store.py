"""Where models, codebooks and their pointers live: a folder, or any fsspec URL (`s3://…`, `gs://…`, `memory://…`).

Two kinds of names. *Versions* are folders that are written once and never changed; the file that lists the others (the manifest) is
written last, so a version without its manifest does not exist yet. *Pointers* (`CURRENT`, `BUNDLE`) are single small files that name a
version and are replaced in one step: a reader sees the old name or the new one, never half a name.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


class StoreError(Exception):
    """The store cannot be read or written; the message names the file and what the file system said."""


class ModelStore:
    """Files of one model store, addressed by paths relative to its root, with `/` between the parts.

    Args:
        url: a local folder, or an fsspec URL whose driver is installed. A local folder is made when it is first written to.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/") or "/"
        self._files: fsspec.AbstractFileSystem
        try:
            self._files, self._root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"model store {self.url}: {error}") from error
        self._local = isinstance(self._files, LocalFileSystem)

    def uri(self, path: str) -> str:
        """The address of a file, as another program would open it."""
        return self._files.unstrip_protocol(self._key(path))

    def read(self, path: str) -> bytes:
        """Whole content of a file.

        Raises:
            StoreError: it does not exist or cannot be read.
        """
        try:
            return self._files.cat_file(self._key(path))
        except OSError as error:
            raise StoreError(f"{self.url}/{path}: {_reason(error)}") from error

    def write(self, path: str, body: bytes) -> None:
        """Write a file so that it appears whole or not at all, also after a power cut.

        Locally: temporary file, fsync, rename. Elsewhere: one upload where the service makes uploads appear at once (object stores).

        Raises:
            StoreError: it cannot be written (full disk, no permission, no connection).
        """
        key = self._key(path)
        try:
            if self._local:
                _write_local(Path(key), body)
            else:
                self._files.makedirs(self._files._parent(key), exist_ok=True)
                self._files.pipe_file(key, body)
        except OSError as error:
            raise StoreError(f"{self.url}/{path}: {_reason(error)}") from error

    def exists(self, path: str) -> bool:
        return self._files.exists(self._key(path))

    def list(self, path: str = "") -> list[str]:
        """Names directly inside a folder, sorted; empty where there is no such folder."""
        key = self._key(path) if path else self._root
        try:
            self._files.invalidate_cache(key)
            found = self._files.ls(key, detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.url}/{path}: {_reason(error)}") from error
        names = sorted({PurePosixPath(entry).name for entry in found})
        return [name for name in names if not name.startswith(".")]

    def delete(self, path: str) -> None:
        """Remove a file or a whole folder; nothing happens where there is none."""
        key = self._key(path)
        try:
            if self._files.exists(key):
                self._files.rm(key, recursive=True)
        except OSError as error:
            raise StoreError(f"{self.url}/{path}: {_reason(error)}") from error

    def pointer(self, name: str) -> str | None:
        """What a pointer file names now, or None where it was never set."""
        self._files.invalidate_cache(self._root)
        if not self.exists(name):
            return None
        return self.read(name).decode().strip() or None

    def point(self, name: str, version: str) -> None:
        """Make a pointer file name `version`, in one step."""
        self.write(name, f"{version}\n".encode())

    def local_path(self, path: str) -> Path | None:
        """The file's path where the store is a local folder (to map it into memory), else None: then read() it."""
        return Path(self._key(path)) if self._local else None

    def _key(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        # Paths come out of manifests too, so they must not be able to leave the store.
        if not parts or path.startswith("/") or ".." in parts:
            raise StoreError(f"{path!r} is not a path inside the model store {self.url}")
        return "/".join([self._root.rstrip("/"), *parts])


def _write_local(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hidden name: list() leaves out what a killed writer may have left behind.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror or str(error) or type(error).__name__
