"""How teacher, baseline and student are compared, and what a student needs to be promoted."""

from pydantic import Field

from schemas.base import Spec, runtime_field


class EvaluationSpec(Spec):
    """The comparison on the test rows.

    The teacher samples as its section says, all others decode greedily; limits are the same.
    """

    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, tokens; the same for all models."""

    batch_size: int = runtime_field(64, ge=1)
    """Rows per forward pass while quality is measured."""

    in_context_student: bool = False
    """Whether the untrained student, asked with the teacher's system prompt and examples, takes
    part too. For pretrained students: where it is as good as the trained one, nobody needs the
    training."""

    latency_rows: int = Field(30, ge=5)
    """Test rows on which latency at batch size 1 is measured, the models in turn on each row. The
    95th percentile of fewer than 20 is the slowest one."""

    latency_warmup: int = Field(3, ge=1)
    """Rows answered by each model before the clock counts."""

    throughput_rows: int = Field(256, ge=1)
    """Test rows on which throughput is measured, `throughput_batch_size` at a time."""

    throughput_batch_size: int = Field(32, ge=1)
    """Rows per forward pass while throughput is measured; the same for all local models."""

    context_tokens: int = Field(2048, ge=1)
    """Context at which the KV cache is counted into memory usage, tokens."""

    bootstrap_samples: int = Field(2000, ge=100)
    """Resamples of the paired bootstrap. 2,000 put the ends of a 95 % interval within about a
    twentieth of its width."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of all intervals."""

    seed: int = 0
    """Seed of the bootstrap."""


class GateSpec(Spec):
    """All conditions have to hold for a student to be promoted. A missing figure fails."""

    min_retention: float = Field(0.92, ge=0)
    """Least student / teacher in the primary metric."""

    min_gain: float | None = 0.0
    """Lower end of the paired interval of student minus baseline has to lie above this. None: not
    asked."""

    min_lead_over_majority: float | None = 0.0
    """Teacher and student have to score more than always giving the most frequent reference of the
    test rows would, by more than this. Not asked where each reference occurs once. None: never
    asked."""

    max_loss_to_champion: float | None = 0.0
    """Most that the student may fall short of the student that the alias stands for, in the
    primary metric: the difference on the same rows, without regard to its interval. 0.0: not at
    all, a tie is enough. Not asked while there is no champion. None: never asked."""

    max_unscored_fraction: float = Field(0.05, ge=0, le=1)
    """Most test rows without a score, of the model that has the most. A verdict on the few rows
    that an endpoint happened to answer is none."""

    max_latency_ratio: float | None = Field(None, gt=0)
    """Most student p50 latency / teacher p50 latency. None: not asked. 0.15 is 85 % less time."""

    max_memory_ratio: float | None = Field(None, gt=0)
    """Most student memory / teacher memory. None: not asked. 0.05 is 95 % less memory."""

    alias: str = Field("champion", pattern=r"^[a-z0-9-]+$")
    """Alias under which a student that passes is published."""
