"""Ports for servers that start later, or stop and come back."""

import contextlib
import random
import socket
from pathlib import Path

_LOWEST = 20_000


def free_port() -> int:
    """Return a free port of 127.0.0.1 that no other program is given meanwhile by chance.

    One that the system picks is among those that it also gives to any connection, so another
    process may have it by the time that a server binds it.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(_LOWEST, _first_given_out())
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _first_given_out() -> int:
    try:
        said = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    return max(_LOWEST + 1000, int(said.split()[0]))
