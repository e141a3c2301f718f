"""Make a server's pools, deployments and automations what the files here say; repeatable.

    python -m deployments.register      on the server of PREFECT_API_URL

What an operator may switch stays as it is: paused pools, schedules, disabled automations.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkerStatus
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> None:
    """Register everything."""
    with get_client(sync_client=True) as client:
        apply_pools(client)
        apply_automations(client)
    deploying = start_deploy()
    finish_deploy(deploying)


def read_pools() -> dict[str, dict[str, Any]]:
    """Return the pools of `pools.yaml` by name, each with its job template read in."""
    pools: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "pools.yaml").read_text("utf-8"))
    for pool in pools.values():
        template = (HERE / pool["base_job_template"]).read_text("utf-8")
        pool["base_job_template"] = json.loads(template)
    return pools


def apply_pools(client: SyncPrefectClient) -> None:
    """Create the pools, or make existing ones so; a paused pool stays paused."""
    for name, pool in read_pools().items():
        settings = {key: value for key, value in pool.items() if key != "type"}
        try:
            found = client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, **pool))
            continue
        if any(getattr(found, key) != value for key, value in settings.items()):
            client.update_work_pool(name, WorkPoolUpdate(**settings))


def apply_automations(client: SyncPrefectClient) -> None:
    """Create the automations, or make existing ones so; a disabled one stays disabled."""
    for item in yaml.safe_load((HERE / "automations.yaml").read_text("utf-8")):
        wanted = AutomationCore.model_validate(item)
        found = client.read_automations_by_name(wanted.name)
        if not found:
            client.create_automation(wanted)
        # An update makes the server forget which runs it is watching: only when something differs.
        for automation in found[:1]:
            wanted = wanted.model_copy(update={"enabled": automation.enabled})
            if _without_ids(wanted) != _without_ids(automation):
                client.update_automation(automation.id, wanted)


def _without_ids(automation: AutomationCore) -> Any:
    fields = set(AutomationCore.model_fields)
    return automation.model_dump(mode="json", include=fields, exclude={"trigger": {"id"}})


def is_served(client: SyncPrefectClient, pool: str) -> bool:
    """Return whether a worker of ``pool`` has been heard of lately."""
    workers = client.read_workers_for_work_pool(pool)
    return any(worker.status == WorkerStatus.ONLINE for worker in workers)


def start_deploy() -> subprocess.Popen[str]:
    """Start `prefect deploy` for everything in `prefect.yaml`.

    Each worker fills in its own `DISTILLERY_HOME`: the repository may be elsewhere there.
    """
    env = {name: value for name, value in os.environ.items() if name != "DISTILLERY_HOME"}
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish_deploy(deploying: subprocess.Popen[str]) -> None:
    """Wait for `prefect deploy`; when it failed, end with what it wrote."""
    output, _ = deploying.communicate()
    if deploying.returncode:
        sys.exit(f"{output}\n`prefect deploy --all` failed. Correct the cause, then repeat.")


if __name__ == "__main__":
    main()
