"""An exported student as a contestant: answered by the runtime that will serve it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distillery.evaluation.protocol import Answered, Answering, Contestant, Conversation, Opened
from distillery.export import FORMATS, open_runtime
from distillery.models.loading import ModelFiles
from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from schemas.comparison import Size
from schemas.contestants import ExportedContestant
from schemas.evaluation import EvaluationSpec


@dataclass(frozen=True)
class Exported(Contestant):
    """Decodes greedily, one row after the other, as it will at the edge."""

    spec: ExportedContestant

    @classmethod
    def of(cls, spec: ExportedContestant, evaluation: EvaluationSpec) -> "Exported":
        """Return the contestant; nothing is opened yet."""
        inputs = {"attempt": spec.model.uri, "max_new_tokens": evaluation.max_new_tokens}
        return cls(spec.model.uri, spec.model.fingerprint, inputs, evaluation, spec)

    @contextlib.contextmanager
    def answering(self, attempt: Attempt) -> Iterator[Answering]:
        """Open it; rows are answered one after the other."""
        with self.opened(attempt.store) as opened:
            yield Answering(lambda rows: opened.answer([row.conversation for row in rows], 1))

    @contextlib.contextmanager
    def opened(self, store: Store) -> Iterator[Opened]:
        """Open it in its runtime."""
        evaluation, exporter = self.evaluation, FORMATS[self.spec.format.kind]
        with store.local_copy(self.spec.model) as folder:
            # The tokenizer is at hand for what a response says; reading is the runtime's.
            chat_format = ModelFiles(str(folder)).chat_format()
            runtime = open_runtime(
                self.spec.format, folder, context_tokens=evaluation.context_tokens
            )

            def answer(conversations: Sequence[Conversation], _batch_size: int) -> list[Answered]:
                return [
                    Answered(
                        response=chat_format.read(written.ids),
                        truncated=not written.stopped,
                        prompt_tokens=written.num_prompt_tokens,
                        new_tokens=len(written.ids) + written.stopped,
                        first_token_s=written.first_token_s,
                    )
                    for written in (
                        runtime.answer(messages, evaluation.max_new_tokens)
                        for messages in conversations
                    )
                ]

            weight_bytes = exporter.weight_bytes(folder)
            size = Size(
                num_parameters=self.spec.model.num_parameters,
                weight_bytes=weight_bytes,
                kv_cache_bytes=runtime.facts.kv_cache_bytes * evaluation.context_tokens,
                disk_bytes=weight_bytes,
            )
            try:
                yield Opened(answer, size=size, max_concurrency=1)
            finally:
                runtime.close()
