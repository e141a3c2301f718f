"""Fine-tune a model on hard targets: full or LoRA, early stopping, resumable."""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distillery.chat import load_messages
from distillery.checkpoints import download_checkpoints, upload_checkpoint
from distillery.fingerprint import model_identity, sha256, tokenizer_identity
from distillery.models import IGNORED, cpu_threads, open_student, quiet_transformers, tokenize_row
from distillery.stage import Attempt, Stage, StageResult, run_stage
from distillery.store import Store
from schemas.errors import StoreError, TrainingError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec
from schemas.training import LoraMethod, TrainingSpec

logger = logging.getLogger(__name__)

_LOGIC_VERSION = 1

OnProgress = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the number of steps, and the newest figures (loss, eval_loss, ...)."""


def training_stage(
    name: StageName,
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
) -> Stage:
    """Return what identifies the training of ``student`` on ``rows``.

    The prompts count only when a tokenizer is trained on them.
    """
    inputs = {"rows": rows.fingerprint}
    spec: dict[str, Any] = {"training": training, "student": student}
    if isinstance(student, PretrainedStudent):
        inputs["student"] = model_identity(student.model, student.revision, role="student")
        spec["student"] = {"dtype": student.dtype}
    elif student.tokenizer is not None:
        inputs["tokenizer"] = tokenizer_identity(student.tokenizer)
        spec["student"] = student.model_copy(update={"tokenizer": None})
    else:
        inputs["prompts"] = prompts.fingerprint
    return Stage(name, _LOGIC_VERSION, inputs=inputs, spec=spec)


def train_student(
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    name: StageName = StageName.TRAIN_STUDENT,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return `model`: ``student`` fine-tuned on the responses of ``rows``.

    Checkpoints go to the store as they are made; an attempt that finds some goes on from the
    newest. The curve and the best step are in the manifest's facts.

    Args:
        rows: A TrainingFrame; its validation rows decide early stopping.
        prompts: A PromptFrame; a new tokenizer is trained on its training and gold prompts.
        student: What is trained.
        training: How.
        store: Where everything is.
        execution: How the run is carried out.
        name: Under which stage name the result is kept.
        on_progress: Told about every logged step.

    Raises:
        TrainingError: There is no such device, no row fits, or the loss is not finite.
    """
    stage = training_stage(name, rows, prompts, student, training)

    def work(attempt: Attempt) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="distillery-train-") as scratch,
            cpu_threads(execution),
        ):
            _train(attempt, rows, prompts, student, training, Path(scratch), on_progress)

    result = run_stage(stage, store, execution, work)
    if not result.reused:
        try:
            Store(store.root).delete(f"{stage.name}/{stage.fingerprint}/checkpoints")
        except StoreError as error:
            logger.warning("checkpoints stay in the store: %s", error)
    return result


def _train(
    attempt: Attempt,
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    scratch: Path,
    on_progress: OnProgress | None,
) -> None:
    import torch
    from transformers import set_seed

    quiet_transformers()
    _check_device(training)
    set_seed(training.seed)
    corpus = _corpus(attempt.store, rows, prompts)
    # Float32 master weights in any case: AdamW's updates vanish in bfloat16.
    model, tokenizer = open_student(student, corpus, dtype=torch.float32)
    if isinstance(student, FromScratchStudent) and student.max_length < training.max_length:
        training = training.model_copy(update={"max_length": student.max_length})
    model = _with_method(model, training)
    with attempt.timed("tokenize"):
        datasets = _tokenize(attempt, rows, tokenizer, training, scratch)
    num_parameters = sum(p.numel() for p in model.parameters())
    with attempt.timed("train"):
        trainer = _run_trainer(attempt, model, tokenizer, datasets, training, scratch, on_progress)
    model = trainer.model
    if isinstance(training.method, LoraMethod):
        model = model.merge_and_unload()
        num_parameters = sum(p.numel() for p in model.parameters())
    folder = scratch / "model"
    model.to(getattr(torch, student.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    attempt.add_model("model", folder, num_parameters=num_parameters)


def _check_device(training: TrainingSpec) -> None:
    import torch

    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device is 'cuda' but this machine has no usable GPU. Set training.device to "
            "'auto', or run the stage on a gpu-pool worker (execution.mode=deployment)."
        )


def _corpus(store: Store, rows: DatasetRef, prompts: DatasetRef) -> Iterator[str]:
    """Yield what a new tokenizer is trained on: training and gold prompts, and responses."""
    for batch in store.batches(prompts, splits=("train", "gold")):
        for messages in batch.column("messages").to_pylist():
            yield from (message["content"] for message in load_messages(messages))
    for batch in store.batches(rows, splits=("train",)):
        yield from batch.column("response").to_pylist()


def _with_method(model: Any, training: TrainingSpec) -> Any:
    """Return the model with adapters when the method is LoRA, else the model."""
    if not isinstance(training.method, LoraMethod):
        return model
    from peft import LoraConfig, get_peft_model

    method = training.method
    modules = method.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    return get_peft_model(model, config)


def _tokenize(
    attempt: Attempt, rows: DatasetRef, tokenizer: Any, training: TrainingSpec, scratch: Path
) -> dict[str, Any]:
    """Return memory-mapped token data sets by split; rows that are too long are left out."""
    import datasets

    too_long: list[str] = []

    def tokenized(split: str) -> Iterator[dict[str, Any]]:
        for batch in attempt.store.batches(rows, splits=(split,)):
            for row in batch.to_pylist():
                tokens = tokenize_row(tokenizer, load_messages(row["messages"]), row["response"])
                if len(tokens.input_ids) > training.max_length:
                    too_long.append(row["prompt_id"])
                    continue
                yield {
                    "input_ids": tokens.input_ids,
                    "labels": tokens.labels,
                    "length": len(tokens.input_ids),
                    "response_length": tokens.num_response_tokens,
                }

    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "labels": datasets.List(datasets.Value("int32")),
            "length": datasets.Value("int32"),
            "response_length": datasets.Value("int32"),
        }
    )
    made: dict[str, Any] = {}
    for split in ("train", "validation"):
        with datasets.arrow_writer.ArrowWriter(
            path=str(scratch / f"{split}.arrow"), features=features
        ) as writer:
            for example in tokenized(split):
                writer.write(example)
            writer.finalize()
        made[split] = datasets.Dataset.from_file(str(scratch / f"{split}.arrow"))
        attempt.counts[f"{split}_rows"] = len(made[split])
    attempt.counts["left_out_too_long"] = len(too_long)
    if too_long:
        attempt.facts["left_out_first_ids"] = list(too_long[:20])
        logger.warning(
            "%d rows are longer than training.max_length=%d tokens and left out, first %s",
            len(too_long), training.max_length, too_long[0],
        )  # fmt: skip
    if not len(made["train"]):
        raise TrainingError(
            f"no training row is left: {len(too_long)} of {rows.num_rows} rows are longer than "
            f"training.max_length={training.max_length} tokens. Raise it."
        )
    return made


def num_steps(num_rows: int, training: TrainingSpec) -> int:
    """Return the most optimizer steps that training on ``num_rows`` rows takes.

    >>> num_steps(100, TrainingSpec(batch_size=16, epochs=3))
    21
    """
    steps_per_epoch = math.ceil(num_rows / training.batch_size)
    return max(1, training.min_steps, math.ceil(training.epochs * steps_per_epoch))


def _run_trainer(
    attempt: Attempt,
    model: Any,
    tokenizer: Any,
    datasets: dict[str, Any],
    training: TrainingSpec,
    scratch: Path,
    on_progress: OnProgress | None,
) -> Any:
    """Return the trainer after training, with the best weights loaded."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    folder = scratch / "checkpoints"
    validates = len(datasets["validation"]) > 0
    arguments = _arguments(datasets, training, folder)
    callbacks: list[Any] = [_progress(attempt, training, on_progress)]
    if validates and training.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=training.patience))
    trainer = _trainer_class(datasets["validation"])(
        model=model,
        args=arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"] if validates else None,
        data_collator=PadRight(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    newest = download_checkpoints(attempt.store, attempt.checkpoints_uri, folder)
    attempt.facts["resumed_from_step"] = int(newest.name.split("-")[1]) if newest else 0
    if newest:
        logger.info("training goes on from %s", newest.name)
    if newest and _was_over(newest):
        _restore_finished(trainer, newest)
    else:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    attempt.counts |= {"steps": trainer.state.global_step, "planned_steps": arguments.max_steps}
    attempt.facts["curve"] = [
        {k: float(entry[k]) for k in ("step", "loss", "eval_loss", "learning_rate") if k in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    attempt.facts["best_validation_loss"] = trainer.state.best_metric
    return trainer


def _arguments(datasets: dict[str, Any], training: TrainingSpec, folder: Path) -> Any:
    """Return the trainer's arguments; checkpoints are written below ``folder``."""
    from transformers import TrainingArguments

    steps = num_steps(len(datasets["train"]), training)
    micro = _micro_batch(training)
    every = max(1, steps // training.evaluations)
    validates = len(datasets["validation"]) > 0
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=training.batch_size // micro,
        learning_rate=training.learning_rate,
        # Transformers' own `constant` would leave the warm-up out.
        lr_scheduler_type=training.schedule.replace("constant", "constant_with_warmup"),
        warmup_steps=math.ceil(training.warmup_fraction * steps),
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        # So that patience counts over attempts.
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, steps // 50),
        # Otherwise a NaN is shown as the average of the losses before it.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=training.device == "cpu",
    )
    # One process is one device: DataParallel would multiply the batch size by the GPUs it finds.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _progress(attempt: Attempt, training: TrainingSpec, on_progress: OnProgress | None) -> Any:
    """Return the callback that uploads checkpoints, tells of progress, and stops on a NaN."""
    from transformers import TrainerCallback

    latest: dict[str, float] = {}

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Logs come before saves, so no figure that is not finite gets into a checkpoint unseen.
            control.should_log = control.should_log or control.should_save

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
                if key in (logs or {}):
                    latest[key] = float(logs[key])
            if not all(map(math.isfinite, latest.values())):
                raise TrainingError(
                    f"training figures at step {state.global_step} are not finite: {latest}. The "
                    "last good checkpoint stays in the store. Lower training.learning_rate "
                    f"(now {training.learning_rate})."
                )
            if on_progress:
                on_progress(state.global_step, state.max_steps, dict(latest))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            upload_checkpoint(attempt.store, attempt.checkpoints_uri, folder)

    return Progress()


def _trainer_class(validation: Any) -> Any:
    """Return a Trainer with a loss and an order of rows that do not depend on how it is run.

    Its loss on ``validation`` is the mean over response tokens, where transformers' own is the mean
    over batches, weighted by rows. Its order of rows follows from the seed and the epoch, where
    transformers' own is another one after a resume: some rows would be seen twice, others never.
    """
    import torch
    from transformers import Trainer
    from transformers.trainer_pt_utils import LengthGroupedSampler

    mean_tokens_per_row = sum(validation["response_length"]) / max(1, len(validation))

    class RowSampler(LengthGroupedSampler):  # type: ignore[misc]
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            self.generator.manual_seed(int(sha256([self.seed, self.epoch])[:15], 16))
            return iter(super().__iter__())

    class StudentTrainer(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            sampler = RowSampler(
                self.args.train_batch_size * self.args.gradient_accumulation_steps,
                lengths=list(self.train_dataset["length"]),
                generator=torch.Generator(),
            )
            sampler.seed = self.args.data_seed
            return sampler

        def prediction_step(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            loss, logits, labels = super().prediction_step(model, inputs, *args, **named)
            tokens_per_row = (inputs["labels"] != IGNORED).sum() / len(inputs["labels"])
            return loss * tokens_per_row / mean_tokens_per_row, logits, labels

    return StudentTrainer


def _was_over(checkpoint: Path) -> bool:
    """Return whether training had ended, by its steps or early, when ``checkpoint`` was made."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def _restore_finished(trainer: Any, newest: Path) -> None:
    """Load the weights and the record of a training that had ended; the trainer would go on."""
    from transformers import TrainerState

    trainer.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    trainer._load_from_checkpoint(trainer.state.best_model_checkpoint or str(newest))


def _micro_batch(training: TrainingSpec) -> int:
    """Return the largest divisor of the batch size that a forward pass may hold."""
    sizes = range(1, min(training.batch_size, training.micro_batch_size) + 1)
    return max(size for size in sizes if training.batch_size % size == 0)


class PadRight:
    """Collates tokenized rows into one batch, padded on the right."""

    def __init__(self, pad_token_id: int) -> None:
        """Pad input ids with ``pad_token_id``; labels are padded with IGNORED."""
        self._pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return input_ids, attention_mask and labels, each [rows, longest row]."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(name: str, value: int) -> Any:
            tensors = [torch.tensor(row[name], dtype=torch.long) for row in rows]
            return pad_sequence(tensors, batch_first=True, padding_value=value)

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        input_ids = padded("input_ids", self._pad_token_id)
        positions = torch.arange(input_ids.shape[1])
        return {
            "input_ids": input_ids,
            "attention_mask": (positions[None] < lengths[:, None]).long(),
            "labels": padded("labels", IGNORED),
        }
