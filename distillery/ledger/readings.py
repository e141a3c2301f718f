"""How far logs have been read, by runs that came to their end."""

from collections.abc import Collection

import sqlalchemy as sa

from distillery.ledger.database import Database
from distillery.ledger.tables import readings


class Readings:
    """Readings of logs under the names of watermarks. Safe to use from several threads.

    A reading counts once its run has finished, so what a killed run has read is read again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def since(self, name: str) -> float | None:
        """Return the newest timestamp that a finished run has read under ``name``; None: none."""
        query = sa.select(sa.func.max(readings.c.newest))
        query = query.where(readings.c.name == name, readings.c.is_finished)
        return self._database.read(lambda connection: connection.execute(query).scalar())

    def note(self, identity: str, name: str, newest: float) -> None:
        """Note what is being read: a source by its identity, and its newest timestamp."""
        here = sa.and_(readings.c.identity == identity, readings.c.name == name)
        row = {"identity": identity, "name": name, "newest": newest, "is_finished": False}

        def work(connection: sa.Connection) -> None:
            if connection.execute(sa.select(readings.c.name).where(here)).first() is None:
                connection.execute(sa.insert(readings), row)

        self._database.write(work)

    def finish(self, identities: Collection[str]) -> None:
        """Note that a run on these sources has finished; others change nothing."""
        update = sa.update(readings).where(readings.c.identity.in_(list(identities)))
        self._database.write(lambda connection: connection.execute(update.values(is_finished=True)))
