"""The stub behaves as it is told, and the harness counts right."""

import asyncio
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.bare_client import answer
from benchmarks.bench import Bench, count_states, make_recipe, make_rows
from benchmarks.cases import CASES, Case
from benchmarks.generation import Results
from benchmarks.processes import REPO, ProcessError, Stub, measure
from benchmarks.report import Metric, markdown_table
from benchmarks.stub import FAULTS, Run, Settings, answer_to, draw
from tests.waiting import wait_until

FAULT_MIX: dict[str, Any] = dict.fromkeys(FAULTS, 0.1) | {"stall": 0.0}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def connection(stub: Stub) -> Iterator[http.client.HTTPConnection]:
    opened = http.client.HTTPConnection("127.0.0.1", _port(stub), timeout=60)
    yield opened
    opened.close()


def _port(stub: Stub) -> int:
    port = urllib.parse.urlsplit(stub.base_url).port
    assert port is not None
    return port


def ask(connection: http.client.HTTPConnection, prompt: str) -> tuple[int, Any, str | None]:
    """Return status, parsed body (or its text) and Retry-After."""
    content = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(content))
    response = connection.getresponse()
    text = response.read().decode()
    try:
        return response.status, json.loads(text), response.headers["Retry-After"]
    except ValueError:
        return response.status, text, None


# -- The stub ---------------------------------------------------------------------------------


def test_a_connection_is_kept_and_large_prompts_are_read(
    stub: Stub, connection: http.client.HTTPConnection
) -> None:
    stub.reset()
    sockets = set()
    for prompt in ("first", "x" * 1_000_000, "last"):
        status, body, _ = ask(connection, prompt)
        assert (status, body["choices"][0]["message"]["content"]) == (200, answer_to(prompt))
        sockets.add(connection.sock.getsockname())
    assert len(sockets) == 1
    stats = stub.stats()
    assert (stats["requests"], stats["answered_prompts"], stats["answered_again"]) == (3, 3, 0)


def test_prompts_that_are_asked_again_are_counted(
    stub: Stub, connection: http.client.HTTPConnection
) -> None:
    stub.reset()
    for prompt in ("a", "b", "a", "a"):
        ask(connection, prompt)
    stats = stub.stats()
    assert stats["answered_again"] == 1
    assert stats["asked_times"] == stats["answered_times"] == {"1": 1, "3": 1}
    stub.reset()
    assert stub.stats()["requests"] == 0


@pytest.mark.parametrize("form, expected", [("seconds", r"\d+"), ("fraction", r"\d+\.\d{3}")])
def test_a_full_bucket_answers_429_with_when_to_come_back(
    stub: Stub, connection: http.client.HTTPConnection, form: str, expected: str
) -> None:
    stub.reset(rate_per_s=0.001, burst=1, retry_after=form)
    assert ask(connection, "a")[0] == 200
    status, _, retry_after = ask(connection, "b")
    assert status == 429
    assert re.fullmatch(expected, retry_after or "")
    assert 900 < float(retry_after or "nan") <= 1000
    assert stub.stats()["by_status"] == {"200": 1, "429": 1}
    assert stub.stats()["distinct_prompts"] == 1  # what was turned away was not asked


def test_the_bucket_fills_at_its_rate_up_to_its_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    run = Run(Settings(rate_per_s=10, burst=2))
    assert [run.wait_for_token(now) for now in (0, 0)] == [None, None]
    assert run.wait_for_token(0) == pytest.approx(0.1)
    assert run.wait_for_token(0.1) is None
    assert [run.wait_for_token(9) for _ in range(2)] == [None, None]
    assert run.wait_for_token(9) is not None


def test_an_answer_takes_its_latency(stub: Stub, connection: http.client.HTTPConnection) -> None:
    stub.reset(latency_ms=40)
    began = time.monotonic()
    ask(connection, "a")
    assert 0.04 <= time.monotonic() - began < 30
    assert stub.stats()["first_latencies_s"] == pytest.approx(0.04)


def test_lognormal_latencies_have_the_quantiles_that_were_asked_for() -> None:
    settings = Settings(latency_ms=50, p99_ms=1000)
    seconds = [draw(settings, f"prompt {i}", 0)[1] for i in range(4000)]
    assert statistics.median(seconds) == pytest.approx(0.05, rel=0.1)
    assert statistics.quantiles(seconds, n=100)[98] == pytest.approx(1.0, rel=0.25)
    cut = Settings(latency_ms=50, p99_ms=1000, max_ms=1000)
    assert max(draw(cut, f"prompt {i}", 0)[1] for i in range(4000)) == 1.0


def test_faults_come_in_their_fractions_and_depend_on_seed_prompt_and_repetition_only() -> None:
    settings = Settings(**FAULT_MIX)
    outcomes = [draw(settings, f"prompt {i}", 0)[0] for i in range(4000)]
    assert outcomes == [draw(settings, f"prompt {i}", 0)[0] for i in range(4000)]
    for fault in set(FAULTS) - {"stall"}:
        assert outcomes.count(fault) / 4000 == pytest.approx(0.1, abs=0.02)
    again = [draw(settings, f"prompt {i}", 1)[0] for i in range(4000)]
    failed = [second for first, second in zip(outcomes, again, strict=True) if first != "ok"]
    assert failed.count("ok") / len(failed) == pytest.approx(0.5, abs=0.05)


def test_each_fault_looks_like_itself(stub: Stub) -> None:
    def meets(timeout_s: float = 60, **settings: float) -> tuple[int, Any, str | None]:
        stub.reset(**settings)
        connection = http.client.HTTPConnection("127.0.0.1", _port(stub), timeout=timeout_s)
        try:
            return ask(connection, "a")
        finally:
            connection.close()

    assert meets(error_500=1)[0] == 500
    status, body, _ = meets(malformed=1)
    assert status == 200 and isinstance(body, str)
    assert meets(empty=1)[1]["choices"][0]["message"]["content"] == ""
    choice = meets(truncated=1)[1]["choices"][0]
    assert choice["finish_reason"] == "length"
    assert answer_to("a").startswith(choice["message"]["content"])
    with pytest.raises(ConnectionResetError):
        meets(reset=1)
    with pytest.raises(TimeoutError):
        meets(stall=1, timeout_s=0.3)
    assert stub.stats()["answered_prompts"] == 0


def test_an_answer_that_nobody_waited_for_is_not_counted_as_one(stub: Stub) -> None:
    stub.reset(latency_ms=3_600_000)
    connection = socket.create_connection(("127.0.0.1", _port(stub)))
    body = b'{"model": "m", "messages": [{"content": "a"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    wait_until(lambda: stub.stats()["requests"])
    connection.close()
    wait_until(lambda: stub.stats()["by_outcome"] == {"abandoned": 1})
    assert stub.stats()["answered_prompts"] == 0


def test_a_request_that_is_none_is_refused(
    stub: Stub, connection: http.client.HTTPConnection
) -> None:
    for body in ("{", "[]", '{"messages": []}'):
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (400, True)
    connection.request("POST", "/reset", '{"latency": 3}')
    assert connection.getresponse().status == 400


# -- The clients ------------------------------------------------------------------------------


def test_the_bare_client_gets_through_faults_and_limits_but_takes_any_text(stub: Stub) -> None:
    rows = make_rows(200, seed=1)
    stub.reset(**{**FAULT_MIX, "rate_per_s": 2000, "burst": 50, "retry_after": "fraction"})
    texts = asyncio.run(answer(stub.base_url, rows, workers=16, timeout_s=60))
    states = count_states(rows, [(key, "ok", text) for key, text in texts.items()])
    stats = stub.stats()
    assert states["right"] == stats["answered_prompts"] > 100
    assert states["wrong"] == stats["by_outcome"]["empty"] + stats["by_outcome"]["truncated"]
    assert stats["max_in_flight"] <= 16


def test_rows_are_right_only_with_the_answer_to_their_own_prompt() -> None:
    rows = make_rows(5, seed=0)
    ids, texts = [row["id"] for row in rows], [row["text"] for row in rows]
    found = [
        (ids[0], "ok", answer_to(texts[0])),
        (ids[1], "ok", answer_to(texts[0])),
        (ids[2], "truncated", "label"),
        (ids[3], "ok", ""),
    ]
    assert count_states(rows, found) == {"right": 1, "wrong": 2, "truncated": 1, "missing": 1}


def test_rows_are_distinct_and_those_of_another_start_are_new() -> None:
    old, new = make_rows(500, seed=0), make_rows(500, seed=0, start=100_000)
    assert old == make_rows(500, seed=0)
    for field in ("id", "text"):
        assert len({row[field] for row in old + new}) == 1000


def test_the_recipe_of_a_run_is_one_that_the_schema_takes(tmp_path: Path) -> None:
    from schemas.data import DataSpec
    from schemas.execution import StoreSpec
    from schemas.task import TaskSpec
    from schemas.teacher import OpenAITeacher

    recipe = make_recipe(tmp_path, "http://127.0.0.1:1/v1")
    TaskSpec(**recipe["task"])
    DataSpec(**recipe["data"])
    StoreSpec(**recipe["store"])
    assert OpenAITeacher(**recipe["teacher"]).concurrency == 64


# -- The harness ------------------------------------------------------------------------------


def test_cpu_is_that_of_the_process_and_apart_of_its_children(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < {}: pass\n"
    child = f"subprocess.run([sys.executable, '-c', {burn.format(1.0)!r}])"
    code = f"import subprocess, sys\n{child}\n{burn.format(0.2)}"
    found = measure(["-c", code], folder=tmp_path, environment=os.environ, timeout_s=120)
    assert found.wall_s >= 1.2 and not found.killed
    # Starting an interpreter takes CPU, too, and on a busy machine several times as much.
    assert 0.15 < found.own_cpu_s < 1.0
    assert found.own_cpu_s + 0.95 < found.tree_cpu_s


def test_a_command_that_fails_or_hangs_is_an_error_that_quotes_it(tmp_path: Path) -> None:
    environment = dict(os.environ)
    with pytest.raises(ProcessError, match=r"ended with 3.*\n.*gone wrong"):
        code = "print('gone wrong'); raise SystemExit(3)"
        measure(["-c", code], folder=tmp_path, environment=environment, timeout_s=60)
    with pytest.raises(ProcessError, match=r"more than 0\.2 s"):
        code = "import time; time.sleep(60)"
        measure(["-c", code], folder=tmp_path, environment=environment, timeout_s=0.2)


def test_a_kill_takes_the_whole_family(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'],"
        " start_new_session=True)\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\ntime.sleep(3600)"
    )
    found = measure(
        ["-c", code],
        folder=tmp_path,
        environment=os.environ,
        timeout_s=600,
        stop_when=lambda: pid_file.exists() and pid_file.read_text() != "",
    )
    assert found.killed
    pid = int(pid_file.read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_table_shows_medians_spread_and_whether_goals_are_met() -> None:
    fast = Metric("rows/s", "1,280", 950, "higher")
    late = Metric("time over ideal", "1", 1.4, digits=2)
    values = {
        ("a", "rows/s", "ours"): [1000.0, 900.0, 960.0],
        ("a", "rows/s", "bare"): [1200.0],
        ("b", "time over ideal", "ours"): [1.5],
    }
    table = markdown_table([("a", fast), ("b", late)], values, {("b", "bare"): "fell over"})
    assert table.splitlines()[2:] == [
        "| a | rows/s | 1,280 | >= 950 | 960 [900, 1,000] | 1,200 | yes |",
        "| b | time over ideal | 1 | <= 1.40 | 1.50 | crashed | **no** |",
    ]


def test_a_goal_of_nothing_is_a_goal() -> None:
    assert Metric("rows lost", goal=0).met([0, 0]) == "yes"
    assert Metric("rows lost", goal=0).met([1]) == "**no**"
    assert Metric("rows lost").met([1]) == "-"


def test_a_case_that_crashes_is_named_and_not_tried_again(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def crash(*_: Any) -> tuple[float | None, ...]:
        calls.append(1)
        raise ProcessError("fell over")

    case, results = Case("x", crash, (Metric("m"),), repeats=3), Results()
    bench = Bench(tmp_path, stub, is_quick=True, timeout_s=1)
    for repeat in range(3):
        results.run(bench, case, "ours", repeat)
    assert results.crashed == {("x", "ours"): "fell over"} and len(calls) == 1
    assert "fell over" in capsys.readouterr().err
    assert "**crashed**" in markdown_table([("x", case.metrics[0])], {}, results.crashed)


def test_every_case_has_a_letter_of_its_own() -> None:
    assert [case.letter for case in CASES] == sorted({case.letter for case in CASES})


def test_the_command_measures_the_bare_client_and_writes_what_it_prints(tmp_path: Path) -> None:
    output = tmp_path / "result.md"
    command = ["-m", "benchmarks.generation", "--clients=bare", "--quick", "--cases=ah"]
    done = subprocess.run(
        [sys.executable, *command, f"--output={output}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output.read_text()
    assert "| h | rows not right | 0 | <= 0 | - | 0 | - |" in done.stdout
