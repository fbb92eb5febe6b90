from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create
from tests.serving.fakes import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A serving process on fakes; the deadline is long, so that a slow machine degrades nothing."""
    world = World(tmp_path, deadline_ms=20_000).start()
    yield world
    world.stop()


@pytest.fixture
def http(world: World) -> Iterator[TestClient]:
    with TestClient(create(world.parts), raise_server_exceptions=False) as client:
        yield client
