"""Which failures a stage task tries again."""

import pytest
from prefect.states import Failed

from schemas.errors import DistilleryError, StoreError, TeacherError
from tasks.stage import _is_infrastructure


class EndpointConnectionError(Exception):
    """As botocore names it."""


def failed(error: Exception, cause: Exception | None) -> bool:
    error.__cause__ = cause
    return _is_infrastructure(None, None, Failed(data=error))


@pytest.mark.parametrize(
    ("error", "cause", "is_tried_again"),
    [
        (ConnectionResetError("lost"), None, True),
        (StoreError("cannot write"), ConnectionRefusedError(), True),
        (StoreError("cannot write"), EndpointConnectionError(), True),
        (StoreError("cannot write"), PermissionError(), False),
        (TeacherError("unreachable"), ConnectionRefusedError(), False),
        (DistilleryError("anything"), None, False),
        (KeyError("a bug"), None, False),
    ],
)
def test_only_lost_connections_are_tried_again(
    error: Exception, cause: Exception | None, is_tried_again: bool
) -> None:
    assert failed(error, cause) is is_tried_again
