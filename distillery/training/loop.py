"""One training, in every process that takes part in it: full or LoRA, resumable, early stopping."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState, TrainingArguments
from transformers import set_seed as set_seeds

from distillery.data.chat import load_messages
from distillery.models.chat_format import ChatFormat
from distillery.models.layers import attention_obstacle
from distillery.models.loading import quiet_transformers
from distillery.models.local import LocalModel
from distillery.models.output_layer import SplitModel
from distillery.models.students import open_student
from distillery.models.vocabulary import known_vocabulary
from distillery.objectives.base import Inputs
from distillery.objectives.choice import objective_class
from distillery.storage.checkpoints import download_checkpoints, upload_checkpoint
from distillery.storage.store import Store
from distillery.teacher.prompt import TeacherPrompt
from distillery.training.adapters import held_dtype, load_trained, with_adapters, write_merged
from distillery.training.batches import collator, num_steps
from distillery.training.callbacks import Reporting, loss_names
from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from distillery.training.preflight import check_memory, check_packing, longest_rows, run_trial
from distillery.training.rows import TokenRows, lengths
from distillery.training.trainer import StudentTrainer, training_arguments
from schemas.errors import TrainingError
from schemas.teacher import TeacherSpec

logger = logging.getLogger(__name__)


def train(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    """Return the outcome of ``job``; the model is in ``scratch / "model"``.

    Called in every process of a training; the first one writes the model, uploads checkpoints and
    reports progress.
    """
    return _Training(job, scratch, on_progress).run()


class _Training:
    """The state of one training in one process."""

    def __init__(self, job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> None:
        quiet_transformers()
        self._training, self._job = job.training, job
        self._scratch, self._on_progress = scratch, on_progress
        self._store = Store(job.store.root)
        self._timings_s: dict[str, float] = {}
        self._facts: dict[str, Any] = {}

    def run(self) -> TrainingOutcome:
        """Return the outcome once the model is written."""
        training = self._training
        arguments = training_arguments(training, self._scratch / "checkpoints")
        self._is_first = arguments.process_index == 0
        with self._timed("open"):
            model, chat_format = self._open_model(held_dtype(training))
            tokenizer = chat_format.tokenizer
            if chat_format.date is not None:
                self._facts["template_date"] = chat_format.date
            self._teacher = self._open_teacher(self._job.teacher)
            self._panel = self._open_panel()
        self._vocab_size = _shared_vocabulary(tokenizer, model, self._teachers)
        inputs = Inputs(
            training=self._training,  # its rows are no longer than the student's context
            store=self._store,
            chat_format=chat_format,
            vocab_size=self._vocab_size,
            scores=self._job.soft_targets,
            teacher=self._teacher,
            teacher_spec=self._job.teacher,
            student_spec=self._job.student,
            teacher_prompt=self._prompt_of(self._job.teacher),
            panel=self._panel,
        )
        self._objective = objective_class(training).open(inputs)
        self._attach(model)
        with self._timed("tokenize"), arguments.distributed_state.main_process_first():
            self._rows = TokenRows(self._job, chat_format, self._objective, self._scratch)
        self._collate = collator(training, tokenizer.pad_token_id, self._objective)
        with self._timed("preflight"):
            self._facts["preflight"] = self._check(model, arguments)
        if training.parallelism == "fsdp2" and arguments.world_size > 1:
            # Once split between processes, weights stay split.
            model, _ = self._open_model(held_dtype(training))
            self._attach(model)
        if self._rows.too_long:
            self._facts["left_out_first_ids"] = self._rows.too_long[:20]
        if self._rows.not_written:
            self._facts["not_written"] = dict(islice(self._rows.not_written.items(), 20))
        set_seeds(training.seed)
        with self._timed("train"):
            trainer = self._run_trainer(model, tokenizer)
        num_parameters = self._save(trainer, tokenizer)
        steps = {"steps": trainer.state.global_step, "planned_steps": trainer.args.max_steps}
        return TrainingOutcome(
            num_parameters=num_parameters,
            counts=self._rows.counts | steps,
            timings_s=self._timings_s,
            facts=self._facts | self._objective.facts(),
        )

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._timings_s[part] = round(time.perf_counter() - start, 3)

    def _attach(self, model: Any) -> None:
        """Give the objective the student; what it makes is the same in every process."""
        set_seeds(self._training.seed)
        self._objective.attach(model)

    def _open_model(self, dtype: torch.dtype) -> tuple[Any, ChatFormat]:
        """Return the student with adapters if wanted, and its chat format."""
        set_seeds(self._training.seed)
        with contextlib.ExitStack() as stack:
            start = self._job.start
            folder = None
            if start is not None:
                folder = stack.enter_context(self._store.local_copy(start))
            model, chat_format = open_student(
                self._job.student, self._corpus(), dtype=dtype, start=folder
            )
        self._set_attention(model)
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 0)
        if context and context < self._training.max_length:
            self._training = self._training.model_copy(update={"max_length": context})
            self._job = self._job.model_copy(update={"training": self._training})
        model = with_adapters(model, self._training)
        self._split_student = SplitModel(model)
        self._use_cache = model.config.use_cache
        return model, chat_format

    def _open_teacher(self, spec: TeacherSpec | None) -> LocalModel | None:
        """Return the teacher that runs beside the student, if one does; it waits on the CPU.

        A served one does not: the objective asks it.
        """
        if spec is None or spec.is_served:
            return None
        teacher = LocalModel.of(spec, device="cpu")
        teacher.model.requires_grad_(False)
        self._set_attention(teacher.model)
        return teacher

    def _open_panel(self) -> tuple[tuple[LocalModel, TeacherPrompt | None], ...]:
        """Return the other teachers that run beside the student, each with its prompt."""
        training = self._training
        panel = objective_class(training).panel(training.objective)
        found = []
        for spec in (each.teacher for each in panel):
            model = self._open_teacher(spec)
            assert model is not None  # choose_objective made sure
            found.append((model, self._prompt_of(spec)))
        return tuple(found)

    @property
    def _teachers(self) -> list[LocalModel]:
        """Return all that run beside the student."""
        return [each for each in (self._teacher, *(model for model, _ in self._panel)) if each]

    def _set_attention(self, model: Any) -> None:
        """Have ``model`` compute attention as the objective needs it.

        Raises:
            TrainingError: It cannot.
        """
        training = self._training
        wanted = objective_class(training).attention(training.objective)
        if wanted is not None and (obstacle := attention_obstacle(model, wanted)) is not None:
            raise TrainingError(obstacle)

    def _prompt_of(self, teacher: TeacherSpec | None) -> TeacherPrompt | None:
        """Return what stands around the rows that a teacher beside the student reads."""
        job = self._job
        if teacher is None or job.task is None:
            return None
        return TeacherPrompt(teacher, job.task, job.prompts, job.store)

    def _corpus(self) -> Iterator[str]:
        """Yield what a new tokenizer is trained on: training and gold prompts, what is learnt."""
        for batch in self._store.batches(self._job.prompts, splits=("train", "gold")):
            for messages in batch.column("messages").to_pylist():
                yield from (message["content"] for message in load_messages(messages))
        for batch in self._store.batches(self._job.rows, splits=("train",)):
            yield from batch.column("response").to_pylist()
            if self._reads_thoughts():
                yield from filter(None, batch.column("reasoning").to_pylist())

    def _reads_thoughts(self) -> bool:
        training = self._training
        reads = objective_class(training).reads_thoughts(training.objective)
        return training.learn_reasoning or reads

    def _check(self, model: Any, arguments: TrainingArguments) -> dict[str, Any]:
        """Return what was found before training; raise when it cannot work."""
        training, splits = self._training, self._rows.splits
        estimate = check_memory(
            model,
            splits,
            training,
            self._vocab_size,
            self._teachers,
            self._objective,
            arguments=arguments,
            holds_logits=self._split_student.holds_logits,
        )
        for teacher in self._teachers:
            teacher.model.to(arguments.device)  # now that it is known to fit
        if training.batching == "packed":
            for each in [model, *(teacher.model for teacher in self._teachers)]:
                check_packing(each, splits["train"])
        trial_rows = longest_rows(splits["train"], training.batch_size)
        arguments = training_arguments(training, self._scratch / "trial", steps=2, is_trial=True)
        trainer = self._make_trainer(model, arguments, {"train": trial_rows, "validation": []})
        return estimate | run_trial(trainer)

    def _make_trainer(
        self, model: Any, arguments: TrainingArguments, splits: dict[str, Any], **named: Any
    ) -> StudentTrainer:
        trainer = StudentTrainer(
            model,
            arguments,
            splits,
            self._collate,
            self._objective,
            self._split_student,
            self._training,
            **named,
        )
        trainer.remove_callback(PrinterCallback)
        wants_split = self._training.parallelism == "fsdp2" and arguments.world_size > 1
        assert trainer.is_fsdp_enabled == wants_split  # accelerate ignores what it cannot do
        return trainer

    def _run_trainer(self, model: Any, tokenizer: Any) -> StudentTrainer:
        """Return the trainer after training, with the best weights loaded."""
        rows, training = self._rows.splits, self._training
        folder = self._scratch / "checkpoints"
        steps = num_steps(len(rows["train"]), training)
        validates = len(rows["validation"]) > 0
        arguments = training_arguments(training, folder, steps=steps, validates=validates)
        trainer = self._make_trainer(model, arguments, rows, processing_class=tokenizer)
        reporting = Reporting(
            parts=tuple(self._objective.parts),
            tensorboard=folder / "tensorboard",
            upload=lambda made: upload_checkpoint(
                self._store, self._job.checkpoints_uri, made, parallelism=_layout(trainer)
            ),
            on_progress=self._on_progress,
            tokens_per_step=training.batch_size * sum(lengths(rows["train"])) / len(rows["train"]),
            wait_for_everyone=trainer.accelerator.wait_for_everyone,
        )
        trainer.add_callback(reporting)
        if validates and training.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=training.patience))
        newest = self._newest_checkpoint(trainer, folder)
        self._facts["resumed_from_step"] = int(newest.name.split("-")[1]) if newest else 0
        if newest and self._is_first:
            logger.info("training resumes from %s", newest.name)
        if newest and _was_over(newest):
            _restore_finished(trainer, newest)
            self._objective.load_state(newest)
        else:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        self._facts["curve"] = _curve(
            trainer.state.log_history, loss_names(tuple(self._objective.parts))
        )
        self._facts["best_validation_loss"] = trainer.state.best_metric
        return trainer

    def _newest_checkpoint(self, trainer: StudentTrainer, folder: Path) -> Path | None:
        """Return the newest checkpoint of the store, downloaded by the first process."""
        if self._is_first:
            download_checkpoints(
                self._store, self._job.checkpoints_uri, folder, parallelism=_layout(trainer)
            )
        trainer.accelerator.wait_for_everyone()
        steps = [int(made.name.split("-")[1]) for made in folder.glob("checkpoint-*")]
        return folder / f"checkpoint-{max(steps)}" if steps else None

    def _save(self, trainer: StudentTrainer, tokenizer: Any) -> int:
        """Write the model in the student's precision; return its number of parameters.

        The first process does, and others return 0.
        """
        num_parameters, folder = 0, self._scratch / "model"
        model = self._trained_model(trainer)
        if self._is_first:
            SplitModel.join(model)
            model.config.use_cache = self._use_cache  # the trainer has turned it off
            dtype = getattr(torch, self._job.student.dtype)
            num_parameters = write_merged(model, folder, dtype=dtype)
            tokenizer.save_pretrained(folder)
            self._objective.keep(self._scratch / "kept")
        trainer.accelerator.wait_for_everyone()
        return num_parameters

    def _trained_model(self, trainer: StudentTrainer) -> Any:
        """Return the student as it was trained, whole, for the first process."""
        accelerator = trainer.accelerator
        if not trainer.is_fsdp_enabled:
            return accelerator.unwrap_model(trainer.model)
        weights = accelerator.get_state_dict(trainer.model_wrapped)
        if not self._is_first:
            return None
        model, _ = self._open_model(held_dtype(self._training))
        load_trained(model, weights)
        return model


def _layout(trainer: StudentTrainer) -> str:
    """Return how optimizer states are laid out in checkpoints."""
    return "fsdp2" if trainer.is_fsdp_enabled else "ddp"


def _shared_vocabulary(tokenizer: Any, model: Any, teachers: Sequence[LocalModel]) -> int:
    """Return how many logits count: those of the tokenizer's own tokens, not of any padding."""
    models = [("student", model), *(("teacher", teacher.model) for teacher in teachers)]
    return min(
        known_vocabulary(tokenizer, each.get_output_embeddings().weight.shape[0], role=role)
        for role, each in models
    )


def _curve(history: list[dict[str, Any]], losses: tuple[str, ...]) -> list[dict[str, float]]:
    names = ("step", "learning_rate", *losses)
    return [
        {name: float(entry[name]) for name in names if name in entry}
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]


def _was_over(checkpoint: Path) -> bool:
    """Return whether training had ended, by its steps or early, when ``checkpoint`` was made."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def _restore_finished(trainer: StudentTrainer, newest: Path) -> None:
    """Load weights and record of a training that had ended; the trainer would continue it."""
    trainer.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    trainer._load_from_checkpoint(trainer.state.best_model_checkpoint or str(newest))
