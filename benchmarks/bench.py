"""What the cases of the generation benchmark share: the clients, their prompts, their rows."""

import collections
import dataclasses
import json
import os
import random
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.processes import REPO, Measured, ProcessError, Stub, measure
from benchmarks.stub import answer_to

Client = Literal["ours", "bare"]
Rows = list[dict[str, str]]
"""Prompts, each with `id` and `text`."""

CONCURRENCY = 64
LATENCY_MS = 50.0
TIMEOUT_S = 10.0
MAX_NEW_TOKENS = 16
_QUICK = 10
_TOPICS = ("a late parcel", "a broken lamp", "an invoice", "a lost password", "a refund")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one client did with a file of prompts."""

    measured: Measured
    stats: dict[str, Any]
    states: collections.Counter[str]
    """Rows by what became of them: `right`, a state that says why not, `missing` or `wrong`."""

    @property
    def unnamed(self) -> int:
        """Rows that are not right and do not say so."""
        return self.states["missing"] + self.states["wrong"]

    def require_all_right(self) -> None:
        """Raise when a row is not right: a time for half of the work would mean nothing."""
        if set(self.states) - {"right"}:
            raise ProcessError(f"not all rows are right: {dict(self.states)}.")


class Bench:
    """A stub, a folder to work in, and the two clients."""

    def __init__(self, folder: Path, stub: Stub, *, is_quick: bool, timeout_s: float) -> None:
        self.stub = stub
        self.notes: list[str] = []
        self._folder = folder
        self._is_quick = is_quick
        self._timeout_s = timeout_s
        self._filled: tuple[str, Rows] | None = None
        self._empty_walls_s: list[float] = []
        # A server or a profile of the user's would be another thing to measure.
        kept = {name: v for name, v in os.environ.items() if not name.startswith("PREFECT_")}
        home = str(folder / "prefect")
        self._environment = kept | {"PREFECT_HOME": home, "PYTHONPATH": str(REPO)}
        (folder / "prefect").mkdir()

    def num_rows(self, full: int) -> int:
        """Return how many rows a case has."""
        return full // _QUICK if self._is_quick else full

    def warm_up(self) -> None:
        """Let Prefect make its database, Python its bytecode and the disk its cache."""
        self.stub.reset()
        self.empty_flow()
        self.ask("ours", make_rows(100, seed=-1), "warm-up").require_all_right()

    def empty_flow(self) -> Measured:
        """Return what a flow that does nothing takes, started the same way."""
        measured = self._run(["-m", "benchmarks.empty_flow"], self._folder)
        self._empty_walls_s.append(measured.wall_s)
        return measured

    def empty_wall_s(self) -> float:
        """Return the median of the empty flows so far, without the first, which fills caches."""
        return statistics.median(self._empty_walls_s[1:] or [self.empty_flow().wall_s])

    def ask(
        self, client: Client, rows: Rows, name: str, stop_when: Callable[[], bool] | None = None
    ) -> Asked:
        """Return what ``client`` did with ``rows`` in the folder ``name``, new or used before."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        _write_rows(folder / "prompts.jsonl", rows)
        if client == "ours":
            recipe = yaml.safe_dump(make_recipe(folder, self.stub.base_url))
            (folder / "recipe.yaml").write_text(recipe, "utf-8")
            command = ["-m", "cli", "generate", "recipe.yaml"]
        else:
            command = ["-m", "benchmarks.bare_client", self.stub.base_url, "prompts.jsonl"]
            command += ["responses.jsonl", f"--workers={CONCURRENCY}", f"--timeout-s={TIMEOUT_S}"]
        measured = self._run(command, folder, stop_when)
        responses: Iterable[tuple[str, str, str]] = ()
        if not measured.killed:
            responses = _our_responses(folder) if client == "ours" else _bare_responses(folder)
        return Asked(measured, self.stub.stats(), count_states(rows, responses))

    def filled_store(self) -> tuple[str, Rows]:
        """Return a folder whose store holds 5,000 answers, and their prompts; made once."""
        if self._filled is None:
            rows = make_rows(self.num_rows(5000), seed=0)
            self.stub.reset(latency_ms=LATENCY_MS)
            self.ask("ours", rows, "filled").require_all_right()
            self._filled = ("filled", rows)
        return self._filled

    def keep_filled(self, name: str, rows: Rows) -> None:
        """Let later cases use the store of this one."""
        self._filled = (name, rows)

    def _run(
        self, command: list[str], folder: Path, stop_when: Callable[[], bool] | None = None
    ) -> Measured:
        return measure(
            command,
            folder=folder,
            environment=self._environment,
            timeout_s=self._timeout_s,
            stop_when=stop_when,
        )


def make_rows(number: int, *, seed: int, start: int = 0) -> Rows:
    """Return so many different short prompts, in no order; other starts make others."""
    draws = random.Random(seed)
    chosen = draws.sample(range(start, start + 100_000), number)
    return [{"id": f"t{n}", "text": f"ticket {n} about {draws.choice(_TOPICS)}"} for n in chosen]


def make_recipe(folder: Path, base_url: str) -> dict[str, Any]:
    """Return the recipe of a run in ``folder``, with what the schema asks for and no more."""
    _write_rows(folder / "test.jsonl", [{"id": "test", "text": "a test row", "label": "none"}])
    return {
        "task": {"name": "bench", "type": "classification"},
        "data": {
            "train": {"kind": "file", "path": "prompts.jsonl", "columns": {"id": "id"}},
            "test": {
                "kind": "file",
                "path": "test.jsonl",
                "columns": {"id": "id", "reference": "label"},
            },
        },
        "teacher": {
            "kind": "openai",
            "base_url": base_url,
            "model": "stub",
            "concurrency": CONCURRENCY,
            "timeout_s": TIMEOUT_S,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "store": {"root": "store"},
    }


def count_states(rows: Rows, responses: Iterable[tuple[str, str, str]]) -> collections.Counter[str]:
    """Return the rows by what became of them; ``responses`` are of (id, state, text).

    >>> count_states([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}], [("a", "ok", "")])
    Counter({'wrong': 1, 'missing': 1})
    """
    found = {row_id: (state, text) for row_id, state, text in responses}
    states: collections.Counter[str] = collections.Counter()
    for row in rows:
        state, text = found.get(row["id"], ("missing", ""))
        if state == "ok":
            state = "right" if text == answer_to(row["text"]) else "wrong"
        states[state] += 1
    return states


def _write_rows(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _bare_responses(folder: Path) -> Iterable[tuple[str, str, str]]:
    for line in (folder / "responses.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        yield row["id"], "ok", row["text"]


def _our_responses(folder: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the newest responses of the store, as its manifests name them."""
    from distillery.storage.store import Store
    from schemas.execution import StageName
    from schemas.manifest import Manifest
    from schemas.refs import DatasetRef

    paths = (folder / "store" / StageName.GENERATE_RESPONSES).glob("*/manifest.json")
    manifests = [Manifest.model_validate_json(path.read_text("utf-8")) for path in paths]
    if not manifests:
        raise ProcessError("it ended well, but the store has no responses.")
    ref = max(manifests, key=lambda manifest: manifest.created_at).outputs["responses"]
    assert isinstance(ref, DatasetRef)
    table = Store(str(folder / "store")).dataset(ref).to_table()
    columns = (table[name].to_pylist() for name in ("prompt_id", "state", "response"))
    yield from zip(*columns, strict=True)
