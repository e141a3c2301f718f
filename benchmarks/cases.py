"""The cases of the generation benchmark, and the goals that they are held against.

Each returns one value per metric, None where it means nothing for the client.
"""

import dataclasses
import random
from collections.abc import Callable

from benchmarks.bench import CONCURRENCY, LATENCY_MS, Asked, Bench, Client, make_rows
from benchmarks.processes import ProcessError
from benchmarks.report import Metric

Values = tuple[float | None, ...]


def throughput(bench: Bench, client: Client, repeat: int) -> Values:
    """Rows per second and CPU, all rows new."""
    rows, name = make_rows(bench.num_rows(5000), seed=repeat), f"throughput-{client}-{repeat}"
    bench.stub.reset(latency_ms=LATENCY_MS)
    asked = bench.ask(client, rows, name)
    asked.require_all_right()
    seconds = asked.stats["last_request_s"] - asked.stats["first_request_s"]
    stub_cpu_s, own, tree = asked.stats["stub_cpu_s"], asked.measured.own_cpu_s, None
    beyond = tree_beyond = None
    if client == "ours":
        bench.keep_filled(name, rows)
        empty, tree = bench.empty_flow(), asked.measured.tree_cpu_s
        beyond, tree_beyond = own - empty.own_cpu_s, tree - empty.tree_cpu_s
    each = len(rows) / 1000
    cpu = (value if value is None else value / each for value in (own, beyond, tree, tree_beyond))
    return len(rows) / seconds, *cpu, stub_cpu_s / each


def cut_tail(bench: Bench, client: Client, repeat: int) -> Values:
    """Time over ideal with a lognormal latency cut at its 99th percentile, 1 s."""
    return (_tail(bench, client, repeat, "cut", max_ms=1000.0)["over_ideal"],)


def whole_tail(bench: Bench, client: Client, repeat: int) -> Values:
    """Time over ideal with the whole tail, and what the longest latency alone comes to."""
    found = _tail(bench, client, repeat, "tail")
    return found["over_ideal"], found["longest"]


def _tail(
    bench: Bench, client: Client, repeat: int, name: str, **settings: float
) -> dict[str, float]:
    """Return times over the ideal: latencies, the same for both clients, over those in flight."""
    rows = make_rows(bench.num_rows(1000), seed=repeat)
    bench.stub.reset(latency_ms=LATENCY_MS, p99_ms=1000.0, seed=repeat, **settings)
    asked = bench.ask(client, rows, f"{name}-{client}-{repeat}")
    asked.require_all_right()
    ideal_s = asked.stats["first_latencies_s"] / CONCURRENCY
    longest_s = asked.stats["longest_latency_s"]
    return {"over_ideal": _duration_s(asked) / ideal_s, "longest": longest_s / ideal_s}


def unannounced_limit(bench: Bench, client: Client, repeat: int) -> Values:
    """Time over ideal and wasted requests, with a limit that only 429s tell of."""
    rows, rate, burst = make_rows(bench.num_rows(1500), seed=repeat), 100.0, 100.0
    bench.stub.reset(latency_ms=LATENCY_MS, rate_per_s=rate, burst=burst)
    asked = bench.ask(client, rows, f"limit-{client}-{repeat}")
    asked.require_all_right()
    ideal_s = (len(rows) - burst) / rate
    return _duration_s(asked) / ideal_s, asked.stats["by_outcome"].get("limited", 0)


def faults(bench: Bench, client: Client, repeat: int) -> Values:
    """Rows that arrive through all kinds of faults."""
    rows = make_rows(bench.num_rows(2000), seed=repeat)
    bench.stub.reset(
        latency_ms=LATENCY_MS,
        error_500=0.03,
        reset=0.01,
        stall=0.005,
        malformed=0.01,
        empty=0.01,
        truncated=0.02,
        seed=repeat,
    )
    asked = bench.ask(client, rows, f"faults-{client}-{repeat}")
    bench.notes.append(
        f"d, {client}, repeat {repeat + 1}: rows {_counted(asked.states)}; "
        f"the stub's outcomes {_counted(asked.stats['by_outcome'])}"
    )
    return asked.states["right"], asked.unnamed, _duration_s(asked)


def killed_at_half(bench: Bench, client: Client, repeat: int) -> Values:
    """What ``kill -9`` of the whole process group costs the next run."""
    rows, name = make_rows(bench.num_rows(5000), seed=repeat), f"killed-{repeat}"
    bench.stub.reset(latency_ms=LATENCY_MS)
    half = len(rows) // 2
    first = bench.ask(client, rows, name, lambda: bench.stub.stats()["requests"] >= half)
    if not first.measured.killed:
        raise ProcessError("it was done before half of the requests were seen.")
    again = bench.ask(client, rows, name)
    wasted = again.stats["answered_again"]
    return wasted, len(rows) - again.states["right"], again.measured.wall_s


def warm_rerun(bench: Bench, client: Client, repeat: int) -> Values:
    """The same command again."""
    name, rows = bench.filled_store()
    bench.stub.reset(latency_ms=LATENCY_MS)
    asked = bench.ask(client, rows, name)
    asked.require_all_right()
    return asked.stats["requests"], asked.measured.wall_s - bench.empty_wall_s()


def new_among_old(bench: Bench, client: Client, repeat: int) -> Values:
    """100 rows that the store does not know, among 5,000 that it does."""
    name, old = bench.filled_store()
    rows = old + make_rows(bench.num_rows(1000) // 10, seed=repeat, start=(repeat + 1) * 100_000)
    random.Random(repeat).shuffle(rows)
    bench.stub.reset(latency_ms=LATENCY_MS)
    asked = bench.ask(client, rows, name)
    return asked.stats["requests"], len(rows) - asked.states["right"]


def duplicates(bench: Bench, client: Client, repeat: int) -> Values:
    """5,000 rows of which 1,000 repeat the text of another."""
    rows = make_rows(bench.num_rows(4000), seed=repeat)
    rows += [{**row, "id": "copy-" + row["id"]} for row in rows[: len(rows) // 4]]
    random.Random(repeat).shuffle(rows)
    bench.stub.reset(latency_ms=LATENCY_MS)
    asked = bench.ask(client, rows, f"duplicates-{client}-{repeat}")
    return asked.stats["requests"], len(rows) - asked.states["right"]


def _duration_s(asked: Asked) -> float:
    """Return the seconds from the first request to the last response."""
    seconds: float = asked.stats["last_response_s"] - asked.stats["first_request_s"]
    return seconds


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of the table."""

    letter: str
    run: Callable[[Bench, Client, int], Values]
    metrics: tuple[Metric, ...]
    repeats: int
    """So many that all cases take under six minutes: most where times vary most."""
    clients: tuple[Client, ...] = ("ours", "bare")


_CPU = "CPU s per 1,000 rows"
_NOT_RIGHT = Metric("rows not right", "0", 0)
CASES = (
    Case(
        "a",
        throughput,
        (
            Metric("5,000 rows: rows/s, first to last request", "1,280", 950, "higher"),
            Metric(f"{_CPU}, the process", goal=3.0, digits=2),
            Metric(f"{_CPU}, the process beyond an empty flow's", goal=1.2, digits=2),
            Metric(f"{_CPU}, with Prefect's temporary server", digits=2),
            Metric(f"{_CPU}, the same beyond an empty flow's", digits=2),
            Metric(f"{_CPU}, the stub", digits=2),
        ),
        repeats=3,
    ),
    Case(
        "b",
        cut_tail,
        (Metric("lognormal latency, cut at 1 s, 1,000 rows: time over ideal", "1", 1.4, digits=2),),
        repeats=3,
    ),
    Case(
        "c",
        unannounced_limit,
        (
            Metric("limit of 100/s, 1,500 rows: time over ideal", "1", 1.15, digits=2),
            Metric("429s", "0", 150),
        ),
        repeats=1,
    ),
    Case(
        "d",
        faults,
        (
            Metric("faults, 2,000 rows: right rows", "2,000"),
            Metric("rows neither right nor named with a state", "0", 0),
            Metric("seconds, first request to last response", digits=1),
        ),
        repeats=1,
    ),
    Case(
        "e",
        killed_at_half,
        (
            Metric("kill -9 at half of 5,000, run again: answered prompts asked again", "0", 64),
            _NOT_RIGHT,
            Metric("seconds of the second run, all in all", digits=1),
        ),
        repeats=1,
        clients=("ours",),
    ),
    Case(
        "f",
        warm_rerun,
        (
            Metric("warm rerun: requests", "0", 0),
            Metric("seconds beyond an empty flow", "0", 3.0, digits=1),
        ),
        repeats=1,
        clients=("ours",),
    ),
    Case(
        "g",
        new_among_old,
        (Metric("100 new rows among 5,000 old, shuffled: requests", "100", 100), _NOT_RIGHT),
        repeats=1,
        clients=("ours",),
    ),
    Case(
        "h",
        duplicates,
        (Metric("5,000 rows, 20 % duplicates: requests", "4,000", 4000), _NOT_RIGHT),
        repeats=1,
    ),
    Case(
        "i",
        whole_tail,
        (
            Metric("the whole lognormal tail, 1,000 rows: time over ideal", "1", digits=2),
            Metric("the longest latency alone, over ideal", digits=2),
        ),
        repeats=1,
    ),
)
