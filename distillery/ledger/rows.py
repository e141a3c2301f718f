"""One row of the ledger, and when it needs no further asking."""

import dataclasses
import time

# A prompt that failed in so many runs is left as failed, so that it cannot block the others.
MOST_FAILED_RUNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What became of one request, over all runs."""

    request_hash: str
    """Hash of the canonical request, 64 hex digits."""

    prompt_hash: str
    """Hash of its messages, 64 hex digits; the samples of one prompt share it."""

    teacher_id: str
    """Hash of the teacher's identity, 64 hex digits."""

    teacher: str
    """The teacher's identity, JSON."""

    request: str
    """What was asked besides: messages, sampling, response schema, sample index; JSON."""

    state: str
    """ok, empty, truncated, malformed, refused or failed."""

    text: str
    """The response without the thoughts before it; empty when refused or failed."""

    reasoning: str | None = None
    """The thoughts. None: the teacher shows none."""

    finish_reason: str | None
    """Why the teacher stopped, in its own word."""

    max_new_tokens: int
    """Limit under which it was asked."""

    prompt_tokens: int | None
    """Tokens read. None: the endpoint did not say."""

    completion_tokens: int | None
    """Tokens written. None: the endpoint did not say."""

    billed_prompt_tokens: int
    """Tokens read over all attempts of all runs."""

    billed_completion_tokens: int
    """Tokens written over all attempts of all runs."""

    cost: float | None
    """What all attempts cost when they were made. None: no price was known."""

    currency: str | None
    """Currency of the cost, ISO 4217."""

    model_reported: str | None
    """The model's name according to the endpoint."""

    mean_log_probability: float | None = None
    """Mean log-probability of the response's tokens by the teacher's own account, nats. None: it
    was not asked for, or not told."""

    latency_s: float
    """Seconds from the last sending to the response; 0 for one that came in a batch."""

    attempts: int
    """Attempts over all runs."""

    failed_runs: int
    """Runs in which all attempts failed while the endpoint answered others."""

    repaired: bool
    """Whether it is the answer to a request to repair the first one."""

    error: str | None
    """Why it was refused or failed, or what breaks the schema."""

    created_at: float = dataclasses.field(default_factory=time.time)
    """When it was committed, seconds since 1970, UTC."""

    def is_final(self, max_new_tokens: int) -> bool:
        """Return whether a run that allows ``max_new_tokens`` has nothing to ask any more."""
        match self.state:
            case "truncated" if self.max_new_tokens < max_new_tokens:
                return self.failed_runs >= MOST_FAILED_RUNS
            case "failed":
                return self.failed_runs >= MOST_FAILED_RUNS
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spending:
    """What was spent for one purpose, over all runs."""

    requests: int = 0
    """Rows committed."""

    prompt_tokens: int = 0
    """Tokens read."""

    completion_tokens: int = 0
    """Tokens written."""

    cost: float = 0.0
    """Money, in the currency of the price table; 0 without one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averages:
    """Means over a teacher's newest ok rows, to plan with. None: unknown."""

    num_rows: int = 0
    """Rows that they are taken over."""

    prompt_chars: float | None = None
    """Characters of all messages of a prompt; over the rows whose usage is known."""

    prompt_tokens: float | None = None
    """Tokens read; over the rows whose usage is known."""

    completion_tokens: float | None = None
    """Tokens written; over the rows whose usage is known."""

    latency_s: float | None = None
    """Seconds from the last sending to the response."""
