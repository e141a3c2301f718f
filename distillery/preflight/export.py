"""Before anything is spent: whether the student that will be can be written in its formats."""

from collections import Counter
from collections.abc import Sequence

from schemas.errors import DistilleryError
from schemas.execution import ExecutionSpec
from schemas.export import ExportSpec
from schemas.student import FromScratchStudent, PrunedStudent, StudentSpec


def unwritable_formats(
    export: ExportSpec, student: StudentSpec, execution: ExecutionSpec
) -> list[str]:
    """Return a line for each format that could not be written or opened.

    What is installed is looked up only where stages run in this process: a worker may have other
    libraries. Of the student only its configuration and tokenizer are read.
    """
    counts = Counter(format.name for format in export.formats)
    problems = [
        f"export.formats names {name!r} {number} times, but a table has one row of that name. "
        "Name it once."
        for name, number in counts.items()
        if number > 1
    ]
    if execution.mode != "inline":
        return problems
    from distillery.export import FORMATS
    from distillery.models.loading import ModelFiles

    for format in dict.fromkeys(export.formats):
        exporter = FORMATS[format.kind]
        try:
            exporter.check_installed(format)
            exporter.check_model(format, *_architecture(student))
            if not isinstance(student, FromScratchStudent) or student.tokenizer is not None:
                files = ModelFiles.of(student)
                exporter.check_tokenizer(files.chat_format().tokenizer, files.model)
        except DistilleryError as error:
            problems.append(str(error))
    return problems


def _architecture(student: StudentSpec) -> tuple[str, int, Sequence[str]]:
    """Return the student's class, the size of its heads, and which attention each layer has."""
    from distillery.models.loading import ModelFiles, head_size
    from distillery.models.pruning import kept_layers

    if isinstance(student, FromScratchStudent):
        return "LlamaForCausalLM", student.hidden_size // student.num_heads, ()
    files = ModelFiles.of(student)
    config = files.config()
    layer_types = getattr(config, "layer_types", None) or ()
    if layer_types and isinstance(student, PrunedStudent):
        layer_types = [layer_types[n] for n in kept_layers(student, len(layer_types))]
    return files.architecture(), head_size(config), layer_types
