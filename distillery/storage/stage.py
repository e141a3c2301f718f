"""One stage of the pipeline: look for its manifest, otherwise do the work and seal it."""

import contextlib
import functools
import importlib.metadata
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
from pydantic import JsonValue

from distillery.storage.fingerprint import file_hash, sha256
from distillery.storage.store import RowWriter, Store, new_attempt
from schemas.base import versioned
from schemas.errors import StoreError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.manifest import Manifest
from schemas.refs import DatasetRef, ModelRef, ReportRef

logger = logging.getLogger(__name__)
R = TypeVar("R", DatasetRef, ModelRef, ReportRef)

_ROOT = Path(__file__).resolve().parents[2]
_VERSIONED_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "prefect")


@dataclass(frozen=True)
class Stage:
    """What identifies one stage's result: its name, its logic, its inputs, its settings."""

    name: StageName

    logic_version: int
    """Raised whenever the stage's code would give another result."""

    inputs: dict[str, Any]
    """Fingerprints of what goes in."""

    spec: dict[str, Any]
    """The parts of the recipe that the stage reads; runtime fields do not count."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the hash of all of it, 64 hex digits."""
        return sha256(
            {
                "stage": self.name,
                "logic_version": self.logic_version,
                "inputs": self.inputs,
                "spec": versioned(self.spec),
            }
        )


@dataclass(frozen=True)
class StageResult:
    """The manifest of a finished stage, and whether it was there before."""

    manifest: Manifest
    reused: bool

    subject: str = ""
    """Who or what the stage was about, where it runs several times in one run."""

    @property
    def sentence(self) -> str:
        """Return one line for a log: the stage, what it counted, how long it took."""
        made = self.manifest
        name = f"{made.stage} ({self.subject})" if self.subject else made.stage
        if self.reused:
            return f"{name}: reused, made {made.created_at:%Y-%m-%d %H:%M:%S} UTC"
        counts = ", ".join(f"{count:,} {name}" for name, count in made.counts.items())
        return f"{name}: {counts or 'done'} ({made.timings_s['total']:.1f} s)"

    @property
    def drop_reasons(self) -> dict[str, int]:
        """Return how many rows were put aside, by reason, most frequent first."""
        return cast("dict[str, int]", self.manifest.facts.get("reasons", {}))

    def dataset(self, name: str) -> DatasetRef:
        """Return the output data set ``name``."""
        return self._output(name, DatasetRef)

    def model(self, name: str) -> ModelRef:
        """Return the output model ``name``."""
        return self._output(name, ModelRef)

    def report(self, name: str) -> ReportRef:
        """Return the output report ``name``."""
        return self._output(name, ReportRef)

    def _output(self, name: str, kind: type[R]) -> R:
        ref = self.manifest.outputs[name]
        assert isinstance(ref, kind)
        return ref


@dataclass
class Attempt:
    """One attempt at a stage: a folder of its own, and what will go into the manifest."""

    store: Store
    stage: Stage
    folder: str
    outputs: dict[str, DatasetRef | ModelRef | ReportRef] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    """By part. `total` may be set to the time spent before the attempt; its own is added."""
    facts: dict[str, JsonValue] = field(default_factory=dict)
    cost: float | None = None
    currency: str | None = None

    @property
    def uri(self) -> str:
        """Return the attempt's folder, relative to the root of the store."""
        return f"{self.stage.name}/{self.stage.fingerprint}/{self.folder}"

    @property
    def checkpoints_uri(self) -> str:
        """Return the folder of what an attempt leaves for the next one at this fingerprint."""
        return f"{self.stage.name}/{self.stage.fingerprint}/checkpoints"

    @contextlib.contextmanager
    def row_writer(self, name: str, schema: pa.Schema) -> Iterator[RowWriter]:
        """Yield a writer of output ``name``."""
        with self.store.row_writer(f"{self.uri}/{name}", schema) as writer:
            yield writer
        self.outputs[name] = writer.ref(self.stage.fingerprint)

    def add_model(self, name: str, folder: Path, *, num_parameters: int) -> ModelRef:
        """Upload a local model folder as output ``name``."""
        report = self.add_folder(name, folder)
        ref = ModelRef(**dict(report), num_parameters=num_parameters)
        self.outputs[name] = ref
        return ref

    def add_folder(self, name: str, folder: Path) -> ReportRef:
        """Upload a local folder of files for people as output ``name``."""
        uri = f"{self.uri}/{name}"
        self.store.upload(uri, folder)
        ref = ReportRef(uri=uri, fingerprint=self.stage.fingerprint)
        self.outputs[name] = ref
        return ref

    def seal(self) -> Manifest:
        """Put the manifest: from now on the stage is complete."""
        manifest = Manifest(
            stage=self.stage.name,
            fingerprint=self.stage.fingerprint,
            attempt=self.folder,
            created_at=datetime.now(UTC),
            logic_version=self.stage.logic_version,
            inputs=dict(self.stage.inputs),
            spec=versioned(self.stage.spec),
            outputs=self.outputs,
            counts=self.counts,
            timings_s=self.timings_s,
            cost=self.cost,
            currency=self.currency,
            facts=self.facts,
            versions=_library_versions(),
            git_sha=_git_sha(),
            lock_hash=_lock_hash(),
        )
        uri = f"{self.stage.name}/{self.stage.fingerprint}/manifest.json"
        self.store.write_bytes(uri, manifest.model_dump_json(indent=1).encode())
        return manifest


def find_stage(stage: Stage, store: StoreSpec, execution: ExecutionSpec) -> StageResult | None:
    """Return the finished result of ``stage``, or None when it has to be made."""
    if execution.forces(stage.name):
        return None
    opened = Store(store.root)
    manifest = opened.find(stage.name, stage.fingerprint)
    if manifest is None or not all(map(opened.holds, manifest.outputs.values())):
        return None
    return StageResult(manifest, reused=True)


def run_stage(
    stage: Stage, store: StoreSpec, execution: ExecutionSpec, work: Callable[[Attempt], None]
) -> StageResult:
    """Return the result of ``stage``: from its manifest, or by doing ``work`` and sealing it.

    When ``work`` raises, nothing is sealed and the next run starts this stage again. What the
    attempt wrote is deleted as far as possible, but not its checkpoints; those go with the seal.
    """
    if found := find_stage(stage, store, execution):
        return found
    attempt = Attempt(Store(store.root), stage, new_attempt())
    try:
        start = time.perf_counter()
        work(attempt)
        took = time.perf_counter() - start
        attempt.timings_s["total"] = round(attempt.timings_s.get("total", 0.0) + took, 3)
        manifest = attempt.seal()
    except BaseException:
        with contextlib.suppress(StoreError):
            attempt.store.delete(attempt.uri)
        raise
    try:
        attempt.store.delete(attempt.checkpoints_uri)
    except StoreError as error:
        logger.warning("checkpoints stay in the store: %s", error)
    return StageResult(manifest, reused=False)


@functools.cache
def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def _git_sha() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _lock_hash() -> str | None:
    lock = _ROOT / "constraints.txt"
    return file_hash(lock) if lock.is_file() else None
