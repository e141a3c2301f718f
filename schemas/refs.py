"""Refs: what a stage returns and the next one takes. Never frames, never tensors."""

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Ref

TEST_CLUSTERS = "test clusters"
"""Stands among the splits that are hashed: which test rows belong together."""


class DatasetRef(Ref):
    """A folder of Parquet shards in the store."""

    num_rows: int
    """Rows over all shards."""

    columns: tuple[str, ...]
    """Column names, in order."""

    hashes: dict[str, str] = Field({})
    """Hash of the rows of each split, where one may change without the others. Empty: the
    fingerprint is all that is known of them."""

    def identity(self, split: str) -> str:
        """Return what tells the rows of ``split`` from others.

        >>> ref = DatasetRef(uri="u", fingerprint="f", num_rows=1, columns=(), hashes={"test": "t"})
        >>> ref.identity("test"), ref.identity("gold")
        ('t', 'f')
        """
        return self.hashes.get(split, self.fingerprint)

    def identities(self, *splits: str) -> dict[str, str]:
        """Return what tells the rows of each of ``splits`` from others."""
        return {split: self.identity(split) for split in splits}

    def __hash__(self) -> int:
        # A dictionary cannot be hashed.
        return hash(self.uri)


class ModelRef(Ref):
    """A folder with a model and its tokenizer, as ``save_pretrained`` writes them."""

    num_parameters: int
    """Parameters of the merged model (an adapter counts with its base)."""


class ReportRef(Ref):
    """A folder of files that are no rows and no model, such as a report."""


class _Bundle(BaseModel):
    """Several outputs of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PromptSet(_Bundle):
    """What `validate_prompts` returns, and `filter_prompts` makes of it."""

    prompts: DatasetRef
    """Valid rows of all splits."""

    gold: DatasetRef
    """The labelled rows, ready to learn from."""

    quarantined: DatasetRef
    """Rows that cannot be used, each with its reason."""

    rejected: DatasetRef | None = None
    """Prompts that a filter dropped, each with its reason. None: they were not filtered."""


class FilteredSet(_Bundle):
    """What `filter_responses` returns."""

    kept: DatasetRef
    """Responses that passed."""

    rejected: DatasetRef
    """Responses that did not, each with its reason."""

    num_responses: int
    """Rows before the filters."""

    drop_reasons: dict[str, int]
    """Rejected rows by reason, most frequent first."""


class Evaluated(_Bundle):
    """What `measure_performance` returns."""

    answers: dict[str, DatasetRef]
    """Responses to the test rows, scored, by contestant."""

    measurements: ReportRef
    """Their speed and size."""

    harness: dict[str, ReportRef] = {}
    """What lm-evaluation-harness says, by contestant; empty where it was not asked."""


class Lineage(_Bundle):
    """What a comparison rests on, back to the prompts; each ref leads to its stage's manifest."""

    prompts: PromptSet
    """Valid prompts of all splits."""

    responses: DatasetRef
    """What the teacher answered."""

    filtered: FilteredSet
    """What the filters made of it."""

    training_set: DatasetRef
    """What the student learnt from."""

    soft_targets: DatasetRef | None
    """The teacher's probabilities, where the objective needs them."""

    baseline: ModelRef | None
    """A trained or pruned baseline. None: the student as it comes, or none."""

    first: ModelRef | None = None
    """The student after the hard targets from which its objective goes on. None: it does not."""

    student: ModelRef
    """The trained student."""

    exported: dict[str, ModelRef] = {}
    """The student in other formats, by their names."""
