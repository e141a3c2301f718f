"""Measure the filters over prompts: rows per second, beside datatrove's on the same rows.

    DISTILLERY_DATATROVE=<interpreter> python -m benchmarks.filters [--rows N] [--repeats N]

Without the variable, which names an interpreter of an environment with datatrove, ours are measured
alone. DISTILLERY_ENCODER names the folder of an embedding model, or the two filters that need one
are left out; they get a twentieth of the rows. Prints the table and, at the usual size, writes a
dated result beside this file.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Metric
from benchmarks.results import Line, goal_table, heading, load_average, result_path
from distillery.data.chat import Message, dump_messages
from distillery.filters import prompt_filters
from distillery.filters.base import RowFilter, Rows
from distillery.filters.funnel import Funnel
from distillery.models.hardware import process_peak_bytes
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.frames import PromptFrame, RejectedPromptFrame, arrow_schema
from schemas.prompt_filters import (
    DecontaminationFilter,
    DiversityFilter,
    EmbeddingModel,
    LanguageFilter,
    NearDuplicateFilter,
    PiiFilter,
    PromptFilter,
    SemanticDuplicateFilter,
)
from schemas.task import TaskSpec

ROWS, HELD_OUT_ROWS, REPEATS = 10_000, 1_000, 3
_BATCH_ROWS = 4096
_BESIDE = ("near_duplicate", "decontamination", "pii")
_TICKETS = Path(__file__).parents[1] / "recipes" / "demo" / "train.jsonl"
_TASK = task_type(TaskSpec(name="bench", type="classification"))


def make_rows(num_rows: int, seed: int = 0) -> Iterator[str]:
    """Yield prompts of 8 to 60 words: one in five is like an earlier one.

    The words are those of the demo's tickets, as often as they are there. One row in five has a
    number in it, one in twenty an e-mail address.
    """
    rng = random.Random(seed)
    words = [word for line in _TICKETS.open() for word in json.loads(line)["text"].split()]
    earlier: list[list[str]] = []
    for _ in range(num_rows):
        if earlier and rng.random() < 0.2:
            text = list(rng.choice(earlier))
            for _ in range(rng.randint(0, 2)):
                text[rng.randrange(len(text))] = rng.choice(words)
        else:
            text = rng.choices(words, k=rng.randint(8, 60))
            if len(earlier) < 50_000:
                earlier.append(text)
        number = f" {rng.randrange(10**9)}" if rng.random() < 0.2 else ""
        private = f" {rng.choice(words)}@example.org" if rng.random() < 0.05 else ""
        yield " ".join(text) + number + private


def measure(spec: PromptFilter, folder: Path, num_rows: int) -> tuple[float, int]:
    """Return the seconds that a filter takes over rows, as its stage runs it, and the rows kept."""
    [(name, chosen)] = prompt_filters([spec])
    chosen.prepare(row for batch in _batches(folder / "held_out.jsonl") for row in batch)
    if isinstance(chosen, RowFilter):
        chosen.row(_prompt("first", "mail a@example.org", "rows", 1), _TASK)  # loads what it needs
    store = Store(str(folder))
    with store.row_writer("rejected", arrow_schema(RejectedPromptFrame)) as writer:
        funnel = Funnel(_TASK, PromptFrame, RejectedPromptFrame, writer)
        start = time.perf_counter()
        rows = funnel.passing([(name, chosen)], _batches(folder / "rows.jsonl", num_rows))
        num_kept = sum(map(len, rows))
        return time.perf_counter() - start, num_kept


def _batches(file: Path, num_rows: int | None = None) -> Iterator[Rows]:
    batch: Rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(itertools.islice(lines, num_rows), start=1):
            row = json.loads(line)
            batch.append(_prompt(row["id"], row["text"], file.stem, number))
            if len(batch) == _BATCH_ROWS:
                yield batch
                batch = []
    yield batch


def _prompt(prompt_id: str, text: str, file: str, number: int) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "split": "train" if file == "rows" else "test",
        "messages": dump_messages([Message(role="user", content=text)]),
        "references": None,
        "content_hash": "0" * 64,
        "cluster": prompt_id,
        "slices": None,
        "source_row": number,
    }


def _datatrove(interpreter: str, name: str, folder: Path) -> tuple[float, int]:
    script = Path(__file__).parent / "datatrove_filters.py"
    done = subprocess.run(
        [interpreter, str(script), str(folder), name], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"datatrove's {name} failed: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["kept"]


def compare(
    spec: PromptFilter, folder: Path, num_rows: int, repeats: int, datatrove: str | None
) -> list[Line]:
    """Return the lines of one filter; ours and datatrove's take turns."""
    ours, theirs, ratios, kept = [], [], [], [0, 0]
    for _ in range(repeats):
        seconds, kept[0] = measure(spec, folder, num_rows)
        ours.append(num_rows / seconds)
        if datatrove is not None and spec.kind in _BESIDE:
            seconds, kept[1] = _datatrove(datatrove, spec.kind, folder)
            theirs.append(num_rows / seconds)
            ratios.append(ours[-1] / theirs[-1])
    rate = Metric("rows/s", better="higher")
    lines = [Line(spec.kind, rate, ours), Line(spec.kind, Metric("rows kept"), kept[:1])]
    if theirs:
        lines += [
            Line(f"{spec.kind}, datatrove", rate, theirs),
            Line(f"{spec.kind}, datatrove", Metric("rows kept"), kept[1:]),
            Line(spec.kind, Metric("ours / datatrove's", better="higher", digits=2), ratios),
        ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all filters, print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.filters", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args(arguments)
    began, load, lines = time.monotonic(), load_average(), []
    specs: list[PromptFilter] = [
        DecontaminationFilter(),
        NearDuplicateFilter(),
        PiiFilter(),
        LanguageFilter(languages=("en",)),
    ]
    if encoder := os.environ.get("DISTILLERY_ENCODER"):
        embedding = EmbeddingModel(model=encoder)
        specs += [SemanticDuplicateFilter(embedding=embedding),
                  DiversityFilter(embedding=embedding, keep=0.1)]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-filters-") as name:
        folder = Path(name)
        for file, num_rows, seed in (("rows", asked.rows, 0), ("held_out", HELD_OUT_ROWS, 1)):
            with (folder / f"{file}.jsonl").open("w", encoding="utf-8") as out:
                for number, text in enumerate(make_rows(num_rows, seed)):
                    out.write(json.dumps({"id": f"{file}-{number}", "text": text}) + "\n")
        for spec in specs:
            datatrove = os.environ.get("DISTILLERY_DATATROVE")
            reads = isinstance(spec, SemanticDuplicateFilter | DiversityFilter)
            num_rows = asked.rows // 20 if reads else asked.rows
            lines += compare(spec, folder, num_rows, asked.repeats, datatrove)
            print(f"{spec.kind}: measured", file=sys.stderr)
    lines.append(Line("all", Metric("peak memory, MiB"), [process_peak_bytes() / 2**20]))
    minutes = (time.monotonic() - began) / 60
    title = f"Filters over prompts, {asked.rows:,} rows"
    text = "\n".join(
        [*heading(title, "benchmarks.filters", load=load, minutes=minutes), goal_table(lines)]
    )
    print(text)
    if asked.rows == ROWS:
        result_path("filters").write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
