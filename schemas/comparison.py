"""The comparison of several models on the same held-out rows.

Whoever takes part is a contestant with a name; nothing here knows which names there are. Every
figure that could not be computed is None (unscored, not measured, or not known), never 0.
"""

from pydantic import BaseModel, ConfigDict, Field

from schemas.funnel import FunnelStep

MAJORITY = "most frequent answer"
"""Stands among what contestants are compared with: to name the most frequent reference always."""


class _Figures(BaseModel):
    """Frozen figures that round-trip through JSON."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class Interval(_Figures):
    """An estimate with its bootstrap interval."""

    estimate: float
    """The statistic on the rows as they are."""

    low: float | None
    """Lower end. None: undefined, as some resamples have no such statistic (a ratio over 0)."""

    high: float | None
    """Upper end. None: as for `low`."""

    num_rows: int = Field(ge=1)
    """Rows that it rests on: those scored for every model that it speaks of."""


class Load(_Figures):
    """Throughput at one concurrency: requests in flight, or rows per batch of a local model."""

    concurrency: int
    """Requests at once."""

    queries_per_hour: float
    """Answers per hour."""

    latency_p95_s: float
    """95th percentile (nearest rank) of the seconds until a request is answered; in a batch all
    wait for the last one."""

    num_rows: int
    """Rows that were answered."""


class Performance(_Figures):
    """Speed of one model, measured in turn with the others."""

    latency_p50_s: float | None = None
    """Median seconds per answer at batch size 1, after warm-up."""

    latency_p95_s: float | None = None
    """95th percentile (nearest rank) of the same."""

    latency_p99_s: float | None = None
    """99th percentile (nearest rank) of the same."""

    first_token_p50_s: float | None = None
    """Median seconds until the first token of an answer at batch size 1. None: it is not told when
    that comes."""

    latency_rows: int = 0
    """Rows timed one by one."""

    queries_per_hour: float | None = None
    """Answers per hour at the concurrency that gives most."""

    loads: tuple[Load, ...] = ()
    """The same at every concurrency that was tried, in rising order."""

    tokens_per_s: float | None = None
    """New tokens per second at the same concurrency."""

    prompt_tokens: float | None = None
    """Mean tokens that it reads per request, instructions and examples included, over the same
    rows. None: an endpoint does not count them."""

    new_tokens: float | None = None
    """Mean tokens that it writes per request. None: as above."""


class Size(_Figures):
    """Size of a model that is loaded here."""

    num_parameters: int
    """Parameters."""

    weight_bytes: int
    """Bytes of the weights as loaded."""

    kv_cache_bytes: int
    """Bytes of the KV cache of one sequence of `evaluation.context_tokens`."""

    disk_bytes: int | None = None
    """Bytes of the files that hold the weights. None: not known."""


class Measurement(_Figures):
    """What was measured of one contestant apart from its answers."""

    model: str
    """Folder or hub id of the model, or the name under which an endpoint serves it."""

    identity: str
    """What tells its weights from others: a fingerprint, or a hash of what is known of it."""

    size: Size | None
    """None: it answers behind an endpoint, so its size cannot be measured from here."""

    performance: Performance
    """Its speed."""

    peak_memory_bytes: int | None = None
    """Most memory that it took to answer the longest of the timed rows at the highest concurrency:
    the weights and what comes on top of them. On a GPU what torch allocated. On a CPU resident
    memory, sampled; in a process that others have left memory to, what comes on top may look
    smaller than it is. None: it answers elsewhere."""


class Measurements(_Figures):
    """What `measure_performance` measured in one attempt, all contestants in the same process."""

    contestants: dict[str, Measurement]
    """By name, in the order of the comparison."""

    hardware: dict[str, str | int | None]
    """Machine, library versions, and the most memory that the process held."""


class Cost(_Figures):
    """What a thousand requests cost."""

    per_1000: float
    """Price, in `currency`."""

    currency: str
    """ISO 4217 code."""

    source: str
    """What it is made of, in words: tokens and prices, or machine-hours and throughput."""


class ContestantFigures(_Figures):
    """One row of the comparison."""

    name: str
    """Which contestant."""

    model: str
    """Folder, hub id or served name."""

    identity: str
    """What tells its weights from others."""

    num_parameters: int | None
    """Parameters. None: not known."""

    memory_bytes: int | None
    """Weights plus KV cache at `context_tokens`. None: not known."""

    disk_bytes: int | None = None
    """Bytes of the files that hold the weights. None: not known."""

    peak_memory_bytes: int | None = None
    """Most memory that answering held at once. None: not known."""

    cost: Cost | None = None
    """What a thousand requests cost. None: the recipe names no price."""

    declared_source: str | None = None
    """Where parameters and memory are from when the recipe declares them. None: measured."""

    performance: Performance
    """Its speed."""

    metrics: dict[str, Interval | None]
    """Means over the rows by metric, the primary one first, then metrics of the set of answers.
    None: no row was scored."""

    fidelity: dict[str, Interval | None] = {}
    """The same with the teacher's answers in place of the references; empty for the teacher."""

    num_unscored: int
    """Rows without a score, such as answers that the endpoint did not give."""


class Difference(_Figures):
    """A contestant against another one in one metric, paired by row."""

    name: str
    """Which contestant."""

    against: str
    """Another contestant, or `MAJORITY`, which has nothing but answers."""

    metric: str
    """Which metric."""

    difference: Interval | None
    """Its mean minus the other's. None: no row is scored for both."""

    ratio: Interval | None = None
    """Its mean / the other's. None: as above, or the other's is 0."""

    p_value: float | None = None
    """Probability of so large a difference, either way, between two that are equally good:
    McNemar's exact test where answers are right or wrong and rows independent, a cluster-robust
    t-test for other means, randomization for metrics of the set. None: it cannot be told."""

    adjusted_p_value: float | None = None
    """The same, corrected for the number of metrics compared (Holm)."""

    latency_reduction: float | None = None
    """1 - p50 latency / the other's."""

    memory_reduction: float | None = None
    """1 - memory / the other's."""

    parameter_reduction: float | None = None
    """1 - parameters / the other's."""

    cost_reduction: float | None = None
    """1 - cost / the other's."""

    def is_worse(self, confidence: float) -> bool:
        """Return whether it is below 0 by more than chance, after correction."""
        if self.difference is None or self.adjusted_p_value is None:
            return False
        return self.difference.estimate < 0 and self.adjusted_p_value <= 1 - confidence


class SliceFigures(_Figures):
    """The comparison on some of the test rows."""

    column: str
    """What they have in common: `label`, `length`, or a column of the source."""

    value: str
    """Its value."""

    num_rows: int
    """Test rows."""

    quality: dict[str, Interval | None]
    """The primary metric by contestant."""

    differences: tuple[Difference, ...]
    """The student, and its exported forms, against teacher and champion."""

    regressions: tuple[str, ...]
    """Against whom the student is worse here, of teacher and champion: its difference is below 0
    by more than chance, after correction for the number of slices and opponents."""

    @property
    def name(self) -> str:
        """Return what a gate calls it, such as `label=refund`."""
        return f"{self.column}={self.value}"


class JudgedPair(_Figures):
    """Verdicts on the student's responses beside another contestant's."""

    against: str
    """The other contestant."""

    wins: int
    """Rows on which the student's response is better, in both orders."""

    ties: int
    """Rows on which the two orders disagree, or both call it a tie."""

    losses: int
    """Rows on which the other's is better, in both orders."""

    unscored: int
    """Rows without a verdict that can be read."""

    win_rate: Interval | None
    """(wins + ties / 2) / rows. None: no row has a verdict."""

    corrected: Interval | None = None
    """The same as people would have it, by how often the judge agrees with them; the interval
    includes the judge's error. None: nobody has checked the judge."""


class Judgement(_Figures):
    """What a judge said."""

    model: str
    """Who judged."""

    rubric: str
    """What it went by."""

    pairs: tuple[JudgedPair, ...]
    """The student beside the others."""

    order_decided: float | None = None
    """Share of the pairs on which the two orders were given different verdicts. None: no pair has
    two that can be read."""

    agreement: Interval | None = None
    """Share of the human preferences that it agrees with. None: nobody has checked it."""


class HarnessFigure(_Figures):
    """One metric of one task of lm-evaluation-harness."""

    task: str
    """Name of the task."""

    metric: str
    """Name of the metric."""

    value: float
    """Its value."""

    stderr: float | None
    """Its standard error. None: not known."""


class HarnessFigures(_Figures):
    """What a contestant reaches in the tasks of lm-evaluation-harness."""

    version: str
    """Version of the harness."""

    figures: tuple[HarnessFigure, ...]
    """By task and metric."""


class DistillationCost(_Figures):
    """What making this student cost, as if nothing had been there before."""

    teacher: float | None
    """The teacher's responses, by tokens and prices. None: no price is known."""

    training_hours: float
    """Hours of training, pruning and scoring soft targets."""

    training: float | None
    """Those hours at the machine's price. None: no price is known."""

    currency: str | None
    """ISO 4217 code."""

    break_even_requests: float | None
    """Requests after which it has paid for itself. None: a price is missing, or a request to the
    student costs no less than one to the teacher."""

    @property
    def total(self) -> float | None:
        """Return the sum; None when either part is not known."""
        if self.teacher is None or self.training is None:
            return None
        return self.teacher + self.training


class LabelRecall(_Figures):
    """How well one label is recognised."""

    label: str
    """The label, as references have it."""

    num_rows: int
    """Test rows with this label."""

    recall: dict[str, float | None]
    """Share of them that each contestant gets right. None: unscored."""


class Confusion(_Figures):
    """How often one label was taken for another."""

    label: str
    """The right one."""

    taken_for: str | None
    """What was answered. None: nothing that is a label."""

    num_rows: int
    """Test rows."""


class Comparison(_Figures):
    """All contestants side by side."""

    task: str
    """Name of the task."""

    metric: str
    """The primary metric, by which contestants are compared."""

    num_rows: int
    """Test rows that every contestant was asked."""

    num_left_out: int = 0
    """Further test rows, which the teacher was not asked: its interval was narrow enough."""

    context_tokens: int
    """Context at which the KV cache counts into memory, tokens."""

    max_new_tokens: int
    """Longest answer, tokens."""

    confidence: float
    """Level of the intervals."""

    contestants: tuple[ContestantFigures, ...]
    """In the order in which they are shown."""

    baseline: str | None = None
    """What the baseline is, in words. None: there is none."""

    differences: tuple[Difference, ...]
    """By name and whom it is compared with."""

    majority_answer: str | None
    """The most frequent reference of the test rows. None: each occurs once."""

    majority_score: float | None
    """What always giving it would reach in the primary metric."""

    labels: tuple[LabelRecall, ...] = ()
    """Every label of the test rows, the most frequent first; empty for tasks without labels."""

    confusions: tuple[Confusion, ...] = ()
    """What the student takes for what, the most frequent first."""

    gap_recovered: Interval | None
    """(student - baseline) / (teacher - baseline), on the rows scored for all three. None: no
    baseline, or the teacher is not better than it."""

    num_clusters: int | None = None
    """Groups of rows that the bootstrap keeps together: of one conversation, customer or prompt."""

    detectable_loss: float | None = None
    """Smallest loss to the teacher, in the primary metric, that this many rows show in four of
    five runs. None: it cannot be told."""

    slices: tuple[SliceFigures, ...] = ()
    """The comparison on parts of the test rows, by column, the largest part first."""

    num_small_slices: int = 0
    """Slices that are left out, as they have fewer than `evaluation.min_slice_rows`."""

    judgement: Judgement | None = None
    """What a judge said. None: none was asked."""

    harness: dict[str, HarnessFigures] = {}
    """What lm-evaluation-harness says of the contestants it was run on, by name."""

    distillation_cost: DistillationCost | None = None
    """What making the student cost. None: not known."""

    hardware: dict[str, str | int | None]
    """Machine, library versions, and the most memory that the measuring process held."""

    fingerprints: dict[str, str]
    """Fingerprints of the stages it rests on, by name."""

    funnel: tuple[FunnelStep, ...] = ()
    """What became of the rows to learn from, in the order of the stages."""

    def contestant(self, name: str) -> ContestantFigures | None:
        """Return the figures of ``name``, or None when it did not take part."""
        return next((row for row in self.contestants if row.name == name), None)

    def between(self, name: str, against: str, metric: str | None = None) -> Difference | None:
        """Return ``name`` compared with ``against``, or None when they were not compared.

        In the primary metric, unless another is named.
        """
        wanted = (name, against, metric or self.metric)
        return next((d for d in self.differences if (d.name, d.against, d.metric) == wanted), None)


class DifferingRow(_Figures):
    """A test row on which teacher or champion and student score differently."""

    prompt_id: str
    """Which row."""

    prompt: str
    """The last turn of the conversation."""

    references: tuple[str, ...]
    """Right answers."""

    responses: dict[str, str | None]
    """What teacher, champion and student wrote. None: nothing was obtained."""

    scores: dict[str, float | None]
    """Their scores in the primary metric. None: unscored."""

    lead: float
    """The student's score minus another's: of whoever is better by most, or, where nobody is
    better, of whoever is worse by most. Below 0: a loss."""

    slices: tuple[str, ...] = ()
    """Slices that the row is in, such as `label=refund`."""
