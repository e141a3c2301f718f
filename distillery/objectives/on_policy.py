"""The student writes and the teacher scores what it wrote (GKD, arXiv:2306.13649)."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.models.chat_format import TokenizedRow
from distillery.models.hardware import free_memory
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Loss, Objective, Row
from distillery.objectives.policy.batches import tokens_of
from distillery.objectives.policy.samples import Samples
from distillery.objectives.soft_targets import SoftTargetObjective
from distillery.storage.fingerprint import sha256
from schemas.objectives import OnPolicy, SoftTargets
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.models.local import LocalModel
    from distillery.models.output_layer import SplitModel
    from distillery.objectives.policy.served import ServedTargets

# Logits of a token, in float32, and what sampling makes of them.
_LOGIT_BYTES = 3 * 4


class OnPolicyObjective(Objective):
    """A divergence from the teacher's probabilities, at tokens that the student itself wrote.

    In every step a share of the rows gets a new response, drawn from the student as it is then; no
    gradient goes through the drawing. The others keep the teacher's, and so do validation rows,
    whose loss can be compared over steps.
    """

    parts: ClassVar[dict[str, str]] = {"soft_loss": "labels", "student_share": "labels"}

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        super().__init__(inputs)
        assert isinstance(inputs.training.objective, OnPolicy)
        self._spec = inputs.training.objective
        self._soft = _as_soft_targets(self._spec, is_served=inputs.teacher is None)
        self._samples = Samples()
        self._numbers: dict[str, int] = {}
        soft = inputs.training.model_copy(update={"objective": self._soft})
        inputs = inputs._replace(training=soft)
        self._served = _served_targets(inputs, self._samples) if inputs.teacher is None else None
        targets = self._served or SoftTargetObjective.open(inputs)
        assert isinstance(targets, SoftTargetObjective)
        self._targets = targets

    @classmethod
    def needs_teacher(cls, spec: OnPolicy) -> bool:
        """Return that it takes part in every step."""
        return True

    @classmethod
    def follows_hard_targets(cls, spec: OnPolicy) -> bool:
        """Return that what the student writes has to be worth scoring."""
        return True

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why the student cannot write, or the teacher not score it token by token.

        Raises:
            RecipeError: k is more than there are tokens.
            TeacherError: The served teacher cannot be reached.
        """
        spec = training.objective
        assert isinstance(spec, OnPolicy)
        if spec.max_new_tokens >= training.max_length:
            return (
                f"training.objective.max_new_tokens={spec.max_new_tokens} leaves no room for a "
                f"prompt in training.max_length={training.max_length}. Raise training.max_length."
            )
        if training.parallelism == "fsdp2":
            return (
                "training.parallelism 'fsdp2' splits the student's weights between processes, "
                "which would have to be put together for every token that it writes. Set "
                "training.parallelism to ddp."
            )
        several = training.num_processes or 1
        if teacher.is_served and not teacher.is_hosted and several > 1:
            return (
                f"each of {several} training processes would serve the teacher for itself. Set "
                "training.num_processes to 1, or serve it elsewhere (teacher.kind: openai)."
            )
        soft = _as_soft_targets(spec, is_served=teacher.is_served)
        as_soft = training.model_copy(update={"objective": soft})
        return SoftTargetObjective.obstacle(as_soft, teacher, student)

    def attach(self, model: Any) -> None:
        """Take the student that is to write."""
        self._model = model

    # -- rows --------------------------------------------------------------------------------

    def features(self) -> dict[str, Any]:
        """Return the columns of the teacher, and how many tokens may be written."""
        from datasets import Value

        return self._targets.features() | {"room": Value("int32")}

    def columns(self, split: str) -> Columns:
        """Return what makes them; a row is as long as it may become."""
        theirs = self._targets.columns(split)

        def of_row(row: Row, tokens: TokenizedRow) -> Row:
            found, num_response = theirs(row, tokens), tokens.num_response_tokens
            # The row as it is fits both, so there is room for a token.
            length, teacher_length = len(tokens.input_ids), found["teacher_length"]
            prompt, teacher_prompt = length - num_response, teacher_length - num_response
            room = min(self._spec.max_new_tokens, self._inputs.training.max_length - prompt)
            if (context := self._teacher_context) is not None:
                room = min(room, context - teacher_prompt)
            return found | {
                "room": room,
                "length": max(length, prompt + room),
                "teacher_length": max(teacher_length, teacher_prompt + room),
            }

        return of_row

    @property
    def _teacher_context(self) -> int | None:
        """Return the most tokens that the teacher reads."""
        teacher: LocalModel | ServedTargets | None = self._inputs.teacher or self._served
        assert teacher is not None
        return teacher.context_length

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return the teacher's tokens, and numbers by which rows are known."""
        import torch

        self._tokens = tokens
        numbers = self._numbers
        names = [numbers.setdefault(row["prompt_id"], len(numbers)) for row in rows]
        return self._targets.collate(rows, tokens) | {
            "prompt": torch.tensor(names),
            "room": torch.tensor([int(row["room"]) for row in rows]),
        }

    def _names(self, batch: Batch) -> list[str]:
        """Return the `prompt_id` of each row of ``batch``."""
        names = list(self._numbers)
        return [names[number] for number in batch["prompt"].tolist()]

    # -- one step ----------------------------------------------------------------------------

    def rewrite(
        self, model: Any, student: "SplitModel", batches: list[Batch], step: int
    ) -> list[Batch]:
        """Return the micro-batches with responses of the student in some rows.

        Which rows and which tokens follows from seed, step, row and weights.
        """
        self._samples.forget_from(step)
        found = [self._rows(batch) for batch in batches]
        rows = [row for each in found for row in each]
        written = [row for row in rows if self._is_drawn(step, row["row"])]
        if written:
            with student.whole():
                responses = self._write(written, step)
            for row, response_ids in zip(written, responses, strict=True):
                row["tokens"] = row["tokens"].with_response(response_ids)
                row["teacher"] = row["teacher"].with_response(response_ids)
                row["sample"] = self._note(step, row["prompt_id"], response_ids)
        if self._served is not None:
            names, teachers = ([row[of] for row in rows] for of in ("prompt_id", "teacher"))
            for row, shown in zip(rows, self._served.ask(names, teachers), strict=True):
                row |= shown
        return [self._batch(each) for each in found]

    def _rows(self, batch: Batch) -> list[Row]:
        """Return the rows of a batch, each with its tokens and the teacher's view of them."""
        columns = {
            "row": batch["row"].tolist(),
            "room": batch["room"].tolist(),
            "prompt_id": self._names(batch),
            "tokens": tokens_of(batch),
            "teacher": tokens_of(batch, "teacher_"),
        }
        return [
            dict(zip(columns, values, strict=True)) | {"sample": -1}
            for values in zip(*columns.values(), strict=True)
        ]

    def _batch(self, rows: list[Row]) -> Batch:
        """Return ``rows`` as one batch again."""
        import torch

        for row in rows:
            for whose, tokens in (("", row["tokens"]), ("teacher_", row["teacher"])):
                row |= {f"{whose}{name}": ids for name, ids in tokens._asdict().items()}
        batch = self._tokens(rows, "") | self.collate(rows, self._tokens)
        for name in ("row", "sample"):
            batch[name] = torch.tensor([row[name] for row in rows])
        lengths = [len(row["tokens"].labels) - len(row["tokens"].prompt_ids) for row in rows]
        return batch | {"num_response_tokens": torch.tensor(lengths)}

    def _is_drawn(self, step: int, row: int) -> bool:
        """Return whether the student writes the response of ``row`` in ``step``."""
        draw = int(sha256([self._inputs.training.seed, step, row])[:13], 16) / 16**13
        return draw < self._spec.student_fraction

    def _note(self, step: int, prompt_id: str, response_ids: list[int]) -> int:
        chat_format = self._inputs.chat_format
        reason = "stop" if response_ids[-1] in chat_format.end_ids else "length"
        text = chat_format.read(response_ids)
        return self._samples.add(step, prompt_id, text, len(response_ids), reason)

    def _write(self, rows: list[Row], step: int) -> list[list[int]]:
        """Return the responses that the student as it is writes in ``rows``."""
        prompts = [row["tokens"].prompt_ids for row in rows]
        limits = [row["room"] for row in rows]
        with self._writer() as writer:
            longest = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))
            return writer.sample(
                prompts,
                limits=limits,
                keys=[f"{self._inputs.training.seed}:{step}:{row['row']}" for row in rows],
                sampling_temperature=self._spec.sampling_temperature,
                vocab_size=self._inputs.vocab_size,
                batch_size=self._rows_at_once(writer, longest),
            )

    def _rows_at_once(self, writer: "LocalModel", num_tokens: int) -> int:
        """Return how many rows of ``num_tokens`` fit into half of the memory that is free.

        Between two steps neither activations nor gradients are there.
        """
        device = writer.model.device
        logits = _LOGIT_BYTES * writer.model.get_output_embeddings().weight.shape[0]
        sharing = self._inputs.training.num_processes or 1 if device.type == "cpu" else 1
        room = free_memory(device) // (2 * sharing)
        return int(max(1, room // (writer.kv_cache_bytes(num_tokens) + logits)))

    @contextlib.contextmanager
    def _writer(self) -> "Iterator[LocalModel]":
        """Yield the student, ready to write: without dropout, in the precision of its training."""
        import torch

        from distillery.models.local import LocalModel

        model, training = self._model, self._inputs.training
        # Of adapters, the model that they are in: theirs would write with settings of their own.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        was_training, config = model.training, base.generation_config
        model.eval()
        try:
            with torch.autocast(
                base.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16"
            ):
                yield LocalModel(base, self._inputs.chat_format)
        finally:
            base.generation_config = config
            model.train(was_training)

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the divergence at the response tokens, and how many of them the student wrote."""
        if self._served is not None and "topk_ids" not in batch:
            batch = batch | self._served.ask_once(self._names(batch), batch)
        losses = self._response_losses(
            model, student, batch, soft=self._soft, targets=self._targets.targets(batch)
        )
        by_student = losses.soft_nats.new_zeros(())
        if "sample" in batch:
            by_student += self._note_divergence(batch, losses.soft_nats_N)
        parts = {"soft_loss": losses.soft_nats, "student_share": by_student}
        return Loss({"labels": losses.loss}, parts)

    def _note_divergence(self, batch: Batch, soft_nats_N: "Tensor") -> int:
        """Note the mean of each sample; return how many tokens the samples have."""
        import torch

        numbers, lengths = batch["sample"].tolist(), batch["num_response_tokens"].tolist()
        means = torch.stack([nats.mean() for nats in soft_nats_N.split(lengths)]).tolist()
        self._samples.note_divergence(numbers, means)
        return sum(n for n, number in zip(lengths, numbers, strict=True) if number >= 0)

    # -- what is kept ------------------------------------------------------------------------

    def save_state(self, folder: Path) -> None:
        """Write the samples so far; of all processes, in the first."""
        if self._samples.gather():
            self._samples.write(folder)

    def load_state(self, folder: Path) -> None:
        """Read the samples of the steps before."""
        self._samples.read(folder)

    def keep(self, folder: Path) -> None:
        """Write the samples of the whole training."""
        folder.mkdir()
        self._samples.write(folder)

    def facts(self) -> dict[str, Any]:
        """Return how much was written, and how much a served teacher read."""
        return {"on_policy": self._samples.facts}


def _served_targets(inputs: Inputs, samples: Samples) -> "ServedTargets":
    """Return the teacher that is asked; the HTTP client is imported for it alone."""
    from distillery.objectives.policy.served import ServedTargets

    return ServedTargets(inputs, samples)


def _as_soft_targets(spec: OnPolicy, *, is_served: bool) -> SoftTargets:
    """Return the soft targets that compare a response in the same way, and nothing else."""
    shared = {"divergence", "jsd_beta", "skew_alpha", "distillation_temperature", "k"}
    source = "offline" if is_served else "online"
    settings = spec.model_dump(include=shared)
    return SoftTargets(**settings, source=source, soft_weight=1, hard_weight=0)
