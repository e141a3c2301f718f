"""ONNX: written by onnxruntime-genai's model builder, run by onnxruntime-genai."""

import functools
import gc
import importlib.util
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillery.export.base import Exporter, Generated, Runtime, run_builder
from distillery.models.chat_format import Conversation
from schemas.errors import RecipeError, StageError
from schemas.export import ExportFormat

_CONFIG = "genai_config.json"
_HEAD_SIZE = 16


class Onnx(Exporter):
    """ONNX for onnxruntime-genai."""

    extra = "onnx"
    libraries = ("onnxruntime-genai", "onnx-ir", "onnx")
    weights = ("*.onnx", "*.onnx.data")

    def check_installed(self, format: ExportFormat) -> None:
        """Return when this process can write and open ``format``; fp16 runs on a GPU only."""
        super().check_installed(format)
        if format.precision != "fp16":
            return
        import onnxruntime_genai

        if not onnxruntime_genai.is_cuda_available():
            raise RecipeError(
                f"export.formats asks for {format.name!r}, and the onnxruntime-genai that is "
                "installed here has no CUDA: its kernels for CPUs know fp32 and int4 only. Choose "
                "one of these, or install onnxruntime-genai-cuda on a machine with a GPU."
            )

    def check_model(
        self,
        format: ExportFormat,
        architecture: str,
        head_size: int,
        layer_types: Sequence[str] = (),
    ) -> None:
        """Return when onnxruntime knows the architecture and has an attention for its heads."""
        super().check_model(format, architecture, head_size, layer_types)
        if head_size % _HEAD_SIZE:
            raise RecipeError(
                f"export.formats asks for {format.name!r}, but onnxruntime's attention takes heads "
                f"of a multiple of {_HEAD_SIZE} numbers and the student's have {head_size}. Choose "
                "another student.num_heads, or remove it from export.formats."
            )

    @functools.cache  # noqa: B019
    def architectures(self) -> frozenset[str]:
        """Return the names that the builder's source compares the architecture with."""
        source = (_builder_folder() / "builder.py").read_text(encoding="utf-8")
        return frozenset(re.findall(r'architectures\[0\] == "(\w+)"', source))

    def write(self, format: ExportFormat, student: Path, folder: Path) -> None:
        """Write the student, and make greedy decoding its default, as it was measured."""
        run_builder(__name__, student, folder, format.precision, name=format.name)
        shutil.copy(student / "generation_config.json", folder)
        path = folder / _CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["search"] |= {"do_sample": False}
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")

    def open(self, format: ExportFormat, folder: Path, context_tokens: int) -> Runtime:
        """Return the student in onnxruntime-genai; room is made for each answer by itself."""
        self.check_installed(format)
        return _OnnxRuntime(folder, format.name)

    def kv_bytes(self, format: ExportFormat) -> int:
        """Return 2 on GPUs, 4 on CPUs: there the cache is float32 whatever the weights are."""
        return 2 if format.precision == "fp16" else 4


class _OnnxRuntime(Runtime):
    """A student in onnxruntime-genai.

    It answers in batches too, but pads on the left and lets rows attend to the padding, so that an
    answer would depend on its neighbours.
    """

    def __init__(self, folder: Path, name: str) -> None:
        import onnxruntime_genai
        import torch

        super().__init__(folder)
        self._name = name
        onnxruntime_genai.disable_telemetry_events()
        self._library = onnxruntime_genai
        threads = {"intra_op_num_threads": torch.get_num_threads()}
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
            self._model = onnxruntime_genai.Model(config)
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        except RuntimeError as error:
            raise self._refused("open", error) from error
        decoder = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["model"]["decoder"]
        # Layers with a sliding window refuse a cache that is shorter than the window.
        self._least_context = decoder.get("sliding_window", {}).get("window_size", 0)

    def prompt_ids(self, messages: Conversation) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            json.dumps(list(messages)), add_generation_prompt=True
        )
        return [int(token) for token in self._tokenizer.encode(text)]

    def generate(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Generated:
        parameters = self._library.GeneratorParams(self._model)
        needed = len(prompt_ids) + max_new_tokens
        parameters.set_search_options(
            max_length=min(max(needed, self._least_context), self.facts.context_length),
            do_sample=False,
            batch_size=1,
        )
        start, first_s = time.perf_counter(), None
        try:
            generator = self._library.Generator(self._model, parameters)
            generator.append_tokens(list(prompt_ids))
            for _ in range(max_new_tokens):
                generator.generate_next_token()
                first_s = first_s or time.perf_counter() - start
                if generator.is_done():
                    break
        except RuntimeError as error:
            raise self._refused("answer with", error) from error
        ids = [int(token) for token in generator.get_sequence(0)][len(prompt_ids) :]
        return Generated(ids, len(ids) < max_new_tokens, first_s)

    def _refused(self, verb: str, error: RuntimeError) -> StageError:
        why = str(error).strip().rstrip(".")
        return StageError(
            f"onnxruntime-genai cannot {verb} {self._name!r}: {why}. Remove it from "
            "export.formats, and rerun: the trained student is kept."
        )

    def close(self) -> None:
        del self._model, self._tokenizer
        gc.collect()


def _builder_folder() -> Path:
    found = importlib.util.find_spec("onnxruntime_genai")
    assert found is not None and found.origin is not None, "check_installed comes first"
    return Path(found.origin).parent / "models"


def _read_by_builder(config: Any) -> None:
    """Give a configuration the form that the builder reads.

    It reads one rotary embedding; transformers 5 keeps one per type of layer where they differ
    (Gemma 3), which the builder knows by the names that transformers 4 had for it.
    """
    by_layer = getattr(config, "rope_parameters", None) or {}
    if "full_attention" not in by_layer:
        return
    config.rope_theta = by_layer["full_attention"]["rope_theta"]
    config.rope_local_base_freq = by_layer["sliding_attention"]["rope_theta"]
    config.rope_parameters = dict(by_layer["full_attention"])


def _build(student: str, folder: str, precision: str) -> None:
    # The builder's modules import each other by their bare names.
    sys.path.insert(0, str(_builder_folder()))
    import builder  # type: ignore[import-not-found]

    provider = "cuda" if precision == "fp16" else "cpu"
    where = (student, student, folder, precision, provider, folder)
    options = builder.parse_extra_options(*where, [])
    _read_by_builder(options["hf_details"]["hf_config"])
    builder.create_model(*where, **options)


if __name__ == "__main__":
    _build(*sys.argv[1:])
