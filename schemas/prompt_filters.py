"""Filters over prompts: they run before a teacher is asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, Spec, runtime_field

PiiEntity = Literal[
    "CREDIT_CARD",
    "CRYPTO",
    "DATE_TIME",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "LOCATION",
    "MAC_ADDRESS",
    "NRP",
    "ORGANIZATION",
    "PERSON",
    "PHONE_NUMBER",
    "UK_NHS",
    "URL",
    "US_SSN",
]
NAMED_ENTITIES = ("LOCATION", "NRP", "ORGANIZATION", "PERSON")
"""What no pattern finds: a model has to read the text."""


class EmbeddingModel(Spec):
    """An encoder whose mean hidden state says what a text is about."""

    model: str = runtime_field(...)
    """Folder that `save_pretrained` wrote, or hub id. The fingerprint holds its files."""

    revision: str | None = runtime_field(None)
    """Commit hash of a hub model; required for one."""

    max_length: int = Field(256, ge=8)
    """Longest text that is read, tokens; the rest is cut off. 256 is what small sentence encoders
    were trained on."""

    device: str = runtime_field("auto")
    """auto: the GPU when there is one, otherwise the CPU."""


class _PromptFilter(Branch):
    """Keeps, drops or rewrites a prompt."""


class DecontaminationFilter(_PromptFilter):
    """Drops training, validation and gold prompts that a test or selection row gives away.

    A prompt goes when it equals such a row but for case, white space, punctuation and the ways in
    which Unicode writes one character (NFKC), or when the two share too many runs of words.
    """

    kind: Literal["decontamination"] = "decontamination"
    """Drop prompts that overlap with test or selection rows."""

    ngram_words: int = Field(8, ge=1)
    """Length of a shared run, words. 8, as open-r1 has it: shorter runs are met by chance, longer
    ones miss rows that were reworded. Rows with fewer words are only compared as a whole."""

    max_overlap: float = Field(0.5, ge=0, lt=1)
    """Highest share of runs in common with one held-out row, as a fraction of those that the
    shorter of the two has. Above a half the two differ in a clause; below it they share a phrase,
    as every fifth of the demo's tickets does with some test row. 0: one shared run is enough, as
    in open-r1."""


class NearDuplicateFilter(_PromptFilter):
    """Drops prompts that share most of their wording with an earlier one that is kept.

    Found by MinHash signatures (Broder 1997) whose bands meet in a table, so nothing is compared
    with everything.
    """

    kind: Literal["near_duplicate"] = "near_duplicate"
    """Drop prompts worded nearly like an earlier one."""

    max_similarity: float = Field(0.7, gt=0, lt=1)
    """Highest similarity kept: the Jaccard index of the two sets of shingles, as a fraction. 0.7
    lets two sentences of twelve words differ in one at the end, not in one in the middle."""

    shingle_words: int = Field(3, ge=1)
    """Length of a shingle, words. 3 suits prompts of a sentence or two; 5 is usual for documents.
    A shorter prompt is one shingle."""

    num_permutations: int = Field(128, ge=16, le=1024)
    """Length of a signature. The estimate's standard error is at most 0.5 / sqrt of it: 0.04 at
    128."""


class SemanticDuplicateFilter(_PromptFilter):
    """Drops prompts that say what an earlier one says that is kept, in whatever words.

    Every row is compared with all that are kept: the time grows with their square.
    """

    kind: Literal["semantic_duplicate"] = "semantic_duplicate"
    """Drop prompts that mean nearly the same as an earlier one."""

    embedding: EmbeddingModel
    """The model that reads the prompts."""

    max_similarity: float = Field(0.95, gt=0, lt=1)
    """Highest cosine similarity kept. What means the same lies above 0.9 to 0.95 under small
    sentence encoders; look at the rejected rows of a first run."""


class DiversityFilter(_PromptFilter):
    """Keeps the training prompts that cover the others best, where a teacher is dear.

    k-centre greedy (Sener & Savarese 2018, arXiv:1708.00489): it begins with the prompt nearest to
    the mean, and takes the one that is farthest from all taken before, again and again. Validation
    prompts stay: they have to be like those to come.
    """

    kind: Literal["diversity"] = "diversity"
    """Keep a subset of the training prompts, the most diverse."""

    embedding: EmbeddingModel
    """The model that reads the prompts."""

    keep: float = Field(gt=0)
    """Training prompts to keep: below 1 a share of them, from 1 on their number."""

    @model_validator(mode="after")
    def _is_a_number_of_rows(self) -> Self:
        if self.keep >= 1 and self.keep != int(self.keep):
            raise ValueError(
                f"keep={self.keep} is neither a share nor a number of rows. Write {self.keep:.0f}, "
                "or a fraction below 1."
            )
        return self


class PiiFilter(_PromptFilter):
    """Takes personal data out of prompts, or drops the prompts that hold some.

    Found by the patterns of presidio (`pip install 'distillery[pii]'`). Selection and test rows,
    and right answers, stay as they are.
    """

    kind: Literal["pii"] = "pii"
    """Redact or drop personal data."""

    action: Literal["redact", "drop"] = "redact"
    """redact: `jo@example.org` becomes `<EMAIL_ADDRESS>`, and the row is counted as rewritten.
    drop: the row is rejected."""

    entities: tuple[PiiEntity, ...] = Field(
        ("CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN"),
        min_length=1,
    )
    """What is looked for, under presidio's names."""

    spacy_model: str | None = None
    """An installed spaCy model, such as en_core_web_sm, which PERSON, LOCATION, ORGANIZATION and
    NRP need. None: patterns alone, in every language."""

    language: str = Field("en", pattern=r"^[a-z]{2}$")
    """Language of `spacy_model`, ISO 639-1."""

    min_score: float = Field(0.4, ge=0, le=1)
    """Lowest score, presidio's, that counts as found. 0.4 is what a telephone number has without
    further evidence."""

    @model_validator(mode="after")
    def _names_need_a_model(self) -> Self:
        needing = [entity for entity in self.entities if entity in NAMED_ENTITIES]
        if needing and self.spacy_model is None:
            raise ValueError(
                f"entities has {needing[0]!r}, which no pattern finds. Set spacy_model, or remove "
                "it."
            )
        return self


class LanguageFilter(_PromptFilter):
    """Drops prompts in other languages than those listed.

    An uncertain guess drops nothing: neither one below `min_confidence`, nor any of a short text.
    """

    kind: Literal["language"] = "language"
    """Drop prompts by language."""

    languages: tuple[str, ...] = Field(min_length=1)
    """Languages to keep, ISO 639-1, such as `[en, de]`."""

    min_confidence: float = Field(0.5, ge=0, le=1)
    """Lowest confidence, a probability, with which another language has to be recognized. At a half
    it is likelier than all others together."""

    min_chars: int = Field(20, ge=1)
    """Shortest prompt whose language is looked at, characters. Shorter ones are kept: names and
    loan words look alike everywhere."""


PromptFilter = Annotated[
    DecontaminationFilter
    | NearDuplicateFilter
    | SemanticDuplicateFilter
    | DiversityFilter
    | PiiFilter
    | LanguageFilter,
    Field(discriminator="kind"),
]
