"""Measure what Prefect adds to the generation stage: the flow, and its library calls alone.

    python -m benchmarks.orchestration [--rows 50000] [--repeats 3]

Both answer the same prompts, in turns and in one process, each into a store of its own; a stub
without latency on the same cores makes orchestration weigh as much as it can. What counts is CPU
time of the process, which other programs disturb less than seconds.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from benchmarks import scale
from benchmarks.processes import Stub
from benchmarks.report import Metric
from benchmarks.results import Line, goal_table, heading, load_average, result_path
from cli.runs import run_flow
from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.models.hardware import cpu_threads
from distillery.teacher.collection import collect_responses
from distillery.teacher.generation import (
    CHUNKS_AT_A_TIME,
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.recipe import GenerationRecipe, load_recipe
from schemas.refs import DatasetRef

if TYPE_CHECKING:
    from prefect import Flow


class Took(NamedTuple):
    """What one way of answering all prompts took."""

    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure in turns, print the table and write the result."""
    arguments = _parse_arguments()
    began, load = time.monotonic(), load_average()
    took: dict[str, list[Took]] = {"flow": [], "library": []}
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="bench-orchestration-") as made, Stub() as stub:
        folder = Path(made)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        os.chdir(folder)
        try:
            scale.write_rows(folder, arguments.rows)
            stub.reset(latency_ms=0.0)
            recipe = {
                name: section
                for name, section in scale.recipe(stub.base_url).items()
                if name in GenerationRecipe.model_fields and name != "filters"
            }
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
            loaded = load_recipe(folder / "recipe.yaml", [], GenerationRecipe)
            run_flow(loaded, lambda: _flow(loaded, arguments.repeats, took))
        finally:
            os.chdir(here)
    case, pairs = f"{arguments.rows:,} prompts", [*zip(took["flow"], took["library"], strict=True)]
    table = goal_table(
        [
            *(
                Line(case, Metric(f"{what}, {way}", digits=1), [each[place] for each in took[way]])
                for place, what in enumerate(("seconds", "CPU seconds"))
                for way in took
            ),
            *(
                Line(
                    case,
                    Metric(f"orchestration's share of {what}", goal=goal, digits=3),
                    [1 - library[place] / flow[place] for flow, library in pairs],
                )
                for place, what, goal in ((0, "seconds", None), (1, "CPU seconds", 0.02))
            ),
        ]
    )
    minutes = (time.monotonic() - began) / 60
    title = "Orchestration of the generation stage"
    head = heading(title, "benchmarks.orchestration", load=load, minutes=minutes)
    text = "\n".join([*head, table])
    print(text)
    (arguments.output or result_path("orchestration")).write_text(text + "\n", "utf-8")
    return 0


def _flow(recipe: GenerationRecipe, repeats: int, took: dict[str, list[Took]]) -> "Flow[..., None]":
    from prefect import flow

    from flows.generate_responses import generate_responses

    def by_flow(prompts: DatasetRef, store: StoreSpec, execution: ExecutionSpec) -> None:
        generate_responses(store, execution, prompts, recipe.teacher, recipe.task)

    def by_library(prompts: DatasetRef, store: StoreSpec, execution: ExecutionSpec) -> None:
        asked = (prompts, recipe.teacher, recipe.task, store)
        chunks = plan_chunks(prompts, execution.chunk_rows, store)
        with (
            open_session(*asked) as session,
            cpu_threads(execution),
            ThreadPoolExecutor(CHUNKS_AT_A_TIME) as threads,
        ):
            [*threads.map(lambda chunk: generate_chunk(chunk, session, recipe.task), chunks)]
        stage = generation_stage(prompts, recipe.teacher, recipe.task)
        collect_responses(stage, *asked, execution, session.totals)

    ways: dict[str, Callable[[DatasetRef, StoreSpec, ExecutionSpec], None]] = {
        "flow": by_flow,
        "library": by_library,
    }

    @flow(name="orchestration")
    def measure() -> None:
        here = (recipe.store, recipe.execution)
        loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
        valid = validate_prompts(loaded, recipe.task, recipe.data, *here).dataset("prompts")
        for repeat in range(-1, repeats):  # the first of each imports and warms up
            for name in list(ways) if repeat % 2 == 0 else reversed(list(ways)):
                store = StoreSpec(root=f"{recipe.store.root}-{name}-{repeat}")
                shutil.copytree(recipe.store.root, store.root)
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                ways[name](valid, store, recipe.execution)
                found = Took(time.perf_counter() - wall_s, time.process_time() - cpu_s)
                print(f"{name}: {found}", file=sys.stderr, flush=True)
                if repeat >= 0:
                    took[name].append(found)
                shutil.rmtree(store.root)

    return measure


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=50_000, help="prompts, for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file (default: a dated one here)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
