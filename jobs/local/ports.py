"""Free TCP ports of this machine, remembered by a home because clients hold addresses."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

from jobs.process import read_json, write_json

# Below Linux's range for outgoing connections (32768 up): there, a client that retries a stopped server's port can be given
# that very port as its own and connect to itself, and then the server cannot start again.
FIRST, LAST = 20_000, 30_000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now (a closed server's lingering connections do not count)."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def free_port(taken: Collection[int] = ()) -> int:
    """A port that nobody listens on, chosen at random so that two homes that start together rarely meet."""
    for _ in range(200):
        port = random.randrange(FIRST, LAST)
        if port not in taken and is_free(port):
            return port
    raise OSError(f"no free TCP port between {FIRST} and {LAST}: something on this machine listens on all that were tried")


def remembered(home: Path, names: Collection[str], ours: Collection[str] = ()) -> dict[str, int]:
    """A port for each name: the home's last one while it is free (or held by one of `ours`, which still run), else a new one."""
    path = home / "run" / "ports.json"
    last = {name: port for name, port in read_json(path).items() if isinstance(port, int)}
    ports: dict[str, int] = {}
    for name in names:
        port = last.get(name)
        keep = port is not None and port not in ports.values() and (name in ours or is_free(port))
        ports[name] = port if keep and port is not None else free_port([*ports.values(), *last.values()])
    if ports != {name: last.get(name) for name in names}:
        write_json(path, last | ports)
    return ports
