"""What a comparison says about the student, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.comparison import MAJORITY, Comparison, ContestantFigures, Difference, Interval
from schemas.contestants import BASELINE, CHAMPION, IN_CONTEXT, STUDENT, TEACHER
from schemas.units import (
    MISSING,
    bytes_text,
    money_text,
    percent_text,
    rate_text,
    seconds_text,
)

TARGET_RETENTION, TARGET_LATENCY_REDUCTION, TARGET_MEMORY_REDUCTION = 0.92, 0.85, 0.95
TARGET_COST_REDUCTION, TARGET_USERS = 0.6, 10
"""What the project aims at: of the primary metric kept; of time, memory and cost saved; and how
many times as many users are served."""


_MOST_NAMES = 5


@dataclass(frozen=True)
class Finding:
    """One sentence about the student, and whether a target is met."""

    text: str
    met: bool | None
    """None: it is about no target, or the figure is missing."""


def interval_text(interval: Interval | None) -> str:
    """Return a fraction and its interval as per cent.

    >>> interval_text(Interval(estimate=0.941, low=0.925, high=0.956, num_rows=500))
    '94.1 % [92.5, 95.6]'
    """
    if interval is None:
        return MISSING
    return percent_text(interval.estimate) + _ends(interval)


def points_text(interval: Interval | None, *, unit: str = " points") -> str:
    """Return a difference and its interval in percentage points, signed.

    >>> points_text(Interval(estimate=0.054, low=-0.01, high=0.1, num_rows=500))
    '+5.4 points [-1.0, 10.0]'
    >>> points_text(Interval(estimate=-1e-9, low=None, high=None, num_rows=1))
    '+0.0 points'
    """
    if interval is None:
        return MISSING
    points = round(interval.estimate * 100, 1) + 0.0  # not -0.0
    return f"{points:+.1f}{unit}" + _ends(interval)


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" [{interval.low * 100:.1f}, {interval.high * 100:.1f}]"


def _student_and_teacher(
    comparison: Comparison,
) -> tuple[ContestantFigures, ContestantFigures, Difference]:
    student, teacher = comparison.contestant(STUDENT), comparison.contestant(TEACHER)
    found = comparison.between(STUDENT, TEACHER)
    assert student and teacher and found, "a comparison without student or teacher"
    return student, teacher, found


def more_or_less(reduction: float) -> str:
    """Return a reduction in words; from twice as much on as a multiple.

    >>> more_or_less(0.878), more_or_less(-0.05), more_or_less(-1.6), more_or_less(-504.2)
    ('87.8 % less', '5.0 % more', '2.6 times as much', '505 times as much')
    """
    if reduction <= -1:
        return f"{1 - reduction:,.{0 if reduction <= -9 else 1}f} times as much"
    return f"{abs(reduction) * 100:.1f} % {'less' if reduction >= 0 else 'more'}"


def findings(comparison: Comparison) -> list[Finding]:
    """Return what the figures say: the five targets, then the student against the others."""
    student, teacher, found = _student_and_teacher(comparison)
    metric, retention = comparison.metric, found.ratio
    sentences = [
        _pay_off_sentence(comparison),
        _gain_sentence(comparison),
        _gap_sentence(comparison),
        _detectable_sentence(comparison),
        _in_context_sentence(comparison),
        _champion_sentence(comparison),
        _majority_sentence(comparison),
        _label_sentence(comparison),
        *_judge_sentences(comparison),
        _slice_sentence(comparison),
    ]
    return [
        _target(
            f"{metric[0].upper()}{metric[1:]} retained: {interval_text(retention)} of the "
            "teacher's",
            retention.estimate if retention else None,
            TARGET_RETENTION,
            missing=f"the {metric} of teacher or student is unscored, or the teacher's is 0",
        ),
        _target(
            f"Inference time (p50): {seconds_text(student.performance.latency_p50_s)} against "
            f"{seconds_text(teacher.performance.latency_p50_s)}",
            found.latency_reduction,
            TARGET_LATENCY_REDUCTION,
            missing="one of the two could not be measured",
            unit="less",
        ),
        _target(
            f"Memory: {bytes_text(student.memory_bytes)} against {bytes_text(teacher.memory_bytes)}"
            + (" (declared)" if teacher.declared_source else ""),
            found.memory_reduction,
            TARGET_MEMORY_REDUCTION,
            missing="the teacher's is not known; declare it under teacher.declared",
            unit="less",
        ),
        _cost_finding(student, teacher, found),
        _users_finding(student, teacher),
        *[Finding(sentence, None) for sentence in sentences if sentence],
    ]


def _target(
    text: str, value: float | None, target: float, *, missing: str, unit: str = ""
) -> Finding:
    """Return whether ``value`` reaches ``target`` and by how much it does or does not."""
    aim = f"{target * 100:.0f} %{' ' + unit if unit else ''}"
    if value is None:
        return Finding(f"{text}: no verdict on the target of {aim}, as {missing}.", None)
    met = value >= target
    reached = f", {more_or_less(value)}" if unit else ""
    state = "met" if met else "missed"
    if value > -1:
        state += f", {_gap_text(abs(value - target))} {'above' if met else 'short of'} it"
    return Finding(f"{text}{reached}: target of {aim} {state}.", met)


def _gap_text(gap: float) -> str:
    """Return a gap in points; one that rounds to nothing is still there.

    >>> _gap_text(0.027), _gap_text(0.0004), _gap_text(0.0)
    ('2.7 points', 'less than 0.1 points', '0.0 points')
    """
    points = f"{gap * 100:.1f}"
    return f"{'less than 0.1' if gap > 0 and points == '0.0' else points} points"


def _cost_finding(
    student: ContestantFigures, teacher: ContestantFigures, found: Difference
) -> Finding:
    costs = [
        money_text(row.cost.per_1000, row.cost.currency) if row.cost else "an unknown sum"
        for row in (student, teacher)
    ]
    known = student.cost or teacher.cost
    return _target(
        f"A thousand requests cost {costs[0]} instead of {costs[1]}"
        if known
        else "Cost of a thousand requests",
        found.cost_reduction,
        TARGET_COST_REDUCTION,
        missing="a price is missing: teacher.price for a served teacher, evaluation.machine_price "
        "for what runs here",
        unit="less",
    )


def _users_finding(student: ContestantFigures, teacher: ContestantFigures) -> Finding:
    rates = student.performance.queries_per_hour, teacher.performance.queries_per_hour
    text = f"Queries per hour: {rate_text(rates[0])} against {rate_text(rates[1])}"
    aim = f"target of {TARGET_USERS} times as many users"
    if not rates[0] or not rates[1]:
        return Finding(f"{text}: no verdict on the {aim}, as one could not be measured.", None)
    times = rates[0] / rates[1]
    met = times >= TARGET_USERS
    return Finding(f"{text}, {times:,.1f} times: {aim} {'met' if met else 'missed'}.", met)


def _pay_off_sentence(comparison: Comparison) -> str | None:
    cost = comparison.distillation_cost
    if cost is None or cost.currency is None:
        return None
    if cost.total is None:
        hours = f"{cost.training_hours:.2g} hours of training"
        lacks = "what the teacher's responses" if cost.teacher is None else f"what {hours}"
        return f"What this distillation cost is not known, as {lacks} cost is not."
    text = (
        f"The distillation cost {money_text(cost.total, cost.currency)} as if nothing had been "
        f"cached: {money_text(cost.teacher, cost.currency)} for the teacher's responses and "
        f"{money_text(cost.training, cost.currency)} for {cost.training_hours:.2g} hours of "
        "training"
    )
    if cost.break_even_requests is not None:
        return f"{text}. It has paid for itself after {cost.break_even_requests:,.0f} requests."
    found = comparison.between(STUDENT, TEACHER)
    if found is None or found.cost_reduction is None:
        return f"{text}."
    return f"{text}. It never pays for itself, as a request to the student saves nothing."


def _points(comparison: Comparison, name: str, against: str) -> Interval | None:
    found = comparison.between(name, against)
    return found.difference if found else None


def _gain_sentence(comparison: Comparison) -> str:
    gain = _points(comparison, STUDENT, BASELINE)
    if gain is None:
        return "Student minus baseline: no figure, as there is no scored baseline."
    text = f"Student minus baseline: {points_text(gain)}"
    if gain.low is None or gain.high is None:
        return f"{text}; too few rows for an interval."
    if gain.low > 0:
        return f"{text}: the interval is above 0, so the teacher's data helped."
    if gain.high < 0:
        return f"{text}: the interval is below 0, so the teacher's data hurt."
    return f"{text}: the interval contains 0, so no gain is shown."


def _gap_sentence(comparison: Comparison) -> str:
    gap = comparison.gap_recovered
    lead = f"student minus teacher: {points_text(_points(comparison, STUDENT, TEACHER))}."
    if gap is None:
        teacher = _points(comparison, BASELINE, TEACHER)
        why = "as the teacher is not better than the baseline"
        if teacher is None:
            why = "as there is no scored baseline"
        return f"Gap recovered: undefined, {why}; {lead}"
    text = f"Gap recovered between baseline and teacher: {interval_text(gap)}"
    if gap.low is None:
        text += ", without an interval, as a test set like this one may show no gap at all"
    return f"{text}; {lead}"


def _detectable_sentence(comparison: Comparison) -> str | None:
    if comparison.detectable_loss is None:
        return None
    return (
        f"With {_rows_text(comparison)} a loss of under {comparison.detectable_loss * 100:.1f} "
        "points to the teacher cannot be seen."
    )


def _rows_text(comparison: Comparison) -> str:
    """Return how much evidence there is: rows, and groups of them where they belong together."""
    rows, clusters = comparison.num_rows, comparison.num_clusters
    if clusters is None or clusters == rows:
        return f"{rows:,} rows"
    return f"{rows:,} rows in {clusters:,} clusters"


def _in_context_sentence(comparison: Comparison) -> str | None:
    asked, student = comparison.contestant(IN_CONTEXT), comparison.contestant(STUDENT)
    lead = _points(comparison, STUDENT, IN_CONTEXT)
    if asked is None or student is None or lead is None:
        return None
    text = f"Student minus itself untrained, with the teacher's prompt: {points_text(lead)}"
    if lead.low is None:
        return f"{text}; too few rows for an interval."
    if lead.low > 0:
        return f"{text}: the interval is above 0, so the training is worth more than the prompt."
    quality = asked.metrics[comparison.metric]
    if not quality or quality.estimate == 0:
        return f"{text}: the interval is not above 0, and neither scores at all."
    many, few = asked.performance.prompt_tokens, student.performance.prompt_tokens
    counted = many is not None and few is not None
    cost = f" at {many:,.0f} prompt tokens instead of {few:,.0f}" if counted else ""
    return (
        f"{text}: the interval is not above 0, so the training is not shown to be worth more than "
        f"the prompt{cost}."
    )


def _champion_sentence(comparison: Comparison) -> str | None:
    if comparison.contestant(CHAMPION) is None:
        return None
    return f"Student minus champion: {points_text(_points(comparison, STUDENT, CHAMPION))}."


def _majority_sentence(comparison: Comparison) -> str | None:
    if comparison.majority_answer is None:
        return None
    leads = [
        f"the {name} {points_text(_points(comparison, name, MAJORITY))}"
        for name in (TEACHER, STUDENT)
    ]
    return (
        f"Always giving the most frequent answer, {comparison.majority_answer!r:.80}, reaches "
        f"{percent_text(comparison.majority_score)} {comparison.metric}; against it "
        f"{' and '.join(leads)}."
    )


def _label_sentence(comparison: Comparison) -> str | None:
    recalls = [(label.recall[STUDENT], label) for label in comparison.labels]
    scored = [(recall, label) for recall, label in recalls if recall is not None]
    if not scored:
        return None
    recall, label = min(scored, key=lambda pair: pair[0])
    rows = f"{label.num_rows:,} rows" if label.num_rows > 1 else "only row"
    return (
        f"Lowest recall of the student: {percent_text(recall)} of the {rows} with "
        f"{label.label!r:.80}."
    )


def _judge_sentences(comparison: Comparison) -> list[str]:
    """Return what a judge said, and what that is worth."""
    said = comparison.judgement
    if said is None:
        return []
    sentences = [
        f"The judge, {said.model}, prefers the student to the {pair.against} in "
        f"{interval_text(pair.win_rate)} of the rows, ties counting half"
        + (f"; people would in {interval_text(pair.corrected)}." if pair.corrected else ".")
        for pair in said.pairs
        if pair.win_rate
    ]
    if said.order_decided is not None:
        sentences.append(
            f"The order of the two responses changed its verdict on "
            f"{percent_text(said.order_decided)} of the pairs, which count as ties."
        )
    if said.agreement is None:
        return [*sentences, "Nobody has checked this judge against people."]
    sentences.append(
        f"It agrees with people on {interval_text(said.agreement)} of {said.agreement.num_rows:,} "
        "rows."
    )
    if any(pair.win_rate and not pair.corrected for pair in said.pairs):
        sentences.append(
            "Its verdicts follow theirs no more than chance would, so they say nothing."
        )
    return sentences


def _slice_sentence(comparison: Comparison) -> str | None:
    if not comparison.slices:
        return None
    against = [name for name in (CHAMPION, TEACHER) if comparison.contestant(name)]
    worse = {name: [s.name for s in comparison.slices if name in s.regressions] for name in against}
    listed = [f"than the {name} on {_some(slices)}" for name, slices in worse.items() if slices]
    corrected = f"of {len(comparison.slices):,} slices, corrected for their number"
    if listed:
        return f"The student is worse {' and '.join(listed)} ({corrected})."
    return f"The student is worse than the {' or the '.join(against)} on none {corrected}."


def _some(names: Sequence[str]) -> str:
    """Return names in words, of many the first.

    >>> _some(["label=a", "label=b"]), _some(list("abcdefg"))
    ("'label=a', 'label=b'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(f"{name!r:.80}" for name in names[:_MOST_NAMES]) + more


def notes(comparison: Comparison) -> list[str]:
    """Return how the figures were made."""
    speed = comparison.contestants[0].performance
    hardware = comparison.hardware
    machine = hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('cores')} cores"
    lines = [
        f"Quality: {comparison.num_rows:,} test rows, at most {comparison.max_new_tokens} new "
        "tokens; the teacher samples as the recipe says, all others decode greedily; paired "
        f"bootstrap over {_rows_text(comparison)}, {comparison.confidence * 100:.0f} % intervals.",
        f"Inference time: batch size 1, {speed.latency_rows} rows, models in turn; throughput at "
        "the number of requests at once that gives most; tokens are means per request. On "
        f"{machine}.",
        f"Memory: weights plus KV cache at {comparison.context_tokens} tokens; peak memory: the "
        "longest of the timed rows at the highest concurrency.",
    ]
    if comparison.baseline is not None:
        lines.append(f"Baseline: {comparison.baseline}.")
    if comparison.num_left_out:
        lines.append(
            f"The teacher was not asked {comparison.num_left_out:,} further test rows, as its "
            "interval was as narrow as evaluation.stop_at_width; they are left out for everybody."
        )
    if comparison.num_small_slices:
        lines.append(
            f"Slices: {comparison.num_small_slices:,} with fewer than evaluation.min_slice_rows "
            "rows are left out."
        )
    for row in comparison.contestants:
        if row.cost and row.name in (TEACHER, STUDENT):
            lines.append(f"Cost of the {row.name}: {row.cost.source}.")
        if row.declared_source:
            lines.append(
                f"Parameters and memory of the {row.name} are declared, not measured; source: "
                f"{row.declared_source}."
            )
        if row.num_unscored:
            lines.append(
                f"{row.num_unscored:,} of {comparison.num_rows:,} rows are unscored for the "
                f"{row.name} and left out of every figure with it."
            )
    return lines
