"""One file per filter, and the stages that run them: over prompts, and over responses."""

from collections.abc import Sequence

from distillery.filters.agreement import Agreement
from distillery.filters.balance import Balance
from distillery.filters.decontamination import Decontamination
from distillery.filters.diversity import Diversity
from distillery.filters.duplicate import Duplicate
from distillery.filters.format import Format
from distillery.filters.funnel import AnyFilter
from distillery.filters.judge import Judge
from distillery.filters.language import Language
from distillery.filters.length import Length
from distillery.filters.length_outlier import LengthOutlier
from distillery.filters.near_duplicate import NearDuplicate
from distillery.filters.pii import Pii
from distillery.filters.refusal import Refusal
from distillery.filters.repetition import Repetition
from distillery.filters.semantic_duplicate import SemanticDuplicate
from distillery.filters.truncated import Truncated
from distillery.filters.usable import Usable
from schemas.filters import ResponseFilter
from schemas.prompt_filters import PromptFilter

PROMPT_FILTERS: dict[str, type[AnyFilter]] = {
    "decontamination": Decontamination,
    "near_duplicate": NearDuplicate,
    "semantic_duplicate": SemanticDuplicate,
    "diversity": Diversity,
    "pii": Pii,
    "language": Language,
}

RESPONSE_FILTERS: dict[str, type[AnyFilter]] = {
    "truncated": Truncated,
    "refusal": Refusal,
    "length": Length,
    "format": Format,
    "duplicate": Duplicate,
    "agreement": Agreement,
    "repetition": Repetition,
    "length_outlier": LengthOutlier,
    "balance": Balance,
    "judge": Judge,
}


def prompt_filters(specs: Sequence[PromptFilter]) -> list[tuple[str, AnyFilter]]:
    """Return the filters of ``specs`` by name, in order."""
    return [(spec.kind, PROMPT_FILTERS[spec.kind](spec)) for spec in specs]


def response_filters(specs: Sequence[ResponseFilter]) -> list[tuple[str, AnyFilter]]:
    """Return the filters of ``specs`` by name, after the one that no recipe can leave out."""
    named = [(spec.kind, RESPONSE_FILTERS[spec.kind](spec)) for spec in specs]
    return [("teacher", Usable(None)), *named]
