"""The comparison of teacher, baseline and student on the same held-out rows.

Every figure that could not be computed is None (unscored, not measured, or not known), never 0.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

ModelRole = Literal["teacher", "baseline", "student"]


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


class Performance(_Figures):
    """Speed of one model, measured in turn with the others."""

    latency_p50_s: float | None = None
    """Median seconds per answer at batch size 1, after warm-up."""

    latency_p95_s: float | None = None
    """95th percentile (nearest rank) of the same."""

    latency_rows: int = 0
    """Rows timed one by one."""

    queries_per_hour: float | None = None
    """Answers per hour, in batches."""

    tokens_per_s: float | None = None
    """New tokens per second, in batches."""

    throughput_rows: int = 0
    """Rows timed in batches."""


class ModelMeasurement(_Figures):
    """What was measured of one model apart from its answers."""

    name: str
    """Folder or hub id of the model, or the name under which an endpoint serves it."""

    identity: str
    """What tells its weights from others: a fingerprint, or a hash of a hosted model's identity."""

    hosted: bool = False
    """It answers behind an endpoint, so its size cannot be measured from here."""

    num_parameters: int | None = None
    """Parameters. None: not known."""

    weight_bytes: int | None = None
    """Bytes of the weights as loaded. None: not known."""

    kv_cache_bytes: int | None = None
    """Bytes of the KV cache of one sequence of `evaluation.context_tokens`. None: not known."""

    performance: Performance = Performance()
    """Its speed."""


class Measurements(_Figures):
    """What `evaluate_models` measured in one attempt, all models in the same process."""

    models: dict[ModelRole, ModelMeasurement]
    """By role; no baseline when there is none."""

    hardware: dict[str, JsonValue]
    """Machine and library versions."""

    process_peak_bytes: int | None
    """Most memory that the whole process held, all models together: apart from memory usage."""

    accelerator_peak_bytes: int | None = None
    """Most GPU memory that the process held. None: no GPU."""


class ModelFigures(_Figures):
    """One row of the comparison: a model."""

    role: ModelRole
    """Which model."""

    name: str
    """Folder, hub id or served name."""

    identity: str
    """What tells its weights from others."""

    num_parameters: int | None
    """Parameters. None: not known."""

    memory_bytes: int | None
    """Weights plus KV cache at `context_tokens`. None: not known."""

    declared: bool = False
    """Parameters and memory are declared in the recipe, not measured."""

    declared_source: str | None = None
    """Where the declared figures are from."""

    performance: Performance
    """Its speed."""

    accuracy: Interval | None
    """Share of right answers. None: no row was scored."""

    num_unscored: int
    """Rows without a score, such as answers that the endpoint did not give."""

    retention: Interval | None = None
    """Accuracy / the teacher's, paired by row. None: for the teacher itself, or undefined."""

    latency_reduction: float | None = None
    """1 - p50 latency / the teacher's."""

    memory_reduction: float | None = None
    """1 - memory / the teacher's."""

    parameter_reduction: float | None = None
    """1 - parameters / the teacher's."""


class Comparison(_Figures):
    """Teacher, baseline and student side by side."""

    schema_version: int = 1
    """Version of this layout."""

    task: str
    """Name of the task."""

    num_rows: int
    """Test rows that every model was asked."""

    context_tokens: int
    """Context at which the KV cache counts into memory, tokens."""

    max_new_tokens: int
    """Longest answer, tokens."""

    confidence: float
    """Level of the intervals."""

    models: tuple[ModelFigures, ...]
    """Teacher, baseline (when there is one), student."""

    student_minus_teacher: Interval | None
    """Difference in accuracy, paired by row."""

    gain: Interval | None
    """Student minus baseline in accuracy, paired by row. None: no baseline, or nothing scored."""

    gap_recovered: float | None
    """(student - baseline) / (teacher - baseline), on the rows scored for all three. None: no
    baseline, or the teacher is not better than it."""

    hardware: dict[str, JsonValue]
    """Machine and library versions of the measurement."""

    process_peak_bytes: int | None
    """Most memory that the measuring process held, all models together."""

    accelerator_peak_bytes: int | None = None
    """Most GPU memory that it held."""

    fingerprints: dict[str, str]
    """Fingerprints of the stages it rests on, by name."""

    funnel: dict[str, int] = {}
    """Rows of the training set by what became of them, in the order of the stages."""

    def model(self, role: ModelRole) -> ModelFigures | None:
        """Return the row of ``role``, or None when there is none."""
        return next((row for row in self.models if row.role == role), None)


class Disagreement(_Figures):
    """A test row on which teacher and student score differently."""

    prompt_id: str
    prompt: str
    reference: str
    teacher_answer: str | None
    teacher_score: float
    student_answer: str | None
    student_score: float
