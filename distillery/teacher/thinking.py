"""A teacher that spends all its tokens on thoughts is found out by its first responses."""

from distillery.teacher.protocol import Response
from schemas.errors import TeacherError

_MOST_THOUGHTS_ONLY = 3


class ThoughtsOnly:
    """Watches the responses of one teacher, until one of them has text."""

    def __init__(self, teacher: str, remedy: str) -> None:
        """Watch ``teacher``, by its name for messages; ``remedy`` says what else would help."""
        self._teacher, self._remedy = teacher, remedy
        self._has_text = False
        self._thinkers: set[str] = set()
        """Requests so far that were answered with thoughts and no text, unless any had text."""

    @property
    def num_requests(self) -> int:
        """Return how many requests brought thoughts and no text."""
        return len(self._thinkers)

    def check(self, response: Response) -> None:
        """Return when ``response`` is one, or more have to be seen.

        Raises:
            TeacherError: The teacher thinks, and never comes to a response.
        """
        self._has_text |= bool(response.text) or response.state == "refused"
        if self._has_text or response.reasoning is None:
            self._thinkers.clear()
            return
        if response.request.was_cut:  # among others that had text: an earlier run was not ended
            return
        self._thinkers.add(response.request.request_hash)
        if self.num_requests >= _MOST_THOUGHTS_ONLY:
            limit = response.request.sampling.max_new_tokens
            raise TeacherError(
                f"{self._teacher} spent the first {self.num_requests} responses on reasoning and "
                f"wrote no text (the last has {response.completion_tokens or 'unknown'} tokens, "
                f"finish_reason {response.finish_reason!r}), so every row would be asked in vain. "
                f"Raise teacher.max_new_tokens (now {limit}), or {self._remedy}."
            )
