"""Formats in which a student leaves for the place where it is served."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Branch, Spec


class _Format(Branch):
    """A file format of a deployable student, with the precision of its weights."""


class OnnxFormat(_Format):
    """ONNX for onnxruntime-genai, as its model builder writes it."""

    kind: Literal["onnx"] = "onnx"
    """ONNX."""

    precision: Literal["fp32", "fp16", "int4"] = "int4"
    """Precision of the weights. fp16 runs on GPUs only."""

    @property
    def name(self) -> str:
        """Return what tables call it.

        >>> OnnxFormat().name
        'onnx int4'
        """
        return f"{self.kind} {self.precision}"


class GgufFormat(_Format):
    """GGUF for llama.cpp and Ollama."""

    kind: Literal["gguf"] = "gguf"
    """GGUF."""

    precision: Literal["f32", "f16", "q8_0"] = "q8_0"
    """Type of the weights, by llama.cpp's name."""

    @property
    def name(self) -> str:
        """Return what tables call it.

        >>> GgufFormat().name
        'gguf q8_0'
        """
        return f"{self.kind} {self.precision}"


ExportFormat = Annotated[OnnxFormat | GgufFormat, Field(discriminator="kind")]


class ExportSpec(Spec):
    """Files that are made of the student. Each takes part in the comparison and meets the gate."""

    formats: tuple[ExportFormat, ...] = ()
    """What to make. Empty: the student is deployed as it was saved."""
