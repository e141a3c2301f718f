"""What a format is: how a student is written in it, and how its runtime answers."""

import abc
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from distillery.models.chat_format import Conversation
from schemas.errors import RecipeError, StageError
from schemas.export import ExportFormat

_FACTS = "distillery.json"
_SHOWN = 300


@dataclass(frozen=True)
class ExportFacts:
    """What opening an exported student needs to know and no file of its runtime says."""

    context_length: int
    """Longest sequence, prompt and answer, tokens."""

    kv_cache_bytes: int
    """Bytes that the KV cache takes per token, by the runtime's type of it."""

    def save(self, folder: Path) -> None:
        """Write them into an exported folder."""
        (folder / _FACTS).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return what :meth:`save` wrote."""
        return cls(**json.loads((folder / _FACTS).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Generated:
    """What a runtime wrote after a prompt."""

    ids: list[int]
    """Its tokens, without the one that ended it."""

    stopped: bool
    """Whether it ended by itself."""

    first_token_s: float | None = None
    """Seconds until the first of them. None: there is none."""

    num_prompt_tokens: int = 0
    """Tokens that it read."""


class Runtime(abc.ABC):
    """An exported student in memory. Greedy, one conversation at a time, as at the edge."""

    def __init__(self, folder: Path) -> None:
        """Read what the export left about itself."""
        self.facts = ExportFacts.load(folder)

    @abc.abstractmethod
    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Return what the student reads, by the runtime's own template engine and tokenizer."""

    @abc.abstractmethod
    def generate(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Generated:
        """Return the most likely tokens, one after the other."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free its memory."""

    def answer(self, messages: Conversation, max_new_tokens: int) -> Generated:
        """Return the response to a conversation, up to the end of the context.

        Its seconds count from the messages on, as a caller waits for template and tokenizer too.
        """
        start = time.perf_counter()
        prompt_ids = self.prompt_ids(messages)
        read_s = time.perf_counter() - start
        room = min(max_new_tokens, self.facts.context_length - len(prompt_ids))
        written = self.generate(prompt_ids, room) if room > 0 else Generated([], stopped=False)
        first = written.first_token_s
        return replace(
            written,
            num_prompt_tokens=len(prompt_ids),
            first_token_s=None if first is None else read_s + first,
        )


class Exporter(abc.ABC):
    """Writes and opens one format. What it needs is an extra, imported only when it is used."""

    extra: ClassVar[str]
    """The extra of this package that brings the libraries."""

    libraries: ClassVar[tuple[str, ...]]
    """Distributions; each brings the module of its name."""

    weights: ClassVar[tuple[str, ...]]
    """File names of the weights."""

    @abc.abstractmethod
    def architectures(self) -> frozenset[str]:
        """Return the transformers classes that can be written, by name; nothing heavy is loaded."""

    @abc.abstractmethod
    def write(self, format: ExportFormat, student: Path, folder: Path) -> None:
        """Write the student's folder in ``format`` into the empty ``folder``.

        Raises:
            StageError: The builder failed.
        """

    @abc.abstractmethod
    def open(self, format: ExportFormat, folder: Path, context_tokens: int) -> Runtime:
        """Return the runtime with the student in it. See `distillery.export.open_runtime`."""

    @abc.abstractmethod
    def kv_bytes(self, format: ExportFormat) -> int:
        """Return the bytes of one number in the KV cache."""

    def check_installed(self, format: ExportFormat) -> None:
        """Return when this process can write and open ``format``.

        Raises:
            RecipeError: A library is missing, or the machine cannot run it.
        """
        for distribution in self.libraries:
            if importlib.util.find_spec(distribution.replace("-", "_")) is None:
                raise RecipeError(
                    f"export.formats asks for {format.name!r}, which {distribution} writes or "
                    f"runs, and that is not installed. Run pip install 'distillery[{self.extra}]'."
                )

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:  # noqa: B027
        """Return when the runtime can read with ``tokenizer``; by default it reads all.

        Raises:
            RecipeError: It cannot.
        """

    def check_model(
        self,
        format: ExportFormat,
        architecture: str,
        head_size: int,
        layer_types: Sequence[str] = (),
    ) -> None:
        """Return when a student of this class can be written, and run.

        Args:
            format: In what.
            architecture: Name of the class that transformers opens for it.
            head_size: Size of an attention head.
            layer_types: Which attention each layer has, such as sliding_attention. Empty: all the
                same.

        Raises:
            RecipeError: It cannot.
        """
        if architecture not in self.architectures():
            raise RecipeError(
                f"export.formats asks for {format.name!r}, but its builder does not know "
                f"{architecture!r}, the student's architecture. Remove it from export.formats, or "
                "choose a student of another architecture, such as Llama, Gemma 3 or Qwen 3."
            )

    def versions(self) -> dict[str, str]:
        """Return the versions of its libraries."""
        return {name: importlib.metadata.version(name) for name in self.libraries}

    def weight_bytes(self, folder: Path) -> int:
        """Return the bytes of the files that hold the weights."""
        return sum(file.stat().st_size for name in self.weights for file in folder.glob(name))


def run_builder(module: str, *arguments: str | Path, name: str) -> None:
    """Run ``module`` of ours in a process of its own, which a builder's memory ends with.

    Raises:
        StageError: It failed, with its last words.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "HF_HUB_OFFLINE": "1",  # what is exported is here
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return
    if done.returncode < 0:
        raise StageError(
            f"writing {name!r} was killed by signal {-done.returncode}, often for want of memory: "
            "the builder holds the student in float32. Give the worker more, and rerun."
        )
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if "No space left on device" in done.stderr:
        raise StageError(
            f"writing {name!r} failed, as the disk of temporary files is full. Make room there, or "
            "name another folder in the environment variable TMPDIR, and rerun."
        )
    raise StageError(
        f"writing {name!r} failed: {(words or ['no message'])[-1].rstrip('.')[:_SHOWN]}. Remove it "
        "from export.formats, and rerun: the trained student is kept."
    )
