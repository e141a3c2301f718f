"""Personal data is taken out of a log before anything of it is stored."""

from distillery.filters.pii import Pii, redacted
from distillery.logs.entries import Entry, texts, with_texts
from schemas.prompt_filters import PiiFilter


class Redactor:
    """Redacts entries of a log, or drops them, and counts both."""

    def __init__(self, spec: PiiFilter | None) -> None:
        """Look for what ``spec`` names; None: for nothing.

        Raises:
            RecipeError: What it needs is not installed.
        """
        self._pii = None if spec is None else Pii(spec)
        if self._pii is not None:
            self._pii.check()
        self.num_redacted = self.num_dropped = 0

    def redact(self, entry: Entry) -> Entry | None:
        """Return an entry without personal data; None where it is to be dropped for it."""
        if self._pii is None or entry.turns is None:
            return entry
        read = texts(entry.turns)
        found = [self._pii.find(text) for text in read]
        if not any(found):
            return entry
        if self._pii.spec.action == "drop":
            self.num_dropped += 1
            return None
        self.num_redacted += 1
        clean = [redacted(text, places) for text, places in zip(read, found, strict=True)]
        return entry._replace(turns=with_texts(entry.turns, clean))
