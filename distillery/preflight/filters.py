"""What can be known of the filters before anything is spent."""

import functools
from collections.abc import Iterator

from distillery.filters.balance import check_field
from distillery.filters.judge import SCORE, as_the_judges, naming_the_judge
from distillery.preflight.judge import unread_settings
from distillery.storage.fingerprint import model_identity
from distillery.task_types import TaskType
from distillery.teacher.http.keys import read_key
from schemas.errors import DistilleryError
from schemas.filters import BalanceFilter, FilterSpec, JudgeFilter


def filter_problems(filters: FilterSpec, kind: TaskType) -> Iterator[str]:
    """Yield what is wrong with filters over responses as recipe, environment and files tell."""
    for spec in filters.responses or ():
        if isinstance(spec, BalanceFilter):
            yield from _raised(functools.partial(check_field, spec, kind))
        if isinstance(spec, JudgeFilter):
            yield from _raised(functools.partial(_check_judge, spec))
            reads = "the prompt with its response, once"
            yield from unread_settings(spec.model, "filters.responses[judge]", reads)


def check_judging_endpoints(filters: FilterSpec) -> list[str]:
    """Return warnings about judges among the filters; asks the network, and pays for nothing.

    Raises:
        DistilleryError: An endpoint cannot be used.
    """
    from distillery.preflight.endpoint import check_endpoint

    warnings: list[str] = []
    for spec in filters.responses or ():
        if isinstance(spec, JudgeFilter) and spec.model.is_hosted:
            with naming_the_judge():
                warnings += map(as_the_judges, check_endpoint(spec.model, SCORE))
    return warnings


def _check_judge(spec: JudgeFilter) -> None:
    with naming_the_judge():
        if not spec.model.is_served:
            role = "filters.responses[judge].model"
            model_identity(spec.model.model, spec.model.revision, role=role)
        elif spec.model.is_hosted and spec.model.api_key_env is not None:
            read_key(spec.model)


def _raised(check: "functools.partial[None]") -> Iterator[str]:
    try:
        check()
    except DistilleryError as error:
        yield str(error)
