"""The stage that writes a student in another format, and checks that it is still the student."""

import itertools
import time

from distillery.data.chat import Message, load_messages
from distillery.export import FORMATS, open_runtime
from distillery.export.base import ExportFacts
from distillery.export.check import check_reading, check_writing
from distillery.models.hardware import cpu_threads
from distillery.models.loading import head_size
from distillery.models.local import LocalModel
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportFormat
from schemas.refs import DatasetRef, ModelRef

_LOGIC_VERSION = 1
_NUM_PROMPTS = 200  # enough for odd characters, and done in a second
_CONTEXT_TOKENS = 512  # room at first: a runtime makes more when a prompt needs it
_UNLIMITED = 4096  # tokens, where the model names no limit


def export_stage(student: ModelRef, rows: DatasetRef, format: ExportFormat) -> Stage:
    """Return what identifies an exported student."""
    # Training again on a GPU may give other weights under one fingerprint.
    return Stage(
        StageName.EXPORT_STUDENT,
        _LOGIC_VERSION,
        inputs={"student": student.uri, "rows": rows.fingerprint},
        spec={"format": format},
    )


def export_student(
    student: ModelRef,
    rows: DatasetRef,
    format: ExportFormat,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `model`: the student in ``format``, with all that its runtime needs.

    Args:
        student: The trained model.
        rows: What it learnt from; its runtime has to read their prompts as the student does.
        format: What to write.
        store: Where all of it is.
        execution: How the run is carried out.

    Raises:
        RecipeError: What the format needs is not installed, or it cannot hold the student.
        StageError: The builder failed, or its files are another model. Nothing is sealed.
    """

    def work(attempt: Attempt) -> None:
        exporter = FORMATS[format.kind]
        exporter.check_installed(format)
        prompts = _prompts(rows, attempt.store)
        with (
            cpu_threads(execution),
            attempt.store.local_copy(student) as source,
            scratch_folder("export") as folder,
        ):
            model = LocalModel.load(source, dtype="float32", device="cpu")
            architecture = model.model.config.architectures[0]
            config = model.model.config
            layer_types = getattr(config, "layer_types", None) or ()
            exporter.check_model(format, architecture, head_size(config), layer_types)
            exporter.check_tokenizer(model.tokenizer, student.uri)
            start = time.perf_counter()
            exporter.write(format, source, folder)
            written = time.perf_counter()
            ExportFacts(
                context_length=model.context_length or _UNLIMITED,
                kv_cache_bytes=model.kv_cache_bytes(1) // 4 * exporter.kv_bytes(format),
            ).save(folder)
            runtime = open_runtime(format, folder, context_tokens=_CONTEXT_TOKENS)
            try:
                check_reading(runtime, model, prompts, format)
                attempt.facts["check"] = check_writing(runtime, model, prompts, format)
            finally:
                runtime.close()
            checked = time.perf_counter()
            attempt.timings_s |= {
                "write": round(written - start, 3),
                "check": round(checked - written, 3),
            }
            attempt.facts["versions"] = {**exporter.versions()}
            attempt.counts["weight_bytes"] = exporter.weight_bytes(folder)
            attempt.counts["bytes"] = sum(
                file.stat().st_size for file in folder.rglob("*") if file.is_file()
            )
            attempt.add_model("model", folder, num_parameters=student.num_parameters)

    return run_stage(export_stage(student, rows, format), store, execution, work)


def _prompts(rows: DatasetRef, store: Store) -> list[list[Message]]:
    """Return the first prompts that the student learnt from."""
    found = (
        load_messages(text)
        for batch in store.batches(rows)
        for text in batch.column("messages").to_pylist()
    )
    return list(itertools.islice(found, _NUM_PROMPTS))
