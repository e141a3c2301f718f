"""Measure what training costs: loss kernel, steps, LoRA, steps on a GPU, soft targets in the store.

    python -m benchmarks.training [--parts kernel,steps,lora,gpu,storage] [--repeats 5] [--quick]

Prints ratios with their goals and, when all parts ran, writes a dated result beside this file.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import ProcessError
from benchmarks.results import Line, goal_table, heading, load_average, result_path

Part = Callable[[Path, int, int], tuple[list[Line], list[str]]]
"""Takes a folder, repeats and threads; returns lines of the table, and what is left out and why."""


def _kernel(folder: Path, repeats: int, threads: int) -> tuple[list[Line], list[str]]:
    from benchmarks.kernel import NAMES, measure, obstacles

    notes = [f"{NAMES[name]}: left out, {reason}." for name, reason in obstacles().items()]
    return measure(repeats), notes


def _steps(folder: Path, repeats: int, threads: int) -> tuple[list[Line], list[str]]:
    from benchmarks.steps import measure_steps

    return measure_steps(folder, repeats=repeats, threads=threads), []


def _lora(folder: Path, repeats: int, threads: int) -> tuple[list[Line], list[str]]:
    from benchmarks.lora import MOST_REPEATS, measure_lora, obstacle

    if reason := obstacle():
        return [], [reason]
    return measure_lora(folder, repeats=min(repeats, MOST_REPEATS), threads=threads), []


def _gpu(folder: Path, repeats: int, threads: int) -> tuple[list[Line], list[str]]:
    from benchmarks.gpu import measure_gpu, obstacle

    if reason := obstacle():
        return [], [reason]
    return measure_gpu(folder, repeats=repeats), []


def _storage(folder: Path, repeats: int, threads: int) -> tuple[list[Line], list[str]]:
    from benchmarks.storage import measure_storage

    return measure_storage(folder, repeats=repeats), []


PARTS: dict[str, Part] = {
    "kernel": _kernel,
    "steps": _steps,
    "lora": _lora,
    "gpu": _gpu,
    "storage": _storage,
}


def run_parts(
    names: list[str], folder: Path, repeats: int, threads: int
) -> tuple[list[Line], list[str], list[str]]:
    """Return lines and notes of the parts, and the names of those that crashed."""
    lines, notes, crashed = [], [], []
    for name in names:
        try:
            place = folder / name
            place.mkdir()
            found, left_out = PARTS[name](place, repeats, threads)
        except Exception as error:
            crashed.append(name)
            expected = isinstance(error, ProcessError)
            print(error if expected else traceback.format_exc(), file=sys.stderr, flush=True)
            notes.append(f"**{name} crashed**: {str(error).splitlines()[0]}")
            continue
        lines += found
        notes += left_out
        for note in left_out:
            print(note, file=sys.stderr, flush=True)
    return lines, notes, crashed


def main() -> int:
    """Run the parts, print the table and return the exit code."""
    arguments = _parse_arguments()
    # So that what was started is ended, whichever way this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, load = time.monotonic(), load_average()
    folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
    repeats = 1 if arguments.quick else arguments.repeats
    try:
        lines, notes, crashed = run_parts(arguments.parts, folder, repeats, arguments.threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    text = [
        *heading("Training", "benchmarks.training", load=load, minutes=minutes)[:-1],
        f"- Repeats: {repeats}; threads of the steps on the CPU: {arguments.threads}",
        "",
        goal_table(lines),
        "",
        *(f"- {note}" for note in notes),
    ]
    print("\n".join(text))
    output = arguments.output
    if output is None and arguments.parts == list(PARTS) and not arguments.quick:
        output = result_path("training")
    if output is not None:
        output.write_text("\n".join(text) + "\n", "utf-8")
    return 1 if crashed else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(PARTS),
        help=f"with commas between them, of: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="of everything (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one repeat, no dated result")
    # On a machine that does anything else, two threads wait for each other at every layer.
    parser.add_argument("--threads", type=int, default=1, help="of steps on the CPU (default: 1)")
    parser.add_argument("--output", type=Path, help="Markdown file; a full run writes a dated one")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there are no parts {sorted(unknown)}. Known: {', '.join(PARTS)}.")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
