"""Summarization: a document in, a summary out, scored against one or several references."""

from typing import Any

from distillery.task_types.overlap import TextOverlap, texts


class Summarization(TextOverlap):
    """A summary is compared by ROUGE-L: its longest common subsequence with a reference.

    >>> from schemas.task import TaskSpec
    >>> kind = Summarization(TaskSpec(name="t", type="summarization"))
    >>> kind.score("A cat sat.", ["Dogs ran.", "a cat sat"])
    {'ROUGE-L': 1.0, 'ROUGE-1': 1.0, 'ROUGE-2': 1.0}
    """

    fields = ("document",)
    metrics = ("ROUGE-L", "ROUGE-1", "ROUGE-2")

    def shown(self, field: str, value: Any) -> Any:
        """Return a document that is kept as a list of sentences as one text."""
        if field != "document":
            return value
        try:
            return " ".join(text.strip() for text in texts(value))
        except ValueError:
            return value

    def instructions(self) -> str:
        """Return the request for a summary; how long it should be is for the user to say."""
        return "Summarize the document. Answer with the summary and nothing else."
