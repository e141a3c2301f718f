"""A server of the stage's own: how it starts, and that it never stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distillery.teacher.vllm.server import VLLMServer
from schemas.errors import RecipeError, TeacherError
from tests.fixtures_vllm import StubPython
from tests.ports import free_port
from tests.waiting import wait_until


def test_it_can_be_asked_after_its_start_and_is_gone_after_its_end(
    stub_python: StubPython,
) -> None:
    server = VLLMServer(stub_python.teacher())
    assert not server.has_ended and len(stub_python.running) == 2
    server.stop()
    assert stub_python.running == []


def test_its_end_takes_along_what_has_left_its_group_and_what_is_deaf(
    stub_python: StubPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.teacher.vllm.server._GRACE_S", 0.2)
    server = VLLMServer(stub_python.teacher(deaf=True))
    server.stop()
    assert stub_python.running == []


def test_notes_say_how_long_it_loads_and_what(stub_python: StubPython) -> None:
    notes: list[str] = []
    VLLMServer(stub_python.teacher(load_s=1.0), while_waiting=notes.append).stop()
    assert any(re.fullmatch(r"vLLM starts, \d+ s: Loading the weights", note) for note in notes)


def test_a_server_that_dies_leaves_its_last_words_in_the_error(stub_python: StubPython) -> None:
    with pytest.raises(TeacherError) as raised:
        VLLMServer(stub_python.teacher(dies=True))
    assert "exit status 3" in str(raised.value)
    last = "Loading the weights\ntorch.OutOfMemoryError: CUDA out of memory.\nRuntimeError: no\n"
    assert last in str(raised.value)
    assert "Its first error: torch.OutOfMemoryError: CUDA out of memory.\n" in str(raised.value)


def test_a_server_that_is_never_healthy_ends_at_the_timeout(stub_python: StubPython) -> None:
    teacher = stub_python.teacher(is_never_healthy=True, start_timeout_s=1.5)
    with pytest.raises(TeacherError, match=r"teacher\.start_timeout_s=1\.5") as raised:
        VLLMServer(teacher)
    assert "Loading the weights" in str(raised.value)
    assert stub_python.running == []


def test_an_interpreter_without_vllm_is_told_what_to_install(stub_python: StubPython) -> None:
    with pytest.raises(RecipeError, match=r"has no vLLM.*requirements\.txt"):
        VLLMServer(stub_python.teacher(has_vllm=False))


def test_an_interpreter_that_is_not_there_is_named(stub_python: StubPython) -> None:
    teacher = stub_python.teacher().model_copy(update={"python": "nowhere/bin/python"})
    with pytest.raises(RecipeError, match=r"'nowhere/bin/python' cannot be run"):
        VLLMServer(teacher)


def test_a_port_that_is_taken_is_named(stub_python: StubPython) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RecipeError, match=f"teacher.port {port} of this machine is taken"),
    ):
        VLLMServer(stub_python.teacher(port=port))
    assert stub_python.servers == []


def test_sampling_defaults_of_the_checkpoint_stay_out(stub_python: StubPython) -> None:
    VLLMServer(stub_python.teacher(max_model_len=512, extra_args=("--enforce-eager",))).stop()
    [arguments] = stub_python.servers
    said = " ".join(arguments)
    assert "serve org/big --served-model-name org/big" in said
    assert "--generation-config vllm" in said and "--revision c0ffee0" in said
    assert "--max-model-len 512" in said and "--enforce-eager" in said


def test_kill_9_of_the_process_that_wants_it_leaves_nothing(
    stub_python: StubPython, tmp_path: Path
) -> None:
    teacher = stub_python.teacher()
    (tmp_path / "teacher.json").write_text(teacher.model_dump_json())
    program = textwrap.dedent(
        f"""
        import multiprocessing, time
        from pathlib import Path
        from distillery.teacher.vllm.server import VLLMServer
        from schemas.teacher import VLLMTeacher
        teacher = VLLMTeacher.model_validate_json(
            Path({str(tmp_path)!r}, "teacher.json").read_text()
        )
        server = VLLMServer(teacher)
        # A child that outlives its parent has a copy of the pipe.
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
        Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
        time.sleep(600)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until((tmp_path / "child").exists)
        wait_until(lambda: (tmp_path / "child").read_text())
        assert len(stub_python.running) == 2
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not stub_python.running)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
