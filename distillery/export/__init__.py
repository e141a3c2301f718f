"""One file per format in which a student leaves for the place where it is served.

A format is its kind in `schemas/export.py`, a file here, and one line of `FORMATS`.
"""

from pathlib import Path

from distillery.export.base import Exporter, Runtime
from distillery.export.gguf import Gguf
from distillery.export.onnx import Onnx
from schemas.export import ExportFormat

FORMATS: dict[str, Exporter] = {"onnx": Onnx(), "gguf": Gguf()}
"""By kind."""


def open_runtime(format: ExportFormat, folder: Path, *, context_tokens: int) -> Runtime:
    """Return an exported student, opened by the runtime that will serve it.

    Args:
        format: What is in the folder.
        folder: As the stage left it.
        context_tokens: Longest sequence to make room for at once; a longer one is answered too.

    Raises:
        RecipeError: Its extra is not installed, or it needs a GPU and there is none.
        StageError: The runtime cannot open the files.
    """
    return FORMATS[format.kind].open(format, folder, context_tokens)
