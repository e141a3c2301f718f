"""SQL over data sets of the store, for questions that no single row can answer."""

import contextlib
from collections.abc import Iterator
from typing import Any

from distillery.storage.scratch import scratch_folder


@contextlib.contextmanager
def querying(**datasets: Any) -> Iterator[Any]:
    """Yield a DuckDB connection in which each Arrow data set is a table of its name.

    One thread, so that rows keep their order. What is beyond half a gigabyte spills to a scratch
    folder, so a million rows need no more memory than a hundred thousand.
    """
    import duckdb

    with scratch_folder("sql") as scratch, duckdb.connect() as sql:
        sql.execute("SET enable_progress_bar = false; SET threads = 1; SET memory_limit = '512MB'")
        sql.execute(f"SET temp_directory = '{scratch}'")
        for name, dataset in datasets.items():
            sql.register(name, dataset)
        yield sql
