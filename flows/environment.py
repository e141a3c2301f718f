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
    if not _has_server():
        home = Path.cwd() / ".distillery" / "prefect"
        home.mkdir(parents=True, exist_ok=True)  # Prefect waits in vain for one it cannot make.
        os.environ["PREFECT_HOME"] = str(home)


def _has_server() -> bool:
    """Return whether the environment or the active profile names an API URL or a home."""
    if os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_HOME"):
        return True
    try:
        profiles = tomllib.loads((Path.home() / ".prefect" / "profiles.toml").read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active"))
    return "PREFECT_API_URL" in profiles.get("profiles", {}).get(active, {})
