"""The stage that makes a student from a larger model, before it learns anything."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import ChatFormat
from distillery.models.hardware import cpu_threads, resolve_device
from distillery.models.loading import ModelFiles, read_template
from distillery.models.pruning import kept_layers, most_important, neuron_importance, prune
from distillery.storage.fingerprint import model_identity, sha256
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.errors import DistilleryError, TrainingError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import PrunedStudent
from schemas.units import count_text

_LOGIC_VERSION = 1

_CALIBRATION_TOKENS = 2048
"""Most tokens that are read of a row: importance is a mean over them, and memory stays bounded."""

OnRows = Callable[[int, int], None]
"""Called with the rows that were read for calibration, and how many there will be."""


def pruning_stage(rows: DatasetRef, student: PrunedStudent) -> Stage:
    """Return what identifies a pruned model; the rows count only where activations are measured.

    The chat template counts, with what is written into it, as it is saved with the model.
    """
    inputs: dict[str, Any] = {
        "model": model_identity(student.model, student.revision, role="student")
    }
    read = {"num_layers", "layers", "dtype", "chat_template_kwargs", "system_prompt"}
    spec = student.model_dump(include=read)
    if student.intermediate_size is not None:
        inputs["rows"] = rows.identity("train")
        spec |= student.model_dump(include={"intermediate_size", "calibration_rows"})
    if student.chat_template is not None:
        inputs["chat_template"] = sha256(read_template(student.chat_template))
    return Stage(StageName.PRUNE_STUDENT, _LOGIC_VERSION, inputs=inputs, spec=spec)


def prune_student(
    rows: DatasetRef,
    student: PrunedStudent,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    on_rows: OnRows | None = None,
) -> StageResult:
    """Return output `model`: the pruned model with its tokenizer and chat template.

    Which layers and how many neurons it has is in the manifest's facts.

    Args:
        rows: A TrainingFrame; activations are measured on the first of its training rows.
        student: Which model, and what is kept of it.
        store: Where everything is.
        execution: How the run is carried out.
        on_rows: Called as rows are read for calibration.

    Raises:
        RecipeError: The model cannot be loaded, or not be pruned so.
        TrainingError: None of the rows can be written in its chat format.
    """

    def work(attempt: Attempt) -> None:
        files = ModelFiles.of(student)
        chat_format, model = files.chat_format(), files.weights(student.dtype)
        text = model.config.get_text_config(decoder=True)
        layers = kept_layers(student, text.num_hidden_layers)
        before, neurons = _shape(model), None
        if student.intermediate_size is not None:
            tokens = _Calibration(rows, student, chat_format, attempt.store, on_rows)
            device = resolve_device("auto")
            importance_LF = neuron_importance(model, tokens, device=device)
            neurons = most_important(importance_LF, student.intermediate_size)
            attempt.counts["calibration_rows"] = tokens.num_rows
            attempt.counts["calibration_tokens"] = tokens.num_tokens
        pruned = prune(model, layers, neurons, name=student.model)
        pruned.generation_config = chat_format.generation_config(model.generation_config)
        after = _shape(pruned)
        attempt.counts |= {"layers": len(layers), "parameters": after["parameters"]}
        attempt.facts |= {"model": student.model, "kept_layers": list(layers)}
        attempt.facts |= {"before": before, "after": after}
        with scratch_folder("prune") as scratch:
            pruned.save_pretrained(scratch)
            chat_format.tokenizer.save_pretrained(scratch)
            attempt.add_model("model", scratch, num_parameters=after["parameters"])

    with cpu_threads(execution):
        return run_stage(pruning_stage(rows, student), store, execution, work)


def pruning_text(facts: Mapping[str, Any]) -> str:
    """Return what the stage's manifest says of a pruned model, in words.

    >>> sizes = {"layers": 18, "intermediate_size": 2048, "parameters": 268_098_176}
    >>> smaller = {"layers": 3, "intermediate_size": 2048, "parameters": 184_478_336}
    >>> facts = {"model": "gemma", "kept_layers": [0, 8, 17], "before": sizes, "after": smaller}
    >>> pruning_text(facts)
    'gemma pruned to 3 of its 18 layers (0, 8, 17): 184 M of 268 M parameters'
    """
    before, after, kept = facts["before"], facts["after"], []
    if after["layers"] < before["layers"]:
        numbers = ", ".join(map(str, facts["kept_layers"]))
        kept.append(f"{after['layers']} of its {before['layers']} layers ({numbers})")
    if after["intermediate_size"] != before["intermediate_size"]:
        kept.append(
            f"{after['intermediate_size']:,} of the {before['intermediate_size']:,} neurons of "
            "each feed-forward block"
        )
    sizes = f"{count_text(after['parameters'])} of {count_text(before['parameters'])} parameters"
    return f"{facts['model']} pruned to {' and '.join(kept) or 'all of its layers'}: {sizes}"


def _shape(model: Any) -> dict[str, Any]:
    """Return how large a model is, for the manifest."""
    text = model.config.get_text_config(decoder=True)
    return {
        "parameters": model.num_parameters(),
        "layers": text.num_hidden_layers,
        "intermediate_size": getattr(text, "intermediate_size", None),
    }


class _Calibration:
    """The training rows on which activations are measured, as tokens; counted while read."""

    def __init__(
        self,
        rows: DatasetRef,
        student: PrunedStudent,
        chat_format: ChatFormat,
        store: Store,
        on_rows: OnRows | None,
    ) -> None:
        self._rows, self._most, self._chat_format = rows, student.calibration_rows, chat_format
        self._store, self._on_rows = store, on_rows
        self.num_rows = self.num_tokens = 0

    def __iter__(self) -> Iterator[list[int]]:
        why = None
        for batch in self._store.batches(self._rows, splits=("train",)):
            for row in batch.to_pylist():
                if self.num_rows == self._most:
                    return
                try:
                    messages = load_messages(row["messages"])
                    ids = self._chat_format.row(messages, row["response"]).input_ids
                except DistilleryError as error:  # the training counts and reports these
                    why = error
                    continue
                ids = ids[:_CALIBRATION_TOKENS]
                self.num_rows, self.num_tokens = self.num_rows + 1, self.num_tokens + len(ids)
                yield ids
                if self._on_rows is not None:
                    self._on_rows(self.num_rows, min(self._most, self._rows.num_rows))
        if not self.num_rows:
            raise TrainingError(
                f"none of {self._rows.num_rows} rows can be written in the student's chat format, "
                f"so no activation can be measured. Of the last one: {why}"
            )
