"""SQL over data sets of the store, for questions that no single row can answer."""

import contextlib
import glob
from collections.abc import Iterator
from typing import Any

from distillery.storage.scratch import scratch_folder
from distillery.storage.store import Store, damaged
from schemas.refs import DatasetRef


@contextlib.contextmanager
def querying(store: Store | None = None, **datasets: DatasetRef) -> Iterator[Any]:
    """Yield a DuckDB connection in which each data set of ``store`` is a view of its name.

    One thread, so that rows keep their order. What is beyond a quarter of a gigabyte spills to a
    scratch folder. DuckDB reads the files itself: through Arrow it holds twice as much.

    Raises:
        StoreError: A data set is gone, or damaged.
    """
    import duckdb

    with scratch_folder("sql") as scratch, duckdb.connect() as sql, contextlib.ExitStack() as held:
        sql.execute("SET enable_progress_bar = false; SET threads = 1; SET memory_limit = '256MB'")
        sql.execute(f"SET temp_directory = '{scratch}'")
        for name, ref in datasets.items():
            assert store is not None
            folder = held.enter_context(store.local_copy(ref))
            files = [glob.escape(str(file)) for file in sorted(folder.glob("*.parquet"))]
            try:
                sql.read_parquet(files).create_view(name)
            except duckdb.Error as error:
                raise damaged(store.path(ref.uri), error) from error
        yield sql
