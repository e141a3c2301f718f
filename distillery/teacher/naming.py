"""Messages about a teacher that stands elsewhere in the recipe, such as a judge."""

import contextlib
import re
from collections.abc import Iterator

from schemas.errors import DistilleryError


def named_as(place: str, text: str) -> str:
    """Return a message about `teacher` as one about the teacher at ``place`` of the recipe.

    >>> named_as("evaluation.judge.model", "does not know teacher.model 'm'.")
    "does not know evaluation.judge.model.model 'm'."
    """
    return re.sub(r"\bteacher\.(?=\w)", f"{place}.", text)


@contextlib.contextmanager
def naming_as(place: str) -> Iterator[None]:
    """Name the fields of ``place`` in errors about a teacher."""
    try:
        yield
    except DistilleryError as error:
        raise type(error)(named_as(place, str(error))) from error
