"""What `prefect.yaml` and deployments/ promise, checked without a server that runs them."""

import importlib
import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from deployments.generate import generated_files

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
DEPLOYMENTS: list[dict[str, Any]] = PROJECT["deployments"]
POOLS = yaml.safe_load((ROOT / "deployments/pools.yaml").read_text(encoding="utf-8"))
SPINES = ("demo", "nightly", "sweep")
HEAVY = ("torch", "transformers", "datasets", "peft", "great_expectations", "matplotlib", "scipy")

each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])


def flow_of(deployment: dict[str, Any]) -> Any:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", generated_files())
def test_generated_file_is_fresh(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == generated_files()[name], "run `make schema`"


def test_check_names_the_stale_file(tmp_path: Path) -> None:
    script = (
        "from deployments import generate; from pathlib import Path; import sys\n"
        f"generate.ROOT = Path({str(tmp_path)!r})\n"
        "generate.generated_files = lambda: {'prefect.yaml': 'new'}\n"
        "sys.argv = ['generate', '--check']; generate.main()"
    )
    (tmp_path / "prefect.yaml").write_text("old")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "stale: prefect.yaml. Run `make schema` and commit them.\n"


@each_deployment
def test_parameters_fit_the_flow(deployment: dict[str, Any], prefect_server: str) -> None:
    flow = flow_of(deployment)
    if deployment["name"] in SPINES:
        flow.validate_parameters(deployment["parameters"])
        assert deployment["parameters"]["execution"]["mode"] == "deployment"
    else:
        # tasks/dispatch.py runs the deployment that has its flow's name.
        assert deployment["name"] == flow.name
        assert "parameters" not in deployment


@each_deployment
def test_pool_is_defined(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["name"] in POOLS


def test_parent_and_child_never_share_a_pool() -> None:
    pools = {d["name"]: d["work_pool"]["name"] for d in DEPLOYMENTS}
    parents = {pools[name] for name in SPINES}
    children = {pool for name, pool in pools.items() if name not in SPINES}
    assert parents.isdisjoint(children)


def test_every_dispatched_flow_has_a_deployment(prefect_server: str) -> None:
    from prefect import Flow

    from flows import distill_student, sweep_students, teach_student

    named = vars(distill_student) | vars(sweep_students) | vars(teach_student)
    children = {value.name for value in named.values() if isinstance(value, Flow)}
    parents = {"distill-student", "sweep-students"}
    assert children == parents | {d["name"] for d in DEPLOYMENTS} - set(SPINES)


def test_nightly_does_not_pause_or_start_itself_with_a_deploy() -> None:
    [nightly] = [d for d in DEPLOYMENTS if d["name"] == "nightly"]
    [schedule] = nightly["schedules"]
    assert schedule["active"] == "{{ schedule.active }}"
    assert schedule["timezone"] == "Europe/Berlin"
    [step] = nightly["build"]
    assert step["deployments.steps.read_schedule"]["slug"] == schedule["slug"]


def test_the_nightly_hour_comes_exactly_once_on_every_day_of_a_year() -> None:
    [schedule] = next(d for d in DEPLOYMENTS if d["name"] == "nightly")["schedules"]
    minute, hour, *every_day = schedule["cron"].split()
    assert every_day == ["*", "*", "*"]
    zone = ZoneInfo(schedule["timezone"])
    first = datetime(2026, 1, 1, int(hour), int(minute))
    for local in (first + timedelta(days=day) for day in range(365)):
        # An hour that is skipped or repeated has two readings, which differ.
        early, late = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
        assert early == late, local


def test_pool_templates_show_our_log_and_send_heartbeats() -> None:
    for template in (ROOT / "deployments/pools").glob("*.json"):
        env = json.loads(template.read_text())["variables"]["properties"]["env"]["default"]
        assert env["PREFECT_LOGGING_EXTRA_LOGGERS"] == "distillery"
        assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert not [name for name in env if "KEY" in name or "TOKEN" in name.split("_")]


def test_flows_load_without_heavy_libraries(tmp_path: Path) -> None:
    modules = sorted({d["entrypoint"].rsplit(".", 1)[0] for d in DEPLOYMENTS})
    script = f"import {', '.join(modules)}, sys; print(*set(sys.modules).intersection({HEAVY}))"
    env = {"PREFECT_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
