"""The data card: what is in a training set, in figures that can be compared with the last one's."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from schemas.funnel import FunnelStep


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Texts(_Figures):
    """What can be said of the prompts, or of the responses."""

    chars: dict[str, float]
    """Length in characters: minimum, quantiles, maximum, mean; over all rows."""

    distinct: dict[str, float | None]
    """Share of distinct n-grams among all n-grams of the sample, for n of 1, 2 and 3."""

    languages: dict[str, float]
    """Share of the sample by language, most frequent first."""

    near_duplicates: float | None
    """Share of the sample's rows of which another one is a near-duplicate."""

    embedding_spread: float | None = None
    """Mean cosine distance between two rows of the sample. None: no embedding model is named."""


class Shift(_Figures):
    """How one figure differs from that of the last released set."""

    figure: str
    """Which one, such as `labels`."""

    divergence: float | None
    """Jensen-Shannon divergence of the two distributions, bits: 0 for the same, 1 for nothing in
    common. None: one of the sets has no such figure."""

    by_chance: float | None
    """What two samples of these sizes from one distribution would have on average."""


class DataCard(_Figures):
    """What is in a training set."""

    task: str
    """Name of the task."""

    training_set: str
    """Fingerprint of the rows."""

    made_at: datetime
    """When the card was made, UTC."""

    rows: dict[str, int]
    """Rows by split."""

    sampled_rows: int
    """Rows over which n-grams, languages, near-duplicates and embeddings were looked at: those of
    the lowest hashes, so that two sets with rows in common have them in their samples."""

    prompts: Texts
    """What the student reads: what was asked last, without the system's turn."""

    responses: Texts
    """What it learns to write."""

    labels: dict[str, dict[str, int]]
    """Rows by class, for each name of classes; those of which there is no row count 0."""

    imbalance: dict[str, float | None]
    """Rows of the most frequent class over those of the rarest. None: a class has no row."""

    teachers: dict[str, int]
    """Rows by who answered."""

    prompt_tokens: int | None
    """Tokens of the prompts, as the teacher counts them. None: not known."""

    completion_tokens: int | None
    """Tokens of the responses, as the teacher counts them. None: not known."""

    funnel: tuple[FunnelStep, ...]
    """Rows from the files to this set, filter by filter."""

    compared_with: str | None
    """Fingerprint of the last released set of the task. None: this is the first."""

    drift: tuple[Shift, ...]
    """Differences from it."""

    distributions: dict[str, dict[str, float]]
    """What the next set is compared with: counts by bin, for each figure."""
