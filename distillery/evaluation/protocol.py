"""What every contestant has in common: how it is asked for its answers, and how for the clock."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from distillery.data.chat import Message
from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from schemas.comparison import Size
from schemas.evaluation import EvaluationSpec

Conversation = list[Message]


@dataclasses.dataclass(frozen=True)
class Question:
    """A test prompt and the right answers to it."""

    prompt_id: str
    conversation: Conversation
    references: tuple[str, ...]

    cluster: str = ""
    """Rows of one cluster belong together."""

    slices: str | None = None
    """Columns that divide the rows, as in a PromptFrame."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A contestant's response to one prompt."""

    response: str | None
    """None where the endpoint declined to answer."""

    truncated: bool
    """Whether it was cut at the token limit."""

    prompt_tokens: int | None
    """Tokens that were read for it. None where nobody counted them."""

    new_tokens: int | None
    """Its tokens. None where nobody counted them."""

    first_token_s: float | None = None
    """Seconds until its first token was there. None: nobody told."""

    latency_s: float | None = None
    """Seconds that it took by itself. None: as long as all that were asked with it."""


class Answering(NamedTuple):
    """A contestant at work."""

    ask: Callable[[Sequence[Question]], list[Answered]]
    """Return the answers to questions, in order."""

    note: Callable[[], str] = str
    """Return what goes on beside the count of answers; "" where there is nothing to say."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A contestant that is ready to be timed."""

    answer: Callable[[Sequence[Conversation], int], list[Answered]]
    """Answers conversations, in order, so many at once."""

    size: Size | None = None
    """None: it is not known here."""

    max_concurrency: int | None = None
    """Most requests at once that it takes. None: no limit."""

    is_served: bool = False
    """Whether it answers in another process, as a rule for money: it batches by itself, and its
    memory cannot be measured from here."""


@dataclasses.dataclass(frozen=True)
class Contestant(abc.ABC):
    """Takes part in a comparison."""

    model: str
    """The model's display name."""

    identity: str
    """What tells its weights from others."""

    inputs: dict[str, Any]
    """All that decides its answers to given prompts: weights, precision, decoding."""

    evaluation: EvaluationSpec

    @abc.abstractmethod
    def answering(self, attempt: Attempt) -> contextlib.AbstractContextManager[Answering]:
        """Open it for the quality of its answers; what it costs goes into ``attempt``."""

    @abc.abstractmethod
    def opened(self, store: Store) -> contextlib.AbstractContextManager[Opened]:
        """Open it for the clock; it stays in memory inside."""
