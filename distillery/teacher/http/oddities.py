"""What is odd about an endpoint's responses: each kind is warned of once, or ends the run."""

import logging

from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.protocol import Response
from distillery.teacher.thinking import ThoughtsOnly

logger = logging.getLogger(__name__)

# Endpoints that never say why a response ends are found out by so many.
_MOST_UNEXPLAINED = 3


class Oddities:
    """Watches the responses of one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._models: set[str] = set()
        self._explains = False
        self._never_explains = False
        self._warned_of_ends = False
        self._thoughts = ThoughtsOnly(
            f"endpoint '{endpoint}'", "turn the reasoning down in teacher.extra_body"
        )

    @property
    def thoughts_only(self) -> int:
        """Return how many requests brought thoughts and no text."""
        return self._thoughts.num_requests

    def check(self, response: Response) -> None:
        """Return when there is nothing to say of ``response``, or it is said.

        Raises:
            TeacherError: The endpoint thinks, and never comes to a response.
        """
        self.check_model(response.model_reported)
        self._thoughts.check(response)

    def may_be_cut(self, response: Response, num_unexplained: int) -> bool:
        """Return whether ``response`` has to be asked for again, as nothing says that it is whole.

        Args:
            response: What has arrived.
            num_unexplained: How many responses to this request came without a finish_reason.
        """
        if response.finish_reason is not None:
            self._explains = True
            return False
        if not response.text or self._never_explains:
            return False
        if not self._warned_of_ends:
            self._warned_of_ends = True
            logger.warning(
                "endpoint '%s' gave a response without a finish_reason, so it may be cut off; such "
                "a request is asked again, up to %d times in all",
                self._endpoint,
                _MOST_UNEXPLAINED,
            )
        if num_unexplained < _MOST_UNEXPLAINED:
            return True
        self._never_explains = not self._explains
        return False

    def check_model(self, model: str | None) -> None:
        """Warn of a model that answers under another name than it was asked by."""
        asked = self._endpoint.spec.model
        if model is None or model in self._models:
            return
        self._models.add(model)
        if not model.endswith(asked) and not model.startswith(asked):
            logger.warning(
                "endpoint '%s' answers as model %r, not as teacher.model=%r; the responses are "
                "kept under the latter",
                self._endpoint,
                model,
                asked,
            )
