"""One Prefect server for the session, and nothing of the user's home or network."""

import gc
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fixtures_ledger import ledger, ledger_spec, sqlite_spec
from tests.fixtures_postgresql import postgresql

__all__ = ["ledger", "ledger_spec", "postgresql", "sqlite_spec"]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "TQDM_DISABLE": "1",
    # Tiny models: threads would only wait for each other.
    "OMP_NUM_THREADS": "1",
}

# How long an example takes tells of the machine, not of the code; and what passes here passes
# elsewhere. New examples: `pytest --hypothesis-profile=default`.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def collections_as_usual_at_the_end() -> Iterator[None]:
    """Undo `cheap_collections`: libraries complain of what is never collected."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> None:
    """Keep what is loaded out of garbage collections, of which every training does two.

    In a process with torch, transformers and Prefect in it each takes half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Hold torch to one thread: tiny models are faster so, and results equal to the bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that lives as long as the session; flows of this process use it."""
    from flows.environment import prepare_environment

    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    prepare_environment()
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    # A heartbeat thread costs each flow a second when it is joined.
    settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(settings):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """Prefect's own lines are noise in a failure's output; ours stay."""
    logging.getLogger("prefect").setLevel(logging.WARNING)
