"""The Feast repository in the home: rendered for the addresses of this system, applied, read back.

The rendered folder needs nothing of ours: `FeatureStore(repo_path=…)` and the `feast` command work in it from any process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from features.view import View, view_of

if TYPE_CHECKING:
    from feast import FeatureStore

PROJECT = "sidstream"
TEMPLATE = Path(__file__).with_name("feature_store.yaml")
DEFINITIONS = Path(__file__).with_name("definitions.py")


class NotApplied(RuntimeError):
    """The home has no registry yet, or one without the view asked for."""


def connection_string(redis_url: str) -> str:
    """Feast's way to write `redis://[user][:password]@host:port/db`.

    Raises:
        ValueError: the URL is not one of Redis.
    """
    parts = urlsplit(redis_url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(f"{redis_url}: expected redis://host:port/db")
    words = [f"{parts.hostname}:{parts.port or 6379}", f"db={parts.path.strip('/') or 0}"]
    if parts.username:
        words.append(f"username={unquote(parts.username)}")
    if parts.password:
        words.append(f"password={unquote(parts.password)}")
    if parts.scheme == "rediss":
        words.append("ssl=true")
    return ",".join([*words, *(f"{key}={value}" for key, value in parse_qsl(parts.query))])


def render(folder: Path, redis_url: str, definitions: Path = DEFINITIONS) -> None:
    """Write `feature_store.yaml` and `definitions.py`; the registry beside them stays as it is."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    replace(folder / "feature_store.yaml", configured(redis_url))
    replace(folder / "definitions.py", definitions.read_text())


def configured(redis_url: str) -> str:
    """The text of `feature_store.yaml`."""
    return TEMPLATE.read_text().replace("{redis}", connection_string(redis_url))


def replace(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def load_definitions(path: Path) -> ModuleType:
    """Import a definitions file without putting its folder on the path."""
    spec = importlib.util.spec_from_file_location("feature_definitions", path)
    if spec is None or spec.loader is None:
        raise NotApplied(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defined_views(definitions: Path = DEFINITIONS) -> list[View]:
    """The stream feature views of a definitions file, by name."""
    from feast import StreamFeatureView

    found = [value for value in vars(load_definitions(definitions)).values() if isinstance(value, StreamFeatureView)]
    return sorted(map(view_of, found), key=lambda view: view.name)


def is_applied(folder: Path, redis_url: str, definitions: Path = DEFINITIONS) -> bool:
    """Whether the registry already holds what `render` and `apply` would put there; answered without importing Feast."""
    registry = folder / "data" / "registry.db"
    rendered = {folder / "feature_store.yaml": configured(redis_url), folder / "definitions.py": definitions.read_text()}
    if not registry.exists() or any(not path.exists() or path.read_text() != text for path, text in rendered.items()):
        return False
    return registry.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in rendered)


def apply(folder: Path) -> None:
    """`feast apply`: register what the rendered definitions say, drop what they no longer say, here and in Redis."""
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    before = Path.cwd()
    sys.path.insert(0, str(folder))  # Feast imports the definitions by their name
    try:
        config = load_repo_config(folder, folder / "feature_store.yaml")
        apply_total(config, folder, skip_source_validation=True)  # there are no files before the first backfill
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)


def store(folder: Path) -> FeatureStore:
    """The Feast store of a rendered repository, as any other program opens it."""
    from feast import FeatureStore

    return FeatureStore(repo_path=str(folder))


def registered_views(folder: Path) -> list[View]:
    """The views of the registry, by name: from `views.json` unless the registry is newer (somebody ran `feast apply` by hand).

    Raises:
        NotApplied: nothing was applied yet.
    """
    registry, views = folder / "data" / "registry.db", folder / "data" / "views.json"
    if not registry.exists():
        raise NotApplied(f"{folder} has no registry: run `sidstream features apply`")
    if views.exists() and views.stat().st_mtime_ns >= registry.stat().st_mtime_ns:
        return msgspec.json.decode(views.read_bytes(), type=list[View])
    found = sorted(map(view_of, store(folder).list_stream_feature_views()), key=lambda view: view.name)
    replace(views, msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    return found
