"""The store: one root, any fsspec URL, in which every finished stage has a sealed folder.

    <root>/<stage>/<fingerprint>/<attempt>/...      what an attempt wrote
    <root>/<stage>/<fingerprint>/manifest.json      put last, in one piece; names the winner
    <root>/<stage>/<fingerprint>/checkpoints/...    what an attempt leaves for the next one
    <root>/aliases/<task>/<alias>.json              a copy of what the registry says
    <root>/released/<task>.json                     the data card of the last training set

No renames, so it holds on object stores; a second writer of the same fingerprint harms nobody.
"""

import contextlib
import errno
import json
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from distillery.storage.scratch import scratch_folder
from schemas.base import Ref
from schemas.errors import StoreError
from schemas.execution import StageName
from schemas.manifest import SCHEMA_VERSION, Manifest
from schemas.refs import DatasetRef

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as pads

SHARD_ROWS = 100_000

# They have no folders to make; fsspec would make a bucket of a misspelt name instead.
_OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://")


class Garbage(NamedTuple):
    """What nobody needs any more."""

    uri: str
    """Its folder in the store."""

    num_bytes: int
    """Its size."""


class Store:
    """Reads and writes below one root."""

    def __init__(self, root: str) -> None:
        """Open the store at ``root``, a path or an fsspec URL; nothing is created yet."""
        self.root = root
        self._has_folders = not root.startswith(_OBJECT_STORES)
        options = {} if self._has_folders else {"use_listings_cache": False}
        place = root if "://" in root else str(Path(root).expanduser())
        try:
            with _store_errors(f"open store {root!r}"):
                self.fs, path = url_to_fs(place, **options)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"cannot open store {root!r}: {error}. Correct store.root, or install what it "
                "needs (for s3://: pip install 'distillery[s3]')."
            ) from error
        self._base = path.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, uri: str) -> str:
        """Return the file-system path of a ref's ``uri``, which is relative to the root."""
        return f"{self._base}/{uri}"

    def location(self, uri: str) -> str:
        """Return where ``uri`` is for other programs: an absolute path, or a URL."""
        if self.is_local:
            return str(Path(self.path(uri)).absolute())
        return f"{self.root.rstrip('/')}/{uri}"

    # -- manifests ---------------------------------------------------------------------------

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of a finished stage, or None.

        Raises:
            StoreError: The manifest was written by another version, or cannot be parsed.
        """
        uri = f"{stage}/{fingerprint}/manifest.json"
        raw = self.read_json(uri)
        if raw is None:
            return None
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"manifest {self.path(uri)!r} has schema_version {version!r}, and this Distillery "
                f"reads {SCHEMA_VERSION} only. Name another store.root."
            )
        try:
            return Manifest.model_validate(raw)
        except ValidationError as error:
            raise StoreError(
                f"manifest {self.path(uri)!r} is damaged: {error.errors()[0]['msg']}. Delete it, "
                "and the next run makes that result again."
            ) from None

    def manifest_of(self, ref: Ref) -> Manifest | None:
        """Return the manifest of the stage that made ``ref``, as :meth:`find` does."""
        return self.find(ref.uri.partition("/")[0], ref.fingerprint)

    def read_json(self, uri: str) -> dict[str, Any] | None:
        """Return a small JSON object of the store, or None when there is none."""
        text = self.read_bytes(uri)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise StoreError(
                f"{self.path(uri)!r} is not a JSON object, so it was damaged from outside. Delete "
                "it, and the next run makes what it described again."
            )
        return value

    def read_bytes(self, uri: str) -> bytes | None:
        """Return the content of one file, or None when there is none."""
        with _store_errors(f"read {self.path(uri)!r}"):
            try:
                content: bytes = self.fs.cat_file(self.path(uri))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return content

    def write_bytes(self, uri: str, content: bytes) -> None:
        """Put one file in one piece: readers see all of it or nothing."""
        path = self.path(uri)
        with _store_errors(f"write {path!r}"):
            if not self.is_local:
                self.fs.pipe_file(path, content)
                return
            # In the same folder, so that the replacement is atomic.
            partial = Path(f"{path}.{new_attempt()}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(content)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def holds(self, ref: Ref) -> bool:
        """Return whether ``ref`` still has files; someone may have cleaned the store."""
        with _store_errors(f"read {self.path(ref.uri)!r}"):
            return bool(self.fs.find(self.path(ref.uri)))

    # -- reading -----------------------------------------------------------------------------

    def dataset(self, ref: DatasetRef) -> "pads.Dataset":
        """Return the shards of ``ref`` as one Arrow data set, read lazily and in order."""
        with _read_errors(self.path(ref.uri)):
            files = sorted(self.fs.glob(self.path(ref.uri) + "/*.parquet"))
            if not files:
                raise self._gone(ref)
            import pyarrow.dataset as pads  # brings pandas

            return pads.dataset(files, filesystem=self.fs, format="parquet")

    def batches(
        self, ref: DatasetRef, *, splits: tuple[str, ...] | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``ref`` in batches, only those of ``splits`` when given.

        Memory holds about one batch: a scan with threads reads half a gigabyte ahead of whoever
        takes its time over a batch.
        """
        condition = None if splits is None else pc.field("split").isin(list(splits))
        with _read_errors(self.path(ref.uri)):
            batches = self.dataset(ref).to_batches(
                filter=condition,
                batch_size=batch_rows,
                use_threads=False,
                batch_readahead=1,
                fragment_readahead=1,
            )
            for batch in batches:
                if batch.num_rows:
                    yield batch

    @contextlib.contextmanager
    def local_copy(self, ref: Ref) -> Iterator[Path]:
        """Yield a local folder with the files of ``ref``: itself when local, else a download."""
        if self.is_local:
            folder = Path(self.path(ref.uri))
            if not (folder.is_dir() and any(folder.iterdir())):
                raise self._gone(ref)
            yield folder
            return
        with scratch_folder("download") as scratch:
            self.download(ref.uri, scratch)
            yield scratch

    def download(self, uri: str, folder: Path) -> None:
        """Copy a folder of the store into a local one."""
        with _store_errors(f"download {self.path(uri)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            self.fs.get(self.path(uri) + "/", f"{folder}/", recursive=True)

    # -- writing -----------------------------------------------------------------------------

    def make_folder(self, uri: str) -> None:
        """Make a folder, where the file system knows such a thing."""
        if self._has_folders:
            self.fs.makedirs(self.path(uri), exist_ok=True)

    def upload(self, uri: str, folder: Path) -> None:
        """Copy a local folder into the store."""
        with _store_errors(f"write {self.path(uri)!r}"):
            self.make_folder(uri)
            self.fs.put(f"{folder}/", self.path(uri) + "/", recursive=True)

    @contextlib.contextmanager
    def row_writer(
        self, uri: str, schema: pa.Schema, *, encodings: dict[str, str] | None = None
    ) -> Iterator["RowWriter"]:
        """Yield a writer of Parquet shards below ``uri``; at least one shard is written.

        ``encodings`` names Parquet encodings by column path, for columns of numbers that
        dictionaries do not make smaller.
        """
        writer = RowWriter(self, uri, schema, encodings)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                writer.close()
            raise
        writer.close()

    def delete(self, uri: str) -> None:
        """Delete a folder; nothing happens when it is not there."""
        with _store_errors(f"delete {self.path(uri)!r}"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(uri), recursive=True)

    def list_folders(self, uri: str) -> list[str]:
        """Return the names of the folders directly below ``uri``, sorted."""
        with _store_errors(f"list {self.path(uri)!r}"):
            try:
                entries = self.fs.ls(self.path(uri), detail=True)
            except FileNotFoundError:
                return []
        return sorted(e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def gc(
        self,
        *,
        keep: Collection[Ref] = (),
        older_than_s: float = 7 * 86_400.0,
        results_older_than_s: float | None = None,
        dry_run: bool = False,
    ) -> list[Garbage]:
        """Delete what nobody needs any more and return it.

        What the manifest of a result that stays names stays, too.

        Args:
            keep: What is needed whatever its age: what an alias points to or can go back to.
            older_than_s: Age of attempts that lost or died, and of checkpoints of stages that are
                finished or abandoned. A week by default: no attempt takes that long, so nothing
                under way is hit.
            results_older_than_s: Age of finished results. A run that wants one again makes it
                again; teacher responses come from the ledger. None: all stay.
            dry_run: Delete nothing.
        """
        kept = set(map(_attempt, keep))
        results = {
            uri: {_attempt(ref) for ref in manifest.outputs.values()}
            for uri in self._stages()
            if (manifest := self.find(*uri.split("/")))
        }
        old = set()
        if results_older_than_s is not None:
            candidates = (uri for uri, attempts in results.items() if not attempts & kept)
            old = {uri for uri in candidates if self._age_s(uri) > results_older_than_s}
        # What a younger result names is kept with all that is beside it.
        needed = kept.union(*(results[uri] for uri in results if uri not in old))
        found = sorted(old - {attempt.rpartition("/")[0] for attempt in needed})
        named = kept.union(*results.values())
        for uri in self._stages():
            if uri not in found:
                folders = [f"{uri}/{folder}" for folder in self.list_folders(uri)]
                found += [f for f in folders if f not in named and self._age_s(f) > older_than_s]
        garbage = [Garbage(uri, int(self.fs.du(self.path(uri)))) for uri in found]
        for uri, _ in () if dry_run else garbage:
            self.delete(f"{uri}/manifest.json")  # first: what is half deleted must not look whole
            self.delete(uri)
        return garbage

    def _stages(self) -> Iterator[str]:
        """Yield the folders of stages, as stage/fingerprint."""
        for stage in StageName:
            yield from (f"{stage}/{fingerprint}" for fingerprint in self.list_folders(stage))

    def _age_s(self, uri: str) -> float:
        """Return the seconds since anything below ``uri`` was written."""
        path = self.path(uri)
        written = [self.fs.modified(file).timestamp() for file in self.fs.find(path) or [path]]
        return time.time() - float(max(written))

    def _gone(self, ref: Ref) -> StoreError:
        return StoreError(
            f"{self.path(ref.uri)!r} is gone from the store. Run again: it is made again."
        )


class RowWriter:
    """Writes rows as Parquet shards of at most SHARD_ROWS rows."""

    def __init__(
        self, store: Store, uri: str, schema: pa.Schema, encodings: dict[str, str] | None = None
    ) -> None:
        """Open the first shard below ``uri``."""
        self._encodings = encodings
        self.uri, self.schema, self.num_rows = uri, schema, 0
        self._store, self._shard, self._shard_rows = store, 0, 0
        self._action = f"write {store.path(uri)!r}"
        self._open_files = contextlib.ExitStack()
        with _store_errors(self._action):
            store.make_folder(uri)
            self._open_shard()

    def write(self, rows: "pa.RecordBatch | pd.DataFrame") -> None:
        """Append rows; a frame is converted by the schema."""
        if not isinstance(rows, pa.RecordBatch):
            rows = pa.RecordBatch.from_pandas(rows, schema=self.schema, preserve_index=False)
        with _store_errors(self._action):
            if self._shard_rows >= SHARD_ROWS:
                self._open_shard()
            self._parquet.write_batch(rows.cast(self.schema))
        self.num_rows += rows.num_rows
        self._shard_rows += rows.num_rows

    def close(self) -> None:
        """Finish the last shard."""
        with _store_errors(self._action):
            self._open_files.close()

    def ref(self, fingerprint: str) -> DatasetRef:
        """Return a ref to what was written."""
        return DatasetRef(
            uri=self.uri,
            fingerprint=fingerprint,
            num_rows=self.num_rows,
            columns=tuple(self.schema.names),
        )

    def _open_shard(self) -> None:
        self._open_files.close()
        from pyarrow import parquet

        path = f"{self._store.path(self.uri)}/{self._shard:05d}.parquet"
        file = self._open_files.enter_context(self._store.fs.open(path, "wb"))
        self._parquet = self._open_files.enter_context(
            parquet.ParquetWriter(
                file,
                self.schema,
                compression="zstd",
                use_dictionary=not self._encodings,  # it would go before them
                column_encoding=self._encodings,
            )
        )
        self._shard, self._shard_rows = self._shard + 1, 0


def _attempt(ref: Ref) -> str:
    """Return the attempt that made ``ref``, as stage/fingerprint/attempt."""
    return "/".join(ref.uri.split("/")[:3])


def new_attempt() -> str:
    """Return the name of a new attempt's folder."""
    return uuid.uuid4().hex


@contextlib.contextmanager
def _store_errors(action: str) -> Iterator[None]:
    """Turn what the file system raises into a StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except PermissionError as error:
        raise StoreError(
            f"cannot {action}: permission denied. Give this user write access, or name another "
            "store.root."
        ) from error
    except OSError as error:
        advice = (
            "Free some space and run again; finished stages and responses are kept."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Check that store.root exists and can be reached, then run again."
        )
        raise StoreError(f"cannot {action}: {error.strerror or error}. {advice}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "fsspec", "aiohttp")):
            raise
        raise StoreError(
            f"cannot {action}: {error}. Check store.root and its credentials, then run again."
        ) from error


@contextlib.contextmanager
def _read_errors(path: str) -> Iterator[None]:
    """Turn what goes wrong while Parquet is read into a StoreError that says what to do."""
    try:
        with _store_errors(f"read {path!r}"):
            yield
    except pa.ArrowInvalid as error:
        raise damaged(path, error) from error


def damaged(path: str, error: Exception) -> StoreError:
    """Return the error for a data set at ``path`` whose files cannot be read."""
    return StoreError(
        f"data set {path!r} is damaged: {error}. Delete that folder, and the next run makes it "
        "again."
    )
