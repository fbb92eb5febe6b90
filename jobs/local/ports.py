"""Free TCP ports of this machine, remembered by a home because clients hold addresses."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

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
