"""Gold rows that a teacher is shown before the prompt, each answered as it should be."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Branch


class _Examples(Branch):
    """Which gold rows are shown."""

    num_examples: int = Field(4, ge=1, le=256)
    """Gold rows before every prompt, each a user's turn and the right answer. A prompt that is a
    gold row itself is not shown its own."""


class FixedExamples(_Examples):
    """The same gold rows before every prompt, drawn once. Providers cache such a beginning."""

    kind: Literal["fixed"] = "fixed"
    """The same rows for every prompt."""

    seed: int = 0
    """Seed of the draw."""


class NearestExamples(_Examples):
    """The gold rows whose words are most like the prompt's, the nearest last."""

    kind: Literal["nearest"] = "nearest"
    """The most similar rows."""


ExamplesSpec = Annotated[FixedExamples | NearestExamples, Field(discriminator="kind")]
