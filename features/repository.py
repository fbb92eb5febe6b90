"""The Feast repository in the home: rendered for the addresses of this system, applied, read back.

The rendered folder needs nothing of ours: `FeatureStore(repo_path=…)` and the `feast` command work in it from any process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from features.layout import ViewLayout, layout_of

if TYPE_CHECKING:
    from feast import FeatureStore, StreamFeatureView

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
    replace(folder / "feature_store.yaml", TEMPLATE.read_text().replace("{redis}", connection_string(redis_url)))
    replace(folder / "definitions.py", definitions.read_text())


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


def defined_views(definitions: Path = DEFINITIONS) -> list[StreamFeatureView]:
    """The stream feature views of a definitions file, in its order."""
    from feast import StreamFeatureView

    return [value for value in vars(load_definitions(definitions)).values() if isinstance(value, StreamFeatureView)]


def store(folder: Path) -> FeatureStore:
    """The Feast store of a rendered repository."""
    from feast import FeatureStore

    if not (folder / "feature_store.yaml").exists():
        raise NotApplied(f"{folder} has no feature_store.yaml: run `sidstream features apply`")
    return FeatureStore(repo_path=str(folder))


def apply(folder: Path) -> str:
    """Run `feast apply`: register what the definitions say, drop what they no longer say; returns what Feast says.

    Raises:
        NotApplied: Feast refuses; the message is Feast's own.
    """
    command = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "--chdir", str(folder), "apply", "--skip-source-validation"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FEAST_USAGE": "False"})
    if done.returncode:
        raise NotApplied(f"feast apply in {folder}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    return done.stdout


def applied_views(folder: Path) -> list[StreamFeatureView]:
    """The stream feature views of the registry.

    Raises:
        NotApplied: nothing was applied yet.
    """
    if not (folder / "data" / "registry.db").exists():
        raise NotApplied(f"{folder} has no registry: run `sidstream features apply`")
    return sorted(store(folder).list_stream_feature_views(), key=lambda view: view.name)


def layouts(views: Sequence[StreamFeatureView]) -> list[ViewLayout]:
    """How the values of these views lie in Redis."""
    return [layout_of(view) for view in views]
