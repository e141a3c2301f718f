"""Settings that hold before Prefect is imported."""

import logging
import os
import sys
import tomllib
from pathlib import Path

_SETTINGS = {
    # Shown in the UI beside Prefect's own lines.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "distillery",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # On a fresh home, telemetry and migrations lock each other out of SQLite: a page of traceback.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The first start of a temporary server makes its database: about 10 s, more on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A lost worker is noticed by its missing heartbeats (deployments/automations.yaml).
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Arrow's own pool keeps what was freed: 358 MiB instead of 315 at the peak of 5,000 responses.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def prepare_environment() -> None:
    """Give our commands a Prefect home of the project's own, unless the user has a server.

    A user's profile is never written to. Settings that are in the environment already stand.
    """
    logging.getLogger("distillery").setLevel(logging.INFO)
    if "prefect" in sys.modules:
        return
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if api_url() is None and "PREFECT_HOME" not in os.environ:
        os.environ["PREFECT_HOME"] = str(Path.cwd() / ".distillery" / "prefect")
        prefect_home().mkdir(parents=True, exist_ok=True)  # Prefect waits in vain without it.


def prefect_home() -> Path:
    """Return the folder in which Prefect keeps its profiles and a temporary server its database."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")


def api_url() -> str | None:
    """Return the address of the user's server: by the environment, else by the active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    try:
        profiles = tomllib.loads((prefect_home() / "profiles.toml").read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active"))
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None
