"""How teacher, baseline and student are compared."""

from typing import Annotated

from pydantic import Field

from schemas.base import Spec, runtime_field
from schemas.budget import MachinePrice
from schemas.judge import JudgeSpec


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
    """Most test rows on which throughput is measured at one concurrency, eight batches as a rule.
    At a concurrency of 1 it is that of the `latency_rows`."""

    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 8, 32), min_length=1)
    """Requests at once at which throughput is measured, in rising order up to where it grows by
    less than 5 %: rows per batch of a local model, requests in flight to a served one. A model
    that takes fewer is measured at what it takes. A GPU has room for more than 32."""

    context_tokens: int = Field(2048, ge=1)
    """Context at which the KV cache is counted into memory usage, tokens."""

    bootstrap_samples: int = Field(2000, ge=100)
    """Resamples of the paired bootstrap. 2,000 put the ends of a 95 % interval within about a
    twentieth of its width."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of all intervals."""

    seed: int = 0
    """Seed of the bootstrap, and of the order in which `stop_at_width` asks."""

    slices: tuple[str, ...] = ("label", "length")
    """What the test rows are divided by, to see where the student is worse: `label` (for tasks
    that have labels), `length` (quarters by the length of the prompt), or a column of the source
    that `data.test.columns.slices` names."""

    min_slice_rows: int = Field(20, ge=2)
    """Slices of fewer rows are left out: they could show nothing."""

    stop_at_width: float | None = Field(None, gt=0, lt=1)
    """Stop asking a teacher behind an endpoint once the interval of its primary metric is this
    narrow, 0.05 for five points; at least 100 rows are asked. All contestants are then compared on
    the rows that it has answered, a random sample: fewer rows hold back more good students, and
    show fewer slices in which one is worse. None: it answers every row."""

    judge: JudgeSpec | None = Field(None, title="Judge")
    """Who says which of two responses is better, for conversation and summarization. None: nobody
    is asked."""

    machine_price: MachinePrice | None = runtime_field(None, title="Machine price")
    """What an hour of the machine that serves local models costs. None: their cost is not known."""

    canaries: int = runtime_field(0, ge=0)
    """Training prompts that a served teacher is asked anew on every run, past the ledger, to see
    whether the model behind its name has changed. 50 show a change in about one answer of ten; 0
    asks none. A local teacher needs none: its weights are part of its identity."""

    lm_eval: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness that the local contestants are run on: names, or paths of task
    files. Needs the extra `lm-eval`."""
