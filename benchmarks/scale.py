"""Measure a large run up to the training set: memory of the flow's process, seconds by stage.

    python -m benchmarks.scale [--rows 100000,1000000]

Load, validate, filter, ask (a stub without latency, on the same cores), filter, release, as a flow
of the spine with a store, a ledger and a Prefect home of its own. Of the prompts a fiftieth comes
twice, a fiftieth differs from another in two words, and a thousandth is taken from the test rows.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.processes import REPO, Stub, measure
from benchmarks.report import dated_name, machine, versions

_TEST_ROWS = 1_000
_WORDS = 20_000
_TIMEOUT_S = 4 * 3600.0
_EVERY_S = 0.25


@dataclasses.dataclass(frozen=True)
class Found:
    """What one run took."""

    num_rows: int
    wall_s: float
    seconds: dict[str, float]
    """Of each stage, by its name."""
    counts: dict[str, dict[str, int]]
    """What each stage counted."""
    peak_bytes: int
    """The most resident memory of the flow's process."""
    peaks: dict[str, int]
    """The same while each stage ran."""
    store_bytes: int
    """What lies in store and ledger afterwards."""


def prompts(number: int, *, seed: int) -> Iterator[str]:
    """Yield prompts of 20 to 60 words, some of them again or nearly so."""
    draws = random.Random(seed)
    words = [_word(draws) for _ in range(_WORDS)]
    # Zipf's law, as in any language.
    shares = list(itertools.accumulate(1 / rank for rank in range(1, _WORDS + 1)))
    kept: list[list[str]] = []
    for _ in range(number):
        kind = draws.random()
        if kept and kind < 0.02:
            chosen = draws.choice(kept)
        elif kept and kind < 0.04:
            chosen = list(draws.choice(kept))
            for _ in range(2):
                chosen[draws.randrange(len(chosen))] = draws.choice(words)
        else:
            chosen = draws.choices(words, cum_weights=shares, k=draws.randint(20, 60))
            if len(kept) < 10_000:
                kept.append(chosen)
        yield " ".join(chosen)


def _word(draws: random.Random) -> str:
    syllables = ("ba", "co", "di", "fu", "ge", "ha", "jo", "ki", "lu", "me", "no", "pa", "ri", "su")
    return "".join(draws.choices(syllables, k=draws.randint(1, 4)))


def write_rows(folder: Path, number: int) -> None:
    """Write the prompts, the test rows and gold rows."""
    tested = list(prompts(_TEST_ROWS, seed=1))
    for name, texts in (("test", tested), ("gold", prompts(_TEST_ROWS, seed=2))):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for at, text in enumerate(texts):
                row = {"id": f"{name}-{at}", "text": text, "label": "none"}
                file.write(json.dumps(row) + "\n")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for at, text in enumerate(prompts(number, seed=0)):
            asked = tested[at // 1000 % _TEST_ROWS] if at % 1000 == 999 else text
            file.write(json.dumps({"id": f"p{at}", "text": asked}) + "\n")


def recipe(base_url: str) -> dict[str, Any]:
    """Return the recipe, with what the schema asks for and the filters."""
    source = {"kind": "file", "columns": {"id": "id"}}
    columns = {"id": "id", "reference": "label"}
    return {
        "task": {"name": "scale", "type": "classification"},
        "data": {
            "train": source | {"path": "prompts.jsonl"},
            "gold": {"kind": "file", "path": "gold.jsonl", "columns": columns},
            "test": {"kind": "file", "path": "test.jsonl", "columns": columns},
            "validation_fraction": 0.01,
        },
        "filters": {"prompts": [{"kind": "decontamination"}, {"kind": "near_duplicate"}]},
        "teacher": {
            "kind": "openai",
            "base_url": base_url,
            "model": "stub",
            "concurrency": 64,
            "max_new_tokens": 16,
        },
        "student": {
            "kind": "from_scratch",
            "tokenizer": str(REPO / "recipes" / "demo" / "teacher"),
            "num_layers": 1,
            "hidden_size": 48,
            "intermediate_size": 160,
            "num_heads": 4,
            "max_length": 512,
        },
        "training": {"max_length": 512},
        "store": {"root": "store"},
    }


class Watch:
    """Looks up the resident memory of the newest process of this command, now and then."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._done.wait(_EVERY_S):
            for child in own.children():
                try:
                    if "benchmarks.material" in child.cmdline():
                        self.samples.append((time.time(), child.memory_info().rss))
                except psutil.Error:
                    continue


def run(folder: Path, stub: Stub, number: int) -> Found:
    """Return what a run over ``number`` prompts took."""
    folder.mkdir()
    write_rows(folder, number)
    stub.reset(latency_ms=0.0)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(stub.base_url)), "utf-8")
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PREFECT_")}
    home = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(REPO)}
    (folder / "prefect").mkdir()
    with Watch() as watch:
        measured = measure(
            ["-m", "benchmarks.material", "recipe.yaml"],
            folder=folder,
            environment=kept | home,
            timeout_s=_TIMEOUT_S,
        )
    from schemas.manifest import Manifest

    seconds: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    peaks: dict[str, int] = {}
    paths = sorted((folder / "store").glob("*/*/manifest.json"), key=lambda p: p.stat().st_mtime)
    before = watch.samples[0][0]
    for path in paths:
        manifest = Manifest.model_validate_json(path.read_text("utf-8"))
        sealed = path.stat().st_mtime
        name = path.parent.parent.name
        seconds[name], counts[name] = sealed - before, manifest.counts
        peaks[name] = max((rss for at, rss in watch.samples if before <= at <= sealed), default=0)
        before = sealed
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    peak = max(rss for _, rss in watch.samples)
    return Found(number, measured.wall_s, seconds, counts, peak, peaks, size)


def table(found: list[Found]) -> str:
    """Return the seconds and peaks by stage, a column for each run."""
    lines = [
        "| stage | " + " | ".join(f"{each.num_rows:,} prompts" for each in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for stage in found[-1].seconds:
        cells = [
            f"{each.seconds.get(stage, 0):,.0f} s, {each.peaks.get(stage, 0) / 2**20:,.0f} MiB"
            for each in found
        ]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    totals = [f"{each.wall_s:,.0f} s, {each.peak_bytes / 2**20:,.0f} MiB" for each in found]
    lines.append("| in all | " + " | ".join(totals) + " |")
    stored = [f"{each.store_bytes / 2**20:,.0f} MiB" for each in found]
    lines.append("| store and ledger | " + " | ".join(stored) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the sizes one after another; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", default="100000,1000000", help="prompts of each run")
    parser.add_argument("--output", type=Path, help="Markdown file (default: a dated one)")
    arguments = parser.parse_args()
    began, load = time.monotonic(), ", ".join(f"{value:.2f}" for value in os.getloadavg())
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        with Stub() as stub:
            found = []
            for number in map(int, arguments.rows.split(",")):
                found.append(run(folder / str(number), stub, number))
                print(table(found), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counted = [
        f"- {each.num_rows:,} prompts: "
        + "; ".join(f"{stage} {counts}" for stage, counts in each.counts.items())
        for each in found
    ]
    lines = [
        "# A large run, up to the training set",
        "",
        f"- Command: `{' '.join(['python -m benchmarks.scale', *sys.argv[1:]])}`",
        f"- Machine: {machine()}; the stub on the same cores",
        f"- Versions: {versions()}",
        f"- Load average at the start: {load}; minutes in all: "
        f"{(time.monotonic() - began) / 60:.1f}",
        f"- Memory: the most resident memory of the flow's process, looked up every {_EVERY_S:g} s",
        "",
        table(found),
        "",
        *counted,
    ]
    output = arguments.output or Path(__file__).parent / dated_name("scale")
    output.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
