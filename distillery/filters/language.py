"""Prompts in other languages than the recipe lists."""

import functools
from typing import Any

from distillery.data.words import asked_text
from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.prompt_filters import LanguageFilter


class Language(RowFilter[LanguageFilter]):
    """Drops a prompt that is recognized, with enough confidence, as another language."""

    def check(self) -> None:
        """Refuse languages that py3langid does not tell apart."""
        known = sorted(_identifier().labels)
        if unknown := [code for code in self.spec.languages if code not in known]:
            raise RecipeError(
                f"filters.prompts: language knows no language {unknown[0]!r}. Write codes of ISO "
                f"639-1, of {', '.join(known)}."
            )

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a prompt by what its turns are written in, all but the system's."""
        text = asked_text(row["messages"])
        if len(text.strip()) < self.spec.min_chars:
            return None
        language, confidence = _identifier().classify(text)
        if language in self.spec.languages or confidence < self.spec.min_confidence:
            return None
        detail = f"recognized as {language!r} with confidence {confidence:.2f}"
        return Drop(DropReason.OTHER_LANGUAGE, detail, float(confidence))


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
