"""What starts a vLLM server, from an interpreter or an image."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from schemas.errors import RecipeError
from schemas.vllm_teacher import VLLMTeacher

HOST = "127.0.0.1"
_MODULE = "vllm.entrypoints.cli.main"
# Finding the package imports nothing of it; a cold disk takes its time all the same.
_LOOK = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
_LOOK_S = 60.0
# They are about our interpreter, and would lead another one to our packages.
_OF_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_CACHE = "/huggingface"  # in the container


class Command(NamedTuple):
    """How a server is started, and what is left to do when it has ended."""

    start: list[str]
    """Runs it in the foreground."""

    afterwards: list[str]
    """Run when it is gone: the end of Docker's client is not always that of its container."""


def check_vllm(teacher: VLLMTeacher) -> None:
    """Return when the interpreter has vLLM, or there is Docker to run the image.

    Raises:
        RecipeError: It has not, or is not there.
    """
    if teacher.python is None:
        if shutil.which("docker") is None:
            raise RecipeError(
                f"teacher.image is {teacher.image!r}, but there is no command docker to run it. "
                "Install Docker, or name in teacher.python an interpreter that has vLLM."
            )
        return
    python = _interpreter(teacher)
    try:
        looked = subprocess.run(
            [python, "-c", _LOOK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOOK_S,
            env=environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecipeError(
            f"teacher.python {teacher.python!r} cannot be run: {error}. Name the interpreter of "
            "the environment with vLLM, such as .venv-vllm/bin/python."
        ) from error
    if looked.returncode:
        raise RecipeError(
            f"teacher.python {teacher.python!r} has no vLLM. Install it into that environment: "
            f"{teacher.python} -m pip install -r deployments/vllm/requirements.txt"
        )


def serve_command(teacher: VLLMTeacher, port: int, name: str) -> Command:
    """Return what serves ``teacher`` at ``port``.

    Sampling defaults of the checkpoint stay out (`--generation-config vllm`), its end tokens do
    not. As many log-probabilities are shown as are asked for.

    Args:
        teacher: What is served.
        port: Where, on 127.0.0.1.
        name: Of the container; no other has it.

    >>> teacher = VLLMTeacher(model="org/m", revision="c0ffee", image="vllm/vllm-openai:v0.32.0")
    >>> serve_command(teacher, 8000, "distillery-1").afterwards
    ['docker', 'rm', '--force', 'distillery-1']
    >>> " ".join(serve_command(teacher, 8000, "distillery-1").start[-17:-10])
    '--generation-config vllm --max-logprobs -1 --uvicorn-log-level warning --revision'
    """
    model = Path(teacher.model).expanduser()
    served = str(model.absolute()) if model.is_dir() else teacher.model
    arguments = ["serve", served, "--served-model-name", teacher.model]
    arguments += ["--host", HOST, "--port", str(port)]
    arguments += ["--dtype", teacher.dtype, "--generation-config", "vllm"]
    arguments += ["--max-logprobs", "-1", "--uvicorn-log-level", "warning"]
    for flag, value in (
        ("--revision", teacher.revision),
        ("--tokenizer-revision", teacher.revision),
        ("--quantization", teacher.quantization),
        ("--max-model-len", teacher.max_model_len),
    ):
        arguments += [flag, str(value)] if value is not None else []
    arguments += ["--tensor-parallel-size", str(teacher.tensor_parallel_size)]
    arguments += ["--data-parallel-size", str(teacher.data_parallel_size)]
    arguments += ["--gpu-memory-utilization", f"{teacher.gpu_memory_fraction:g}"]
    arguments += [f"--{'' if teacher.prefix_caching else 'no-'}enable-prefix-caching"]
    arguments += ["--trust-remote-code"] if teacher.trust_remote_code else []
    arguments += teacher.extra_args
    if teacher.python is not None:
        return Command([_interpreter(teacher), "-m", _MODULE, *arguments], [])
    assert teacher.image is not None
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser().absolute()
    run = ["docker", "run", "--rm", "--init", "--name", name, "--gpus", "all", "--ipc", "host"]
    run += ["--network", "host", "--volume", f"{cache}:{_CACHE}", "--env", f"HF_HOME={_CACHE}"]
    run += ["--volume", f"{served}:{served}:ro"] if model.is_dir() else []
    for passed in ("HF_TOKEN", *_QUIET):
        run += ["--env", passed]
    run += ["--entrypoint", "vllm", teacher.image]
    return Command([*run, *arguments], ["docker", "rm", "--force", name])


_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def environment() -> dict[str, str]:
    """Return the environment of another interpreter: ours, without what leads to our packages."""
    ours = {name: value for name, value in os.environ.items() if name not in _OF_OURS}
    return ours | _QUIET


def _interpreter(teacher: VLLMTeacher) -> str:
    """Return the path as it is: that of an environment is a link, which must not be followed."""
    python = str(teacher.python)
    return str(Path(python).expanduser().absolute()) if os.sep in python else python
