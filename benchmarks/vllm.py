"""Measure our generation stage against a bare client, both asking one vLLM on this machine.

    python -m benchmarks.vllm [--rows N] [--repeats N] [--python INTERPRETER] [--teacher FILE]

The demo's teacher answers the demo's prompts (`--teacher`: a file with another `teacher` section of
kind vllm). Ours is the stage: chunks, session, ledger, with a fresh store each time. The server is
started before and caches no prefixes, so that both clients ask it for the same work each time; who
asks first alternates.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from benchmarks.bare_client import answer
from benchmarks.report import Metric
from benchmarks.results import Line, goal_table, heading, load_average, result_path
from benchmarks.wide_heads import widen_heads
from deployments.vllm.environment import cpu_environment, default_folder
from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.models.hardware import cpu_threads
from distillery.teacher.generation import generate_chunk, open_session, plan_chunks
from distillery.teacher.vllm.lease import Lease
from schemas.data import ColumnMap, DataSpec, FileSource
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.task import TaskSpec
from schemas.teacher import VLLMTeacher

_DEMO = Path("recipes/demo")
_TASK = TaskSpec(name="support-triage", type="classification")
_EXECUTION = ExecutionSpec(chunk_rows=1000)
_MAX_NEW_TOKENS = 16
_TIMEOUT_S = 120.0

Rows = list[dict[str, Any]]


def main() -> int:
    """Measure in turns, print the table and write the result."""
    arguments = _parse_arguments()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # or nine tenths of the machine's memory
    began, load = time.monotonic(), load_average()
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="bench-vllm-") as made:
        folder = Path(made)
        teacher = _teacher(arguments, folder)
        lines = (_DEMO / "train.jsonl").read_text("utf-8").splitlines()[: arguments.rows]
        rows = [json.loads(line) for line in lines]
        lease = Lease(teacher, while_waiting=lambda note: print(note, end="\r", file=sys.stderr))
        try:
            few = rows[: len(rows) // 10]  # libraries, threads, memory
            _bare(few, lease, teacher)
            _ours(few, teacher, folder / "first")
            for repeat in range(arguments.repeats):
                for client in ("ours", "bare") if repeat % 2 == 0 else ("bare", "ours"):
                    if client == "ours":
                        seconds = _ours(rows, teacher, folder / f"store-{repeat}")
                    else:
                        seconds = _bare(rows, lease, teacher)
                    rates[client].append(len(rows) / seconds)
                    print(f"{client}: {rates[client][-1]:.1f} rows/s", file=sys.stderr, flush=True)
        finally:
            lease.release()
    ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    case = f"{arguments.rows:,} prompts, {teacher.concurrency} in flight"
    table = goal_table(
        [
            Line(case, Metric("rows/s, our stage", digits=1), rates["ours"]),
            Line(case, Metric("rows/s, a bare client", digits=1), rates["bare"]),
            Line(case, Metric("ours over bare", goal=0.95, better="higher", digits=3), ratios),
        ]
    )
    minutes = (time.monotonic() - began) / 60
    title = "A teacher served by the stage with vLLM"
    text = "\n".join([*heading(title, "benchmarks.vllm", load=load, minutes=minutes), table])
    print(text)
    (arguments.output or result_path("vllm")).write_text(text + "\n", "utf-8")
    return 0


def _ours(rows: Rows, teacher: VLLMTeacher, root: Path) -> float:
    """Return the seconds from opening the session to the last response in the ledger."""
    root.mkdir()
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = FileSource(path=str(root / "prompts.jsonl"), columns=ColumnMap(id="id"))
    data = DataSpec(train=source, validation_fraction=0.1)
    store = StoreSpec(root=str(root))
    loaded = load_prompts(_TASK, data, store, _EXECUTION).dataset("prompts")
    prompts = validate_prompts(loaded, _TASK, data, store, _EXECUTION).dataset("prompts")
    chunks = plan_chunks(prompts, _EXECUTION.chunk_rows, store)
    start = time.perf_counter()
    with (
        open_session(prompts, teacher, _TASK, store) as session,
        cpu_threads(_EXECUTION),
        ThreadPoolExecutor(len(chunks)) as threads,
    ):
        found = [*threads.map(lambda chunk: generate_chunk(chunk, session, _TASK), chunks)]
    seconds = time.perf_counter() - start
    if (states := sum(states.get("ok", 0) for states in found)) != len(rows):
        raise SystemExit(f"only {states} of {len(rows)} rows were answered: {found}.")
    return seconds


def _bare(rows: Rows, lease: Lease, teacher: VLLMTeacher) -> float:
    """Return the seconds that a client without a ledger takes for the same requests."""
    start = time.perf_counter()
    found = asyncio.run(
        answer(
            lease.endpoint.base_url,
            rows,
            workers=teacher.concurrency,
            timeout_s=_TIMEOUT_S,
            fields={"model": teacher.model, "temperature": 0, "max_tokens": _MAX_NEW_TOKENS},
        )
    )
    seconds = time.perf_counter() - start
    if len(found) != len(rows):
        raise SystemExit(f"the bare client got {len(found)} of {len(rows)} answers.")
    return seconds


def _teacher(arguments: argparse.Namespace, folder: Path) -> VLLMTeacher:
    if arguments.teacher is not None:
        section = yaml.safe_load(arguments.teacher.read_text("utf-8"))["teacher"]
        return TypeAdapter(VLLMTeacher).validate_python(section)
    return VLLMTeacher(
        model=str(widen_heads(_DEMO / "teacher", folder / "teacher")),
        python=arguments.python or str(cpu_environment(default_folder())),
        dtype="float32",
        max_new_tokens=_MAX_NEW_TOKENS,
        prefix_caching=False,
        extra_args=("--enforce-eager",),
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=3000, help="prompts, for each client")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", help="of an environment with vLLM (default: one is made)")
    parser.add_argument("--teacher", type=Path, help="YAML file with another teacher section")
    parser.add_argument("--output", type=Path, help="Markdown file (default: a dated one here)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
