"""Conditions of a gate: which figure of a comparison each is about, and whether it holds.

Of a metric the end of its interval counts, never the estimate: what a test set cannot show has not
been shown. A figure that is missing or not finite fails its condition, with the reason.
"""

import dataclasses
import math
import operator
from collections.abc import Callable

from schemas.base import nearest
from schemas.comparison import MAJORITY, Comparison, ContestantFigures, Interval, SliceFigures
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.gate import LimitCondition, LimitFigure, QualityCondition
from schemas.promotion import GateCheck
from schemas.refs import ModelRef


@dataclasses.dataclass(frozen=True)
class Trial:
    """Who is held to the conditions, on which figures."""

    comparison: Comparison
    """The figures."""

    champion: ModelRef | None = None
    """Whom the student would replace; it has to be among the contestants. None: nobody."""

    is_lost: bool = False
    """Whether the champion's files are gone, so that it could not take part."""

    forms: tuple[str, ...] = ()
    """Exported forms of the student, which are held to the same conditions."""

    candidate: str = STUDENT
    """Whose turn it is: the student, or one of its forms."""

    def absence(self, name: str) -> str:
        """Return why ``name`` cannot be held against the candidate; "" when it can."""
        found = self.comparison.contestant(name)
        if name == CHAMPION and self.champion is not None:
            uri = self.champion.uri
            if self.is_lost:
                return (
                    f"the champion {uri!r} is gone from the store. Restore its files, or set "
                    "gate.alias to another name"
                )
            if found is None or found.model != uri:
                return f"{uri!r} was promoted while this run was under way. Run again"
        return "" if found else f"no {name} took part in the comparison"


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a condition looks at."""

    name: str
    """In words."""

    value: float | None
    """None: it is missing."""

    why: str = ""
    """Why it is missing."""


def quality_figure(trial: Trial, asked: QualityCondition) -> Figure:
    """Return the lower end of the interval that ``asked`` is about."""
    comparison, candidate = trial.comparison, trial.candidate
    metric = _metric(comparison, asked.metric)
    among = (f" in {metric or asked.metric}" if asked.metric else "") + (
        f" on {asked.slice}" if asked.slice else ""
    )
    if asked.against is None:
        what = f"{candidate}'s {metric or asked.metric}"
        name = f"lower end of the interval of the {what}"
        name += f" on {asked.slice}" if asked.slice else ""
    else:
        name = f"lower end of the interval of {candidate} minus {asked.against}{among}"
    if metric is None:
        known = _metrics(comparison)
        near = nearest((asked.metric or "").lower(), known)
        return Figure(name, None, f"no metric has that name.{near} Known: {', '.join(known)}")
    part: SliceFigures | None = None
    if asked.slice is not None:
        part = next((one for one in comparison.slices if one.name == asked.slice), None)
        if part is None:
            why = (
                f"the test rows have no slice {asked.slice!r} of evaluation.min_slice_rows rows or "
                f"more.{nearest(asked.slice, [one.name for one in comparison.slices])}"
            )
            return Figure(name, None, why)
    if asked.against is None:
        return _low(name, _own(comparison, candidate, metric, part), f"no row of the {candidate}")
    if why := trial.absence(asked.against):
        return Figure(name, None, why)
    return _low(
        name,
        _difference(comparison, candidate, asked.against, metric, part),
        f"no row of both in {metric}",
    )


def loss_figure(trial: Trial, against: str) -> Figure:
    """Return how much worse than ``against`` the candidate may be: the upper end of its loss."""
    name = f"upper end of the interval of {against} minus {trial.candidate}"
    if why := trial.absence(against):
        return Figure(name, None, why)
    comparison = trial.comparison
    found = _difference(comparison, trial.candidate, against, comparison.metric, None)
    low = _low(name, found, "no row of both")
    return dataclasses.replace(low, value=None if low.value is None else -low.value)


def retention_figure(trial: Trial) -> Figure:
    """Return the lower end of the interval of candidate / teacher."""
    name = f"lower end of the interval of {trial.candidate} / teacher"
    comparison = trial.comparison
    teacher = comparison.contestant(TEACHER)
    if teacher is not None and 2 * teacher.num_unscored > comparison.num_rows:
        why = (
            f"the teacher is unscored on {teacher.num_unscored:,} of {comparison.num_rows:,} rows, "
            "too few for a meaningful ratio"
        )
        return Figure(name, None, why)
    found = comparison.between(trial.candidate, TEACHER)
    ratio = found.ratio if found else None
    return _low(name, ratio, "the teacher scores 0, or no row of both")


def lead_figure(trial: Trial, name: str) -> Figure:
    """Return the lower end of how much more ``name`` scores than the most frequent answer."""
    found = trial.comparison.between(name, MAJORITY)
    answer = f"{trial.comparison.majority_answer!r:.80}"
    text = f"lower end of the interval of {name} minus the most frequent answer {answer}"
    return _low(text, found.difference if found else None, f"no row of the {name}")


def unscored_figure(trial: Trial) -> Figure:
    """Return the share of rows without a score, of the model that has the most.

    Other candidates are not looked at: a form that answers nothing keeps no student back.
    """
    others = {STUDENT, *trial.forms} - {trial.candidate}
    rows = [row for row in trial.comparison.contestants if row.name not in others]
    most = max(row.num_unscored for row in rows)
    return Figure("share of unscored rows", most / max(1, trial.comparison.num_rows))


def regressions_figure(trial: Trial, against: str) -> Figure:
    """Return the number of slices in which the candidate is worse than ``against``."""
    slices = trial.comparison.slices
    name = (
        f"number of the {len(slices):,} slices in which {trial.candidate} is worse than {against}"
    )
    if why := trial.absence(against):
        return Figure(name, None, why)
    worse = [one.name for one in slices if _is_regression(one, trial, against)]
    shown = ", ".join(worse[:3]) + (", …" if len(worse) > 3 else "")
    return Figure(f"{name} ({shown})" if worse else name, float(len(worse)))


def limit_figure(trial: Trial, asked: LimitCondition) -> Figure:
    """Return the figure of speed, memory or cost that ``asked`` is about, or the ratio."""
    what, read = _LIMITS[asked.figure]
    name = f"{what} of {trial.candidate}"
    own = trial.comparison.contestant(trial.candidate)
    value = read(own) if own else None
    if own is None or value is None:
        return Figure(name, None, f"the {what} of the {trial.candidate} is not known")
    if asked.against is None:
        return Figure(name, value)
    name += f" relative to the {asked.against}'s"
    if why := trial.absence(asked.against):
        return Figure(name, None, why)
    other = trial.comparison.contestant(asked.against)
    divisor = read(other) if other else None
    if other is None or divisor is None:
        return Figure(name, None, f"the {what} of the {asked.against} is not known")
    if asked.figure == "cost_per_1000" and own.cost and other.cost:
        currencies = own.cost.currency, other.cost.currency
        if currencies[0] != currencies[1]:
            return Figure(name, None, "one is in {}, the other in {}".format(*currencies))
    if divisor <= 0:
        return Figure(name, None, f"the {asked.against}'s is {divisor:g}")
    return Figure(name, value / divisor)


def check(condition: str, figure: Figure, relation: str, required: float) -> GateCheck:
    """Return whether ``figure`` stands in ``relation`` to ``required``, and by how much."""
    holds, good, bad = _RELATIONS[relation]
    bound = f"gate.{condition}={required:g}"
    if figure.value is None or not math.isfinite(figure.value):
        return GateCheck(
            condition=condition,
            required=required,
            measured=None,
            passed=False,
            sentence=f"{figure.name} could not be computed, so {bound} fails"
            + (f": {figure.why}" if figure.why else ""),
        )
    # Sums of floats: 0.437 / 0.475 has to reach 0.92, and 0.3 - 0.1 - 0.2 must not exceed 0.
    rounded = round(figure.value, 9) + 0.0  # never -0
    passed, margin = holds(rounded, required), abs(rounded - required)
    beyond = f"{margin:.4g} {good if passed else bad}" if margin else "exactly"
    strictly = "" if passed or margin else f", not {relation} it"
    return GateCheck(
        condition=condition,
        required=required,
        measured=figure.value,
        passed=passed,
        sentence=f"{figure.name} {rounded:.4g} is {beyond} {bound}{strictly}",
    )


_RELATIONS: dict[str, tuple[Callable[[float, float], bool], str, str]] = {
    # how it is compared, what a value beyond the bound is, what one short of it is
    "at least": (operator.ge, "above", "below"),
    "above": (operator.gt, "above", "below"),
    "at most": (operator.le, "below", "above"),
    "below": (operator.lt, "below", "above"),
}

_LIMITS: dict[LimitFigure, tuple[str, Callable[[ContestantFigures], float | None]]] = {
    "latency_p50_s": ("p50 latency", lambda row: row.performance.latency_p50_s),
    "latency_p95_s": ("p95 latency", lambda row: row.performance.latency_p95_s),
    "latency_p99_s": ("p99 latency", lambda row: row.performance.latency_p99_s),
    "first_token_p50_s": ("time to first token", lambda row: row.performance.first_token_p50_s),
    "memory_bytes": ("memory", lambda row: row.memory_bytes),
    "peak_memory_bytes": ("peak memory", lambda row: row.peak_memory_bytes),
    "disk_bytes": ("size on disk", lambda row: row.disk_bytes),
    "cost_per_1000": (
        "cost per 1,000 requests",
        lambda row: row.cost.per_1000 if row.cost else None,
    ),
}


def _metrics(comparison: Comparison) -> list[str]:
    student = comparison.contestant(STUDENT)
    return list(student.metrics) if student else []


def _metric(comparison: Comparison, named: str | None) -> str | None:
    """Return the metric that people call ``named``; None: there is no such metric."""
    if named is None:
        return comparison.metric
    return next((m for m in _metrics(comparison) if m.lower() == named.lower()), None)


def _own(
    comparison: Comparison, name: str, metric: str, part: SliceFigures | None
) -> Interval | None:
    if part is not None:
        return part.quality.get(name) if metric == comparison.metric else None
    row = comparison.contestant(name)
    return row.metrics.get(metric) if row else None


def _difference(
    comparison: Comparison, name: str, against: str, metric: str, part: SliceFigures | None
) -> Interval | None:
    pairs = comparison.differences if part is None else part.differences
    wanted = (name, against, metric)
    found = next((d for d in pairs if (d.name, d.against, d.metric) == wanted), None)
    return found.difference if found else None


def _is_regression(part: SliceFigures, trial: Trial, against: str) -> bool:
    """Return whether the candidate is worse than ``against`` in this slice, or may be anything."""
    wanted = (trial.candidate, against)
    found = next((d for d in part.differences if (d.name, d.against) == wanted), None)
    # A slice in which nothing is scored for both shows nothing, and what is not shown fails.
    return found is None or found.difference is None or found.is_worse(trial.comparison.confidence)


def _low(name: str, interval: Interval | None, unscored: str) -> Figure:
    if interval is None:
        return Figure(name, None, f"{unscored} is scored")
    if interval.low is None:
        return Figure(name, None, f"{interval.num_rows:,} rows give no interval of it")
    return Figure(name, interval.low)
