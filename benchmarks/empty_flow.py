"""A flow that does nothing, started as our commands are: what Prefect itself costs."""

from typing import TYPE_CHECKING

from cli.runs import run_flow
from schemas.execution import StoreSpec

if TYPE_CHECKING:
    from prefect import Flow


def _load() -> "Flow[..., None]":
    from prefect import flow

    import flows  # noqa: F401  (its settings come before Prefect's import)

    @flow(name="empty")
    def empty() -> None:
        """Return at once."""

    return empty


if __name__ == "__main__":
    run_flow(StoreSpec(), _load)  # a flow without parameters reads nothing of it
