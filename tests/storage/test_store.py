"""The store holds what was sealed, on a disk and on S3, and says what to do when it cannot."""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distillery.storage import store as store_module
from distillery.storage.sql import querying
from distillery.storage.stage import Attempt, Stage, StageResult, find_stage, run_stage
from distillery.storage.store import Store
from schemas.errors import StoreError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.manifest import SCHEMA_VERSION
from schemas.refs import DatasetRef, ModelRef

SCHEMA = pa.schema([("n", pa.int64()), ("split", pa.string())])
STAGE = Stage(StageName.LOAD_PROMPTS, 1, inputs={"rows": "0"}, spec={"a": 1})
NEXT = Stage(StageName.FILTER_RESPONSES, 1, inputs={"rows": STAGE.fingerprint}, spec={})
INLINE = ExecutionSpec()
WEEK_S = 7 * 86_400.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server of our own; one client for all tests, as it takes long to make."""
    import s3fs
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture
def s3_root(bucket: str) -> str:
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def other_client(bucket: str) -> Iterator[None]:
    """Let the next store make a client of its own, from the environment as it is then."""
    import s3fs

    cached = dict(s3fs.S3FileSystem._cache)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem._cache.update(cached)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("s3_root"))


@pytest.fixture
def store(root: str) -> Store:
    return Store(root)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def _batch(*numbers: int) -> pa.RecordBatch:
    rows = [{"n": n, "split": "test" if n < 0 else "train"} for n in numbers]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _write_rows(attempt: Attempt, batches: Iterable[pa.RecordBatch]) -> None:
    with attempt.row_writer("rows", SCHEMA) as writer:
        for batch in batches:
            writer.write(batch)


def _write(attempt: Attempt) -> None:
    _write_rows(attempt, [_batch(1, 2), _batch(-3)])
    attempt.counts["rows"] = 3


def _run(root: str, work: Callable[[Attempt], None] = _write, stage: Stage = STAGE) -> StageResult:
    return run_stage(stage, StoreSpec(root=root), INLINE, work)


def _fail(attempt: Attempt) -> None:
    raise AssertionError(f"{attempt.stage.name} was done again")


def _numbers(store: Store, ref: DatasetRef, **named: Any) -> list[int]:
    return [n for batch in store.batches(ref, **named) for n in batch.column("n").to_pylist()]


def _files(store: Store, uri: str) -> list[str]:
    return [str(file) for file in store.fs.find(store.path(uri))]


def test_a_sealed_stage_is_found_and_not_done_again(store: Store) -> None:
    made = _run(store.root)
    found = _run(store.root, _fail)
    assert (made.reused, found.reused) == (False, True)
    assert found.manifest == made.manifest
    assert _numbers(store, found.dataset("rows")) == [1, 2, -3]
    assert _numbers(store, found.dataset("rows"), splits=("test",)) == [-3]


def test_force_does_the_stage_again_and_names_the_new_attempt(store: Store) -> None:
    first = _run(store.root).dataset("rows")
    forced = ExecutionSpec(force=(STAGE.name,))
    again = run_stage(STAGE, StoreSpec(root=store.root), forced, _write).dataset("rows")
    assert again.uri != first.uri
    assert _run(store.root, _fail).dataset("rows") == again


def test_a_stage_that_raises_leaves_no_manifest_and_no_files(store: Store) -> None:
    def work(attempt: Attempt) -> None:
        _write(attempt)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(store.root, work)
    assert store.find(STAGE.name, STAGE.fingerprint) is None
    assert _files(store, STAGE.name) == []
    assert not _run(store.root).reused


def test_what_work_raises_while_it_writes_comes_through_as_it_is(store: Store) -> None:
    def work(attempt: Attempt) -> None:
        with attempt.row_writer("rows", SCHEMA) as writer:
            writer.write(_batch(1))
            raise ConnectionResetError("the teacher hung up")

    with pytest.raises(ConnectionResetError, match="the teacher hung up"):
        _run(store.root, work)


def test_two_writers_of_one_fingerprint_do_no_harm(store: Store) -> None:
    attempts = [Attempt(Store(store.root), STAGE, name) for name in ("a", "b")]
    for attempt, numbers in zip(attempts, ((1, 2), (1, 2)), strict=True):
        _write_rows(attempt, [_batch(*numbers)])
    for attempt in attempts:
        attempt.seal()
    found = _run(store.root, _fail)
    assert found.manifest.attempt == "b"
    for attempt in attempts:
        ref = attempt.outputs["rows"]
        assert isinstance(ref, DatasetRef)
        assert _numbers(store, ref) == [1, 2]


def test_rows_are_split_into_shards_and_read_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_ROWS", 2)
    with store.row_writer("rows", SCHEMA) as writer:
        for n in range(0, 10, 2):
            writer.write(_batch(n, n + 1))
    ref = writer.ref("0")
    assert len(_files(store, "rows")) == 5
    assert ref.num_rows == 10
    assert _numbers(store, ref) == list(range(10))


def test_no_rows_are_a_data_set_too(store: Store) -> None:
    with store.row_writer("rows", SCHEMA) as writer:
        pass
    ref = writer.ref("0")
    assert (ref.num_rows, ref.columns) == (0, ("n", "split"))
    assert store.dataset(ref).schema.names == ["n", "split"]
    assert _numbers(store, ref) == []


def test_a_folder_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "inner").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "inner" / "weights").write_bytes(bytes(range(256)))
    store.upload("stage/model", source)
    with store.local_copy(ModelRef(uri="stage/model", fingerprint="0", num_parameters=1)) as copy:
        assert (copy / "config.json").read_text() == "{}"
        assert (copy / "inner" / "weights").read_bytes() == bytes(range(256))
        assert sorted(p.name for p in copy.iterdir()) == ["config.json", "inner"]


def test_a_file_is_replaced_in_one_piece_and_leaves_nothing_beside_it(store: Store) -> None:
    store.write_bytes("a/b.json", b'{"old": 1}')
    store.write_bytes("a/b.json", b'{"new": 2}')
    assert store.read_json("a/b.json") == {"new": 2}
    assert len(_files(store, "a")) == 1


def test_what_is_not_there_is_none_or_nothing(store: Store) -> None:
    assert store.read_json("no/where.json") is None
    assert store.list_folders("nowhere") == []
    assert garbage(store) == []
    store.delete("nowhere")


def _manifest_uri(stage: Stage = STAGE) -> str:
    return f"{stage.name}/{stage.fingerprint}/manifest.json"


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, "1", None])
def test_a_manifest_of_another_version_is_refused(store: Store, version: Any) -> None:
    _run(store.root)
    raw: Any = store.read_json(_manifest_uri())
    store.write_bytes(_manifest_uri(), json.dumps(raw | {"schema_version": version}).encode())
    with pytest.raises(StoreError, match=rf"schema_version {version!r}, and this .* only"):
        _run(store.root, _fail)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is not a JSON object.*Delete it"),
        (b'{"schema_ver', r"is not a JSON object.*Delete it"),
        (b"[1]", r"is not a JSON object.*Delete it"),
        (b"\xff\xfe", r"is not a JSON object.*Delete it"),
        (b'{"schema_version": 2}', r"is damaged: Field required\. Delete it, and the next run"),
    ],
)
def test_a_damaged_manifest_is_refused_with_advice(
    store: Store, content: bytes, match: str
) -> None:
    store.write_bytes(_manifest_uri(), content)
    with pytest.raises(StoreError, match=match):
        _run(store.root, _fail)
    store.delete(_manifest_uri())
    assert not _run(store.root).reused


def test_a_stage_is_done_again_when_its_output_is_gone(store: Store) -> None:
    first = _run(store.root).dataset("rows")
    store.delete(first.uri)
    again = _run(store.root)
    assert not again.reused
    assert _numbers(store, again.dataset("rows")) == [1, 2, -3]


def test_an_emptied_output_folder_counts_as_gone(local: Store) -> None:
    ref = _run(local.root).dataset("rows")
    for file in _files(local, ref.uri):
        Path(file).unlink()
    with pytest.raises(StoreError, match=r"is gone from the store\. Run again"):
        local.dataset(ref)
    with pytest.raises(StoreError, match=r"is gone from the store\."), querying(local, rows=ref):
        pass
    assert not _run(local.root).reused


def test_a_damaged_shard_is_named_and_done_again_once_deleted(store: Store) -> None:
    ref = _run(store.root).dataset("rows")
    store.fs.pipe_file(_files(store, ref.uri)[0], b"PAR1 and then nothing")
    with pytest.raises(StoreError, match=r"rows' is damaged: .*Delete that folder"):
        _numbers(store, ref)
    with pytest.raises(StoreError, match=r"rows' is damaged: "), querying(store, rows=ref):
        pass
    store.delete(ref.uri)
    assert not _run(store.root).reused


def test_sql_reads_all_shards_in_order_wherever_they_are(store: Store) -> None:
    ref = _run(store.root).dataset("rows")
    with querying(store, rows=ref) as sql:
        assert sql.sql("SELECT n FROM rows").fetchall() == [(1,), (2,), (-3,)]


def test_sql_takes_a_path_as_it_is_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "a [b] *?"))
    ref = _run(store.root).dataset("rows")
    with querying(store, rows=ref) as sql:
        assert sql.sql("SELECT count(*) FROM rows").fetchall() == [(3,)]


def _weeks_later(monkeypatch: pytest.MonkeyPatch, weeks: float) -> None:
    """Let the store believe that so much time has gone by."""
    now = time.time() + weeks * WEEK_S
    monkeypatch.setattr(store_module, "time", types.SimpleNamespace(time=lambda: now))


def garbage(store: Store, **options: Any) -> list[str]:
    return sorted(uri for uri, _ in store.gc(**options))


def test_gc_removes_orphans_that_are_old_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = _run(store.root).dataset("rows")
    folder = f"{STAGE.name}/{STAGE.fingerprint}"
    unsealed = f"{StageName.TRAIN_STUDENT}/{'1' * 64}"
    orphans = (f"{folder}/lost", f"{unsealed}/checkpoints", f"{unsealed}/dead")
    others = ("prefect/storage/ab/result", "aliases/t/old/note", f"{winner.uri}/beside.txt")
    for uri in (*(f"{orphan}/model/config.json" for orphan in orphans), *others):
        store.write_bytes(uri, b"x")
    _weeks_later(monkeypatch, 0.9)
    assert garbage(store) == []
    _weeks_later(monkeypatch, 1.1)
    assert garbage(store) == sorted(orphans)
    assert not any(store.fs.exists(store.path(orphan)) for orphan in orphans)
    assert all(store.fs.exists(store.path(uri)) for uri in others)
    assert _run(store.root, _fail).reused


def test_gc_keeps_a_folder_in_which_something_is_young(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = f"{STAGE.name}/{STAGE.fingerprint}/attempt"
    for name, weeks in (("old", 2.0), ("young", 0.5)):
        local.write_bytes(f"{attempt}/{name}", b"x")
        then = time.time() - weeks * WEEK_S
        os.utime(local.path(f"{attempt}/{name}"), (then, then))
    assert garbage(local) == []
    _weeks_later(monkeypatch, 0.6)
    assert garbage(local) == [attempt]


def test_gc_keeps_an_attempt_that_has_written_nothing_yet(local: Store) -> None:
    local.make_folder(f"{STAGE.name}/{STAGE.fingerprint}/just-begun")
    assert garbage(local) == []


def test_gc_keeps_what_another_stage_or_an_alias_names(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _run(store.root).dataset("rows")
    _run(store.root, lambda attempt: attempt.outputs.update(rows=first), NEXT)
    model = f"{StageName.TRAIN_STUDENT}/{'1' * 64}/attempt/model"
    store.write_bytes(f"{model}/config.json", b"{}")
    promoted = ModelRef(uri=model, fingerprint="1", num_parameters=1)
    forced = ExecutionSpec(force=(STAGE.name,))
    run_stage(STAGE, StoreSpec(root=store.root), forced, _write)  # the first attempt has lost
    _weeks_later(monkeypatch, 2)
    assert garbage(store, keep=[promoted]) == []
    store.delete(_manifest_uri(NEXT))
    assert garbage(store) == sorted(uri.rsplit("/", 1)[0] for uri in (first.uri, model))


def test_gc_removes_old_results_but_what_an_alias_or_a_younger_result_needs(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _run(local.root).dataset("rows")
    other = dataclasses.replace(STAGE, logic_version=99)
    plain = run_stage(other, StoreSpec(root=local.root), ExecutionSpec(), _write).dataset("rows")
    _weeks_later(monkeypatch, 5)
    _run(local.root, lambda attempt: attempt.outputs.update(rows=named), NEXT)
    young = Path(local.path(_manifest_uri(NEXT)))
    then = time.time() + 4 * WEEK_S
    os.utime(young, (then, then))
    month: Any = {"results_older_than_s": 4 * WEEK_S}
    assert garbage(local) == []
    listed = local.gc(**month, dry_run=True)
    assert [uri for uri, _ in listed] == [f"{STAGE.name}/{other.fingerprint}"]
    folder = Path(local.path(listed[0].uri))
    assert listed[0].num_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert local.holds(plain)
    assert local.gc(**month) == listed
    assert not folder.exists() and local.holds(named)
    _weeks_later(monkeypatch, 9)
    assert garbage(local, **month) == sorted(
        f"{stage.name}/{stage.fingerprint}" for stage in (STAGE, NEXT)
    )


def test_gc_stops_before_a_manifest_that_it_cannot_read(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = f"{NEXT.name}/{NEXT.fingerprint}/lost/rows.parquet"
    local.write_bytes(orphan, b"x")
    local.write_bytes(_manifest_uri(), b'{"schema_version": 99}')
    _weeks_later(monkeypatch, 2)
    with pytest.raises(StoreError, match="schema_version 99"):
        local.gc()
    assert local.fs.exists(local.path(orphan))


class _FullDisk:
    """A file that takes some bytes and then has no space left."""

    def __init__(self, file: Any, space: int) -> None:
        self._file, self._space = file, space

    def write(self, content: Any) -> int:
        self._space -= len(memoryview(content).cast("B"))
        if self._space < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def _disk_full(store: Store, space: int) -> Iterator[None]:
    """Let every Parquet file of the store take only so many bytes."""
    from fsspec.implementations.local import LocalFileSystem

    def open_(self: Any, path: str, mode: str = "rb", **named: Any) -> Any:
        file = plain(self, path, mode, **named)
        return _FullDisk(file, space) if mode == "wb" and path.endswith(".parquet") else file

    plain = LocalFileSystem.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFileSystem, "open", open_)
        yield


def _many_rows(attempt: Attempt) -> None:
    batches = (_batch(*range(start, start + 5000)) for start in range(0, 50_000, 5000))
    _write_rows(attempt, batches)


@pytest.mark.parametrize("space", [0, 3, 20_000])
def test_a_disk_that_fills_up_within_a_shard_costs_this_stage_only(
    local: Store, space: int
) -> None:
    _run(local.root, stage=STAGE)
    with (
        _disk_full(local, space),
        pytest.raises(StoreError, match=r"rows': No space left on device\. Free some space and"),
    ):
        _run(local.root, _many_rows, NEXT)
    assert _files(local, NEXT.name) == []
    assert _run(local.root, _fail, STAGE).reused
    assert _run(local.root, _many_rows, NEXT).dataset("rows").num_rows == 50_000


def test_a_disk_that_is_really_full_is_told(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes no byte: the system's own ENOSPC."""
    monkeypatch.setattr("distillery.storage.stage.new_attempt", lambda: "attempt")
    folder = Path(local.path(f"{NEXT.name}/{NEXT.fingerprint}/attempt/rows"))
    folder.mkdir(parents=True)
    (folder / "00000.parquet").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"No space left on device\. Free some space"):
        _run(local.root, _many_rows, NEXT)
    assert _files(local, NEXT.name) == []


def test_a_disk_that_is_full_when_the_manifest_is_put_leaves_the_stage_undone(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _run(local.root, stage=STAGE)
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"manifest.*Free some"):
        patch.setattr(Path, "write_bytes", full)
        _run(local.root, stage=NEXT)
    assert find_stage(NEXT, StoreSpec(root=local.root), INLINE) is None
    assert _files(local, NEXT.name) == []
    assert _run(local.root, _fail, STAGE).reused
    assert not _run(local.root, stage=NEXT).reused


def test_a_manifest_that_cannot_be_put_leaves_the_one_before_it(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _run(local.root)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(Path, "replace", no_space)
        forced = ExecutionSpec(force=(STAGE.name,))
        run_stage(STAGE, StoreSpec(root=local.root), forced, _write)
    assert _run(local.root, _fail).manifest == made.manifest
    assert len(_files(local, f"{STAGE.name}/{STAGE.fingerprint}")) == 2


def test_a_root_below_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*Check that store\.root exists"):
        _run(str(tmp_path / "file" / "store"))


def test_a_root_on_a_file_system_without_folders_is_refused() -> None:
    with pytest.raises(StoreError, match="cannot write '/proc/store"):
        _run("/proc/store")


_AS_NOBODY = """
import os, sys
from tests.storage.test_store import NEXT, _fail, _run
from schemas.errors import StoreError

os.setgroups([]); os.setgid(65534); os.setuid(65534)
assert _run(sys.argv[1], _fail).reused, "reading needs no right to write"
try:
    _run(sys.argv[1], stage=NEXT)
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_user_who_may_not_write_reuses_and_is_told() -> None:
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        _run(root)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, root],
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert "permission denied. Give this user write access" in done.stdout, done.stderr
        assert not (Path(root) / NEXT.name).exists()


def test_missing_permission_is_told(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(StoreError, match=r"permission denied\. Give this user write access, or"):
        _run(local.root)


def test_missing_credentials_are_told(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, other_client: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"(?i)credentials.*run again\."):
        _run(s3_root)


def test_a_bucket_that_nobody_made_is_refused_and_not_made(bucket: str) -> None:
    with pytest.raises(StoreError, match="cannot write 'nobody-made-this"):
        _run("s3://nobody-made-this/prefix")
    assert not Store(bucket).fs.exists("nobody-made-this")


def test_a_store_that_nothing_answers_for_is_told(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, other_client: None
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=r"cannot read .*run again\."):
        _run(s3_root)


@pytest.mark.parametrize("root", ["s4://bucket/store", "gopher://host/x"])
def test_an_unknown_kind_of_store_is_refused(root: str) -> None:
    with pytest.raises(StoreError, match=rf"cannot open store '{root}'.*Correct store\.root"):
        Store(root)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/store").path("x") == str(tmp_path / "store" / "x")
