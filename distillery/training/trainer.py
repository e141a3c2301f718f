"""transformers' Trainer with our loss, our order of rows and an exact validation loss."""

import copy
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer, TrainingArguments

from distillery.models.output_layer import SplitModel
from distillery.objectives.base import Batch, Loss, Objective
from distillery.training.batches import PadRight, RowOrder, micro_batch
from distillery.training.extra import Extra
from distillery.training.rows import lengths
from schemas.errors import TrainingError
from schemas.training import TrainingSpec

# Checkpoints hold whole tensors, so that a training resumes with any number of processes above 1.
# Gradients are split after each micro-batch: those that wait for the last one would be whole.
_FSDP2: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    },
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
}
# Accelerate's own would sum gradients over processes in bfloat16 too, where small ones vanish.
_SPLIT_BFLOAT16 = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
)


def training_arguments(
    training: TrainingSpec,
    folder: Path,
    *,
    steps: int = 1,
    validates: bool = False,
    is_trial: bool = False,
) -> TrainingArguments:
    """Return the trainer's arguments; checkpoints are written below ``folder``.

    Args:
        training: How the student is trained.
        folder: Scratch.
        steps: Optimizer steps.
        validates: Whether there are validation rows.
        is_trial: Nothing is learnt or kept.
    """
    every = math.ceil(steps / training.evaluations)
    keeps = not is_trial
    splits = training.parallelism == "fsdp2" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.0 if is_trial else training.learning_rate,
        # Transformers' own `constant` would leave the warm-up out.
        lr_scheduler_type=training.schedule.replace("constant", "constant_with_warmup"),
        warmup_steps=math.ceil(training.warmup_fraction * steps),
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if validates and keeps else "no",
        eval_steps=every,
        save_strategy="steps" if keeps else "no",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=validates and keeps,
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
        use_cpu=training.device == "cpu" or not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **(copy.deepcopy(_FSDP2) if splits else {}),  # transformers writes into it
    )
    if splits and arguments.bf16:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = _SPLIT_BFLOAT16
    if splits and arguments.use_cpu:
        # Accelerate 1.15 ignores the wish for FSDP on its MULTI_CPU, and on that alone, so tests
        # without a GPU need another name; the device stays the CPU.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_XPU
    # One process is one device: DataParallel would multiply the batch size by the GPUs it finds.
    arguments._n_gpu = min(1, arguments.n_gpu)
    rows = micro_batch(training, arguments.world_size)
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = rows
    arguments.gradient_accumulation_steps = training.batch_size // (rows * arguments.world_size)
    return arguments


class StudentTrainer(Trainer):  # type: ignore[misc]
    """Trains on sums over tokens, divided by their number in the whole step.

    So neither micro-batches nor processes change what is learnt. The loss that is logged is the one
    that is differentiated; the parts that an objective names are logged beside it.
    """

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        rows: dict[str, Any],
        collate: PadRight,
        objective: Objective,
        student: SplitModel,
        training: TrainingSpec,
        **named: Any,
    ) -> None:
        """Train ``model`` on the rows of `train`, and validate it on those of `validation`.

        Args:
            model: What is trained.
            arguments: Of transformers' Trainer.
            rows: By split.
            collate: Makes a batch of rows.
            objective: Computes the loss of a batch.
            student: The split student, before it is wrapped for several processes.
            training: Its batch size and seed decide the order of rows.
            named: Passed on to transformers' Trainer.
        """
        self._rows, self._training = rows, training
        self._objective, self._student = objective, student
        self._newest: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._counted = objective.counted
        self._extra: Extra | None = None
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"] if len(rows["validation"]) else None,
            data_collator=collate,
            **named,
        )
        self._sums = torch.zeros(len(self._counted) + len(objective.parts), device=self.args.device)
        # Ours divides by all response tokens of a step, whatever the model's own loss would do.
        self.model_accepts_loss_kwargs = True

    def train(self, *args: Any, **named: Any) -> Any:
        """Train as transformers does.

        PEFT copies the input of every adapter to float32, the precision of its weights; autocast,
        which is on with bfloat16, casts it back. Left out: the same bits, a tenth less time and
        activations (Gemma 3 270M on a CPU).
        """
        from peft.helpers import disable_input_dtype_casting

        with disable_input_dtype_casting(self.model, active=self.args.bf16):
            return super().train(*args, **named)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the student's optimizer; what the objective learns beside it steps when it does.

        Apart, as the student's states may be split between processes.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if (module := self._objective.extra()) is not None:
            self._extra = self._made_extra(module)
            optimizer.register_step_post_hook(self._extra.step)
        return optimizer

    def _made_extra(self, module: torch.nn.Module) -> Extra:
        """Return ``module`` on the device of the training, with an optimizer as the student's."""
        module.to(self.args.device)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, module)
        decayed = self.get_decay_parameter_names(module)
        groups = [
            {
                "params": [
                    w for name, w in module.named_parameters() if (name in decayed) == is_in
                ],
                "weight_decay": self.args.weight_decay if is_in else 0.0,
            }
            for is_in in (True, False)
        ]
        return Extra(module, kind(groups, **settings))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self._extra is not None and self.is_world_process_zero():
            self._extra.save(folder)
        self._objective.save_state(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            if self._extra is not None:
                self._extra.load(Path(checkpoint))
            self._objective.load_state(Path(checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        return RowOrder(
            lengths(self._rows["train"]),
            batch_size=self._training.batch_size,
            steps=self.args.max_steps,
            seed=self._training.seed,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Batch], Any]:
        """Return the micro-batches of a step, as the objective has them, and their token counts."""
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        batches = self._objective.rewrite(
            self.model_wrapped, self._student, batches, self.state.global_step
        )
        counts = torch.stack([self._count(batch) for batch in batches]).sum(0)
        return batches, self._summed(counts.to(device))

    def _count(self, batch: Batch) -> torch.Tensor:
        """Return how many tokens of each counted column are learnt."""
        return torch.stack([(batch[name] >= 0).sum() for name in self._counted])

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this batch's part of the step's loss: a mean per token of each counted column."""
        loss = self._objective.loss(model, self._student, inputs)
        normalisers = num_items_in_batch.clamp(min=1)
        total = sum(
            loss.sums[name] / normalisers[at]
            for at, name in enumerate(self._counted)
            if name in loss.sums
        )
        assert isinstance(total, torch.Tensor)
        self._newest.append((inputs["row"], total.detach()))
        self._note(self._sums, loss, inputs)
        # Gradients are averaged over processes, but the parts of one mean add up.
        return total * self.args.world_size

    def _note(self, sums: torch.Tensor, loss: Loss, inputs: Batch) -> None:
        """Add to ``sums`` the counted tokens of a batch, and the parts of its loss."""
        parts = [loss.parts[name].to(sums) for name in self._objective.parts]
        sums += torch.cat([self._count(inputs).to(sums), *(part[None] for part in parts)])

    def _clip_grad_norm(self, model: Any) -> Any:
        """Return the norm of the gradients, clipped; before the step, so that weights stay good."""
        if self._extra is None:
            norm = super()._clip_grad_norm(model)
        else:
            self._extra.average_gradients(self.args.world_size)
            together = [*model.parameters(), *self._extra.parameters]
            norm = self.accelerator.clip_grad_norm_(together, self.args.max_grad_norm)
        rows, losses = zip(*self._newest, strict=True)
        self._newest = []
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        figures = torch.stack([*losses, whole.detach().to(losses[0])])
        # All processes have to agree: one that continued would wait for the others for hours.
        if self._summed((~torch.isfinite(figures)).sum()):
            self._refuse_step(rows, losses, float(whole))
        return norm

    def _refuse_step(self, rows: Any, losses: Any, norm: float) -> None:
        """Raise, naming the rows of the step whose loss is not finite, of all processes."""
        bad = [
            number
            for numbers, loss in zip(rows, losses, strict=True)
            if not torch.isfinite(loss)
            for number in numbers.tolist()
        ]
        if self.args.world_size > 1:
            found: list[list[int]] = [[] for _ in range(self.args.world_size)]
            torch.distributed.all_gather_object(found, bad)
            bad = [number for part in found for number in part]
        numbers = set(bad or [number for part in rows for number in part.tolist()])
        of_split = self._rows["train"]
        named = zip(of_split["row"][:].tolist(), of_split["prompt_id"][:], strict=True)
        names = ", ".join(name for number, name in named if number in numbers)
        what = "the loss" if bad else f"the norm of the gradients ({norm})"
        if self.args.learning_rate == 0:
            raise TrainingError(
                f"{what} is not finite before anything is learnt, with rows {names:.400}. Look at "
                "those rows and at the weights of the student."
            )
        raise TrainingError(
            f"{what} of step {self.state.global_step + 1} is not finite, in the batch of rows "
            f"{names:.400}. The last good checkpoint stays in the store. Look at those rows, or "
            f"lower training.learning_rate (now {self._training.learning_rate})."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; beside the training loss stand its parts, per response token."""
        if "loss" in logs and self._objective.parts:
            logs |= self._parts(self._summed(self._sums))
            self._sums.zero_()
        super().log(logs, start_time)

    def _parts(self, sums: torch.Tensor) -> dict[str, float]:
        counts = dict(zip(self._counted, sums.tolist(), strict=False))
        parts = zip(self._objective.parts.items(), sums[len(self._counted) :].tolist(), strict=True)
        return {name: part / max(1.0, counts[counted]) for (name, counted), part in parts}

    def _summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        if self.args.world_size == 1:
            return tensor
        summed: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return summed

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the validation loss: the mean over the counted tokens of all rows.

        Transformers' own is a mean over batches, which depends on how rows fall into them.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.model_wrapped
        model.eval()
        num = len(self._counted)
        sums = torch.zeros(2 * num + len(self._objective.parts), dtype=torch.float64)
        sums = sums.to(self.args.device)
        with torch.no_grad():
            for batch, counts in self._validation_batches(rows):
                inputs = self._prepare_inputs(batch)
                loss = self._objective.loss(model, self._student, inputs)
                if counts:
                    for at, name in enumerate(self._counted):
                        sums[at] += loss.sums.get(name, torch.zeros(())).double()
                    self._note(sums[num:], loss, inputs)
        sums = self._summed(sums)
        means = sums[:num] / sums[num : 2 * num].clamp(min=1)
        metrics = {f"{metric_key_prefix}_loss": float(means.sum())}
        parts = self._parts(sums[num:])
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in parts.items()}
        self.log(metrics)
        control: Any = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def _validation_batches(self, rows: Any) -> Iterator[tuple[Batch, bool]]:
        """Yield this process's batches, and whether each counts.

        All processes get as many, as they meet in every forward pass; what is left over is a
        repetition that does not count.
        """
        size, world = self.args.per_device_eval_batch_size, self.args.world_size
        num_tokens = lengths(rows)
        order = sorted(range(len(rows)), key=lambda at: (-num_tokens[at], at))
        starts = list(range(0, len(rows), size))
        for turn in range(0, len(starts), world):
            mine = turn + self.args.process_index
            start = starts[min(mine, len(starts) - 1)]
            batch = [rows[at] for at in order[start : start + size]]
            yield self.data_collator(batch), mine < len(starts)
