"""Measure teacher generation against a stub endpoint, beside a bare client, in one run.

    python -m benchmarks.generation [--cases abc] [--repeats N] [--quick] [--clients bare]

Ours runs as a user runs it, ``distillery generate RECIPE``, with a store, a ledger
and a Prefect home of its own. The cases and their goals are in ``cases.py``.
"""

import argparse
import collections
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.bench import Bench, Client
from benchmarks.cases import CASES, Case
from benchmarks.processes import ProcessError, Stub
from benchmarks.report import dated_name, machine, markdown_table, versions


class Results:
    """The values of all cases, and which of them ended early."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
        self.crashed: dict[tuple[str, str], str] = {}

    def run(self, bench: Bench, case: Case, client: Client, repeat: int) -> None:
        """Add one repeat; a case that crashed once is not tried again."""
        if (case.letter, client) in self.crashed:
            return
        try:
            found = case.run(bench, client, repeat)
        except Exception as error:
            self.crashed[case.letter, client] = str(error)
            expected = isinstance(error, ProcessError)
            print(error if expected else traceback.format_exc(), file=sys.stderr, flush=True)
            return
        shown = []
        for metric, value in zip(case.metrics, found, strict=True):
            if value is not None:
                self.values[case.letter, metric.name, client].append(value)
                shown.append(f"{value:,.{metric.digits}f}")
        line = f"{case.letter} {case.run.__name__}, {client}, {repeat + 1}: {'; '.join(shown)}"
        print(line, file=sys.stderr, flush=True)


def run_cases(
    bench: Bench, cases: list[Case], clients: list[Client], repeats: int | None
) -> Results:
    """Return the results of all cases, side by side, repeat by repeat."""
    results = Results()
    if "ours" in clients:
        try:
            bench.warm_up()
        except ProcessError as error:
            print(error, file=sys.stderr, flush=True)
            results.crashed |= {(case.letter, "ours"): "the warm-up failed" for case in cases}
    planned = {case.letter: repeats or case.repeats for case in cases}
    for repeat in range(max(planned.values(), default=0)):
        for case in cases:
            # Who goes first alternates: the pace of a machine drifts.
            for client in clients if repeat % 2 == 0 else clients[::-1]:
                if repeat < planned[case.letter] and client in case.clients:
                    results.run(bench, case, client, repeat)
    return results


def main() -> int:
    """Run the cases, print the table and return the exit code."""
    arguments = _parse_arguments()
    clients: list[Client] = [c for c in ("ours", "bare") if c in arguments.clients.split(",")]
    cases = [case for case in CASES if case.letter in arguments.cases]
    is_quick = arguments.quick
    # So that what was started is ended, whichever way this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, load = time.monotonic(), ", ".join(f"{value:.2f}" for value in os.getloadavg())
    folder = Path(tempfile.mkdtemp(prefix="bench-generation-"))
    try:
        with Stub() as stub:
            bench = Bench(folder, stub, is_quick=is_quick, timeout_s=arguments.timeout_s)
            repeats = arguments.repeats or (1 if is_quick else None)
            results = run_cases(bench, cases, clients, repeats)
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    metrics = [(case.letter, metric) for case in cases for metric in case.metrics]
    lines = [
        f"# Teacher generation{', a tenth of the rows' if is_quick else ''}",
        "",
        f"- Command: `{' '.join(['python -m benchmarks.generation', *sys.argv[1:]])}`",
        f"- Machine: {machine()}; stub and client on the same cores",
        f"- Versions: {versions()}",
        f"- Load average at the start: {load}; minutes in all: {minutes:.1f}",
        "",
        markdown_table(metrics, results.values, results.crashed),
        "",
        *(f"- {note}" for note in bench.notes),
    ]
    print("\n".join(lines))
    is_full = len(cases) == len(CASES) and len(clients) == 2 and not is_quick
    output = arguments.output
    if output is None and is_full:
        output = Path(__file__).parent / dated_name("generation")
    if output is not None:
        output.write_text("\n".join(lines) + "\n", "utf-8")
    return 1 if results.crashed else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    letters = "".join(case.letter for case in CASES)
    parser.add_argument("--cases", default=letters, help="letters of the table (default: all)")
    parser.add_argument("--clients", default="ours,bare", help="ours, bare, or both with a comma")
    parser.add_argument("--repeats", type=int, help="of every case (default: 3 where times vary)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="for one command")
    parser.add_argument("--output", type=Path, help="Markdown file; a full run writes a dated one")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(letters):
        parser.error(f"there are no cases {''.join(sorted(unknown))!r}. Known: {letters}.")
    if unknown := set(arguments.clients.split(",")) - {"ours", "bare"}:
        parser.error(f"there are no clients {sorted(unknown)}. Known: ours, bare.")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
