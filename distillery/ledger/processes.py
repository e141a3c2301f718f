"""Whether a process that wrote into the ledger still lives, as far as this machine can tell."""

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path
from typing import NamedTuple, Protocol


class _Registered(Protocol):
    """A row of the table of owners."""

    @property
    def process(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def pid(self) -> int: ...


class ThisProcess(NamedTuple):
    """What tells this process from all others, on all machines and at all times."""

    machine: str
    """Where its pid means something; see :func:`machine_id`."""

    pid: int
    """Process id."""

    name: str
    """Machine, pid and start: a pid is used again."""


def this_process() -> ThisProcess:
    """Return what tells this process from all others."""
    return _this_process(os.getpid())


@functools.cache
def _this_process(pid: int) -> ThisProcess:
    machine = machine_id()
    return ThisProcess(machine, pid, _name(machine, pid, _started(pid) or uuid.uuid4().hex))


def has_ended(owner: _Registered) -> bool:
    """Return whether the process of ``owner`` ran here and runs no more.

    False also when it cannot be told, as for another machine: then only time tells.
    """
    if owner.machine != machine_id() or owner.process == this_process().name:
        return False
    started = _started(owner.pid)
    if started is None:
        return not _is_hidden(owner.pid)
    return owner.process != _name(owner.machine, owner.pid, started)


@functools.cache
def machine_id() -> str:
    """Return a hash of the boot, the pid namespace and the host, within which a pid is unique.

    Where the kernel does not tell, it is unlike any other: nobody is then taken for dead too soon.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{boot} {namespace} {socket.gethostname()}".encode()).hexdigest()[:32]


def _name(machine: str, pid: int, started: str) -> str:
    return f"{machine}:{pid}:{started}"


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if it runs no more.

    Not psutil's `create_time`: that is a time of day and moves when the clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; field 3, the state, follows it.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _is_hidden(pid: int) -> bool:
    """Return whether a process runs that this user may not see (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False  # seen by now, as a zombie
