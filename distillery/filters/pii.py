"""Personal data in prompts: redacted, or the prompt is dropped. What was found is never written."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from distillery.data.chat import dump_messages, load_messages
from distillery.filters.base import Drop, Rewrite, Row, RowFilter
from distillery.task_types import TaskType
from schemas.errors import RecipeError
from schemas.filters import DropReason, RewriteReason
from schemas.prompt_filters import NAMED_ENTITIES, PiiFilter

# Without so many digits a text holds none of its kind. Looking all the same takes most of the time.
_LEAST_DIGITS = {
    "CREDIT_CARD": 12,
    "IBAN_CODE": 2,
    "IP_ADDRESS": 1,
    "PHONE_NUMBER": 7,
    "UK_NHS": 10,
    "US_SSN": 9,
}


class Found(NamedTuple):
    """A place in a text, and what kind of personal data is there."""

    start: int
    end: int
    entity: str


class Pii(RowFilter[PiiFilter]):
    """Replaces personal data by its kind, in every turn, or drops the row."""

    reads_gold = True

    def check(self) -> None:
        """Refuse to go on without presidio, or without the spaCy model."""
        if importlib.util.find_spec("presidio_analyzer") is None:
            raise RecipeError(
                "filters.prompts: pii needs presidio, which is not installed. Run: pip install "
                "'distillery[pii]'."
            )
        model = self.spec.spacy_model
        if model is None:
            return
        import spacy

        if not (spacy.util.is_package(model) or Path(model).is_dir()):
            raise RecipeError(
                f"filters.prompts: pii.spacy_model {model!r} is not installed here. Install the "
                "model's package, or remove spacy_model and the entities that need it."
            )

    def row(self, row: Row, task: TaskType) -> Drop | Rewrite | None:
        """Drop or rewrite a prompt in which personal data is found."""
        turns = load_messages(row["messages"])
        found = [self.find(turn["content"]) for turn in turns]
        if not any(found):
            return None
        if self.spec.action == "drop":
            counts = Counter(each.entity for of_turn in found for each in of_turn)
            detail = ", ".join(f"{count} {entity}" for entity, count in counts.most_common())
            return Drop(DropReason.PERSONAL_DATA, detail, float(counts.total()))
        for turn, of_turn in zip(turns, found, strict=True):
            turn["content"] = redacted(turn["content"], of_turn)
        return Rewrite({"messages": dump_messages(turns)}, RewriteReason.REDACTED)

    def find(self, text: str) -> list[Found]:
        """Return what is found in a text, in order, nothing of it within another."""
        entities = [entity for entity in self.spec.entities if _can_be_in(text, entity)]
        if not entities:
            return []
        results = self._analyzer.analyze(
            text,
            language=self.spec.language,
            entities=entities,
            score_threshold=self.spec.min_score,
        )
        # Of what overlaps the surest stays, then the longest.
        results.sort(key=lambda r: (-r.score, r.start - r.end, r.start, r.entity_type))
        kept: list[Found] = []
        for result in results:
            if all(result.end <= other.start or result.start >= other.end for other in kept):
                kept.append(Found(result.start, result.end, result.entity_type))
        return sorted(kept)

    @cached_property
    def _analyzer(self) -> Any:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NoOpNlpEngine, SpacyNlpEngine

        language = self.spec.language
        recognizers = _pattern_recognizers(language, self.spec.entities)
        model = {"lang_code": language, "model_name": self.spec.spacy_model or "none"}
        engine: Any = NoOpNlpEngine([model])
        if self.spec.spacy_model is not None:
            from presidio_analyzer.predefined_recognizers import SpacyRecognizer

            engine = SpacyNlpEngine([model])
            recognizers.append(
                SpacyRecognizer(
                    supported_language=language, supported_entities=[*NAMED_ENTITIES, "DATE_TIME"]
                )
            )
        registry = RecognizerRegistry(recognizers=recognizers, supported_languages=[language])
        return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])


def redacted(text: str, found: Sequence[Found]) -> str:
    """Return ``text`` with the kind of each place in it.

    >>> redacted("Mail jo@example.org, please.", [Found(5, 19, "EMAIL_ADDRESS")])
    'Mail <EMAIL_ADDRESS>, please.'
    """
    for start, end, entity in reversed(found):
        text = f"{text[:start]}<{entity}>{text[end:]}"
    return text


def _can_be_in(text: str, entity: str) -> bool:
    """Return whether a text has the characters that an entity cannot do without."""
    if entity == "EMAIL_ADDRESS":
        return "@" in text
    return sum(map(str.isdigit, text)) >= _LEAST_DIGITS.get(entity, 0)


def _pattern_recognizers(language: str, entities: Sequence[str]) -> list[Any]:
    """Return presidio's recognizers that go by patterns, of which some of ``entities`` come."""
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    extract = tldextract.TLDExtract(suffix_list_urls=())

    class Email(known.EmailRecognizer):  # type: ignore[misc]
        """Goes by the list of domains that is installed; presidio's fetches one."""

        def validate_result(self, pattern_text: str) -> bool:
            return bool(extract(pattern_text).fqdn)

    kinds = (
        known.CreditCardRecognizer,
        known.CryptoRecognizer,
        known.DateRecognizer,
        Email,
        known.IbanRecognizer,
        known.IpRecognizer,
        known.MacAddressRecognizer,
        known.NhsRecognizer,
        known.PhoneRecognizer,
        known.UrlRecognizer,
        known.UsSsnRecognizer,
    )
    made = [kind(supported_language=language) for kind in kinds]
    return [each for each in made if set(each.supported_entities) & set(entities)]
