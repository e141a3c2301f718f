"""What the ledgers of one process at one URL share."""

import os
import threading

import sqlalchemy as sa

from distillery.ledger.claims import ClaimDesk
from distillery.ledger.commits import GroupCommit, Writer
from distillery.ledger.database import Database
from distillery.ledger.migration import prepare


class Shared:
    """A database with its statements, its committing thread and its owners."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.database = Database(url)
        try:
            self.writer = Writer(self.database.engine)
            prepare(self.database, self.writer)
        except BaseException:
            self.database.dispose()
            raise
        self.group = GroupCommit(self.database, self.writer)
        self.desk = ClaimDesk(self.database, self.writer)
        self.num_users = 0

    def close(self) -> None:
        """Commit what is left and close the connections."""
        self.group.close()
        self.database.dispose()


_lock = threading.Lock()
_opened: dict[tuple[int, sa.URL], Shared] = {}


def acquire(url: sa.URL) -> Shared:
    """Return what the ledgers at ``url`` share; give it back with :func:`give_back`."""
    # A forked process has no committing thread, and must not use its parent's connections.
    key = (os.getpid(), url)
    with _lock:
        shared = _opened.get(key)
        if shared is None:
            shared = _opened[key] = Shared(url)
        shared.num_users += 1
        return shared


def give_back(shared: Shared) -> None:
    """End one use; the last user closes the connections."""
    with _lock:
        shared.num_users -= 1
        if shared.num_users > 0:
            return
        _opened.pop((os.getpid(), shared.url), None)
    shared.close()


def _forget_parent() -> None:
    """Leave the parent's connections alone, and a lock that one of its threads may have held."""
    global _lock
    _lock = threading.Lock()
    for shared in _opened.values():
        shared.database.engine.dispose(close=False)
    _opened.clear()


os.register_at_fork(after_in_child=_forget_parent)
