"""The table of one setting: what each objective gained over hard targets, and what it cost."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.school import Cost, Learnt

LITTLE_MORE = 1.1
"""Times that count as equal: what soft targets may take over hard ones."""

Learnts = Mapping[int, Learnt]
"""By seed."""


def table(
    learnt: Mapping[str, Learnts],
    costs: Mapping[str, Cost],
    titles: Mapping[str, str],
    hard: Sequence[str],
    metric: str,
) -> str:
    """Return the table: means over seeds with their 95 % intervals.

    Differences are paired: students of one seed start from the same weights and meet the rows in
    the same order. At equal tokens an objective is compared with the first of ``hard``, at equal
    time with the one whose training takes as long or, where none does, the next longer one.

    Args:
        learnt: By the name of an objective; without those that have not been measured.
        costs: The same.
        titles: What the table calls them.
        hard: Names of hard targets, by rising number of epochs; they share a cost.
        metric: Of the answers.
    """
    times = {
        name: _training_s(learnt[name], costs, name, hard[0])
        for name in learnt
        if name in costs and hard[0] in costs
    }
    unit = times.get(hard[0])
    lines = [
        f"| objective | seeds | step time | memory | training time | {metric}, % | "
        "minus hard targets | minus hard targets at equal time | agreement with the teacher, % | "
        f"{metric} by seed, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, runs in learnt.items():
        rival = _rival(times, name, hard)
        cells = [
            titles[name],
            str(len(runs)),
            _over(costs, name, hard[0], "step_s"),
            _over(costs, name, hard[0], "peak_bytes"),
            f"{times[name] / unit:.1f} x" if name in times and unit else "-",
            interval([run.quality for run in runs.values()]),
            gain(runs, learnt.get(hard[0], {})) if name != hard[0] else "-",
            f"{gain(runs, learnt[rival])} ({times[rival] / unit:.0f} x)"
            if rival and unit and name not in hard
            else "-",
            interval([run.agreement for run in runs.values()]),
            ", ".join(f"{100 * run.quality:.1f}" for _, run in sorted(runs.items())),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _training_s(runs: Learnts, costs: Mapping[str, Cost], name: str, hard: str) -> float:
    """Return the seconds that a training takes, by its steps."""
    one = next(iter(runs.values()))
    return one.steps * costs[name].step_s + one.steps_before * costs[hard].step_s


def _rival(times: Mapping[str, float], name: str, hard: Sequence[str]) -> str | None:
    """Return the hard targets that had as much time, or the next more; None: none had."""
    if name not in times:
        return None
    enough = (each for each in hard if each in times and times[name] <= LITTLE_MORE * times[each])
    return next(enough, None)


def _over(costs: Mapping[str, Cost], name: str, hard: str, what: str) -> str:
    """Return a cost over that of hard targets; of hard targets themselves as it is."""
    if name not in costs or hard not in costs:
        return "-"
    own, theirs = getattr(costs[name], what), getattr(costs[hard], what)
    if own != theirs:
        return f"{own / theirs:.2f} x"
    return f"{own / 2**30:.1f} GiB" if what == "peak_bytes" else f"{1e3 * own:,.0f} ms"


def gain(runs: Learnts, rivals: Learnts) -> str:
    """Return the difference in the seeds that both have; bold when its interval is without 0."""
    pairs = [(run.quality, rivals[seed].quality) for seed, run in runs.items() if seed in rivals]
    if not pairs:
        return "-"
    differences = [own - theirs for own, theirs in pairs]
    text = interval(differences, sign="+")
    if len(differences) < 2 or abs(statistics.mean(differences)) <= half_width(differences):
        return text
    return f"**{text}**"


def interval(shares: Sequence[float], *, sign: str = "") -> str:
    """Return mean ± half of the 95 % interval, by Student's t, in percent.

    >>> interval([0.5, 0.7]), interval([0.25], sign="+")
    ('60.0 ± 127.1', '+25.0')
    """
    mean = f"{100 * statistics.mean(shares):{sign}.1f}"
    return mean if len(shares) < 2 else f"{mean} ± {100 * half_width(shares):.1f}"


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean, by Student's t."""
    from scipy.stats import t

    error = statistics.stdev(values) / len(values) ** 0.5
    return float(error * t.ppf(0.975, len(values) - 1))
