"""Before anything is spent: whether the student that will be can be written in its formats."""

from collections import Counter

from schemas.errors import DistilleryError
from schemas.execution import ExecutionSpec
from schemas.export import ExportSpec
from schemas.student import FromScratchStudent, StudentSpec


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
            if isinstance(student, FromScratchStudent):
                exporter.check_architecture(format, "LlamaForCausalLM")
            else:
                exporter.check_architecture(format, ModelFiles.of(student).architecture())
            if not isinstance(student, FromScratchStudent) or student.tokenizer is not None:
                files = ModelFiles.of(student)
                exporter.check_tokenizer(files.chat_format().tokenizer, files.model)
        except DistilleryError as error:
            problems.append(str(error))
    return problems
