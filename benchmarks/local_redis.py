"""A redis-server of its own for a benchmark."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.local import ports, redis


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Start a Redis with its data in `folder`; gives its URL."""
    server = redis.Server(folder / "redis", ports.free_port())
    server.prepare()
    child = subprocess.Popen(server.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not redis.healthy(server.url):
            if child.poll() is not None:
                raise SystemExit(f"redis-server ended with {child.returncode}")
            time.sleep(0.05)
        yield server.url
    finally:
        child.terminate()
        child.wait()
