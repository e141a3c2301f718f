"""What a machine is, and how much memory it has for this process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillery.models import hardware
from distillery.models.hardware import available_memory, hardware_record, process_peak_bytes


def test_a_cpu_has_what_the_machine_can_give_and_the_process_holds() -> None:
    import psutil

    total = psutil.virtual_memory().total
    assert 0 < available_memory("cpu") <= total
    assert available_memory(torch.device("cpu")) == pytest.approx(
        available_memory("cpu"), abs=total / 2
    )


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_limits_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
    usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    for folder, most in (
        (root, str(2**62) if version == 1 else "max"),
        (root / "pod", str(1000 * 2**20)),
        (root / "pod" / "job", str(5000 * 2**20)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text(f"{800 * 2**20}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} {300 * 2**20}\n")
    lines = tmp_path / "of_process"
    lines.write_text("7:cpu:/pod/job\n4:memory:/pod/job\n" if version == 1 else "0::/pod/job\n")
    monkeypatch.setattr(hardware, "_GROUPS_OF_PROCESS", lines)
    monkeypatch.setattr(hardware, "_GROUPS", tmp_path)
    import psutil

    own = psutil.Process().memory_info()
    held = own.rss - own.shared
    assert available_memory("cpu") == pytest.approx(held + 500 * 2**20, abs=20 * 2**20)
    lines.write_text("0::/elsewhere\n")
    assert available_memory("cpu") > held + 520 * 2**20


def test_hardware_is_recorded() -> None:
    record = hardware_record()
    named = {"cpu", "cores", "memory", "torch_threads", "python", "torch", "transformers"}
    assert all(record[name] for name in named) and "gpu" in record
    assert record["peak_of_the_measuring_process"]
    assert process_peak_bytes() > 2**20


def test_the_peak_of_a_process_is_its_own_and_not_that_of_a_larger_parent() -> None:
    held = bytearray(b"x" * 2**28)
    code = "from distillery.models.hardware import process_peak_bytes; print(process_peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(held)
