"""What the student wrote while it learnt, kept for whoever wants to look at it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES_FILE = "samples.parquet"
_SCHEMA = pa.schema(
    {
        "step": pa.int32(),
        "prompt_id": pa.string(),
        "response": pa.string(),
        "num_tokens": pa.int32(),
        "finish_reason": pa.string(),
        "mean_divergence": pa.float32(),
    }
)
_ASKED = b"tokens_asked"


class Samples:
    """The samples of all steps so far, and how many tokens a served teacher has read.

    Each process has its own until they are saved; then the first has all.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._rows: list[dict[str, Any]] = []
        self.tokens_asked = 0

    def forget_from(self, step: int) -> None:
        """Drop what was written from ``step`` on: in a trial, or before a training was killed."""
        while self._rows and self._rows[-1]["step"] >= step:
            self._rows.pop()

    def add(
        self,
        step: int,
        prompt_id: str,
        response: str,
        num_tokens: int,
        finish_reason: str,
    ) -> int:
        """Note a sample; return its number, by which :meth:`note_divergence` knows it.

        Args:
            step: Optimizer step, from 0.
            prompt_id: Of its row.
            response: Its text.
            num_tokens: Its tokens, the end included.
            finish_reason: stop, or length where it was cut.
        """
        row = {"step": step, "prompt_id": prompt_id, "response": response}
        self._rows.append(
            row
            | {"num_tokens": num_tokens, "finish_reason": finish_reason, "mean_divergence": None}
        )
        return len(self._rows) - 1

    def note_divergence(self, numbers: Sequence[int], means: Sequence[float]) -> None:
        """Note mean divergences from the teacher, nats per token; a number below 0 is no sample."""
        for number, mean in zip(numbers, means, strict=True):
            if number >= 0:
                self._rows[number]["mean_divergence"] = mean

    @property
    def facts(self) -> dict[str, int]:
        """Return counts for the manifest."""
        num_tokens = sum(row["num_tokens"] for row in self._rows)
        counts = {"samples": len(self._rows), "sampled_tokens": num_tokens}
        return counts | ({"teacher_tokens_asked": self.tokens_asked} if self.tokens_asked else {})

    def gather(self) -> bool:
        """Let the first process have the samples of all; return whether this is the first."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return True
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (self._rows, self.tokens_asked))
        is_first = dist.get_rank() == 0
        gathered = [row for rows, _ in found for row in rows] if is_first else []
        self._rows = sorted(gathered, key=lambda row: int(row["step"]))
        self.tokens_asked = sum(asked for _, asked in found) if is_first else 0
        return is_first

    def write(self, folder: Path) -> None:
        """Write all into ``folder``, ordered by step and row."""
        rows = sorted(self._rows, key=lambda row: (row["step"], row["prompt_id"]))
        table = pa.Table.from_pylist(rows, _SCHEMA)
        table = table.replace_schema_metadata({_ASKED: str(self.tokens_asked)})
        pq.write_table(table, folder / SAMPLES_FILE, compression="zstd")

    def read(self, folder: Path) -> None:
        """Take over, in the first process, what :meth:`write` wrote."""
        import torch.distributed as dist

        self._rows = []
        if not dist.is_initialized() or dist.get_rank() == 0:
            table = pq.read_table(folder / SAMPLES_FILE)
            self._rows = table.to_pylist()
            self.tokens_asked += int(table.schema.metadata[_ASKED])
