"""GGUF: written by llama.cpp's converter (auto-round brings it), run by llama.cpp (xllamacpp)."""

import ast
import functools
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillery.export.base import Exporter, Generated, Runtime, run_builder
from distillery.models.chat_format import Conversation
from schemas.errors import RecipeError, StageError
from schemas.export import ExportFormat

_FILE = "model.gguf"
_READ_BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_TEMPLATE = "chat_template.jinja"
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
_LEAST_CONTEXT = 512
# Every how many layers llama.cpp has one with full attention, where the file does not say which.
_PERIODS = {
    "Gemma2ForCausalLM": 2,
    "Gemma3ForCausalLM": 6,
    "Gemma3ForConditionalGeneration": 6,
    "Cohere2ForCausalLM": 4,
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Gguf(Exporter):
    """GGUF for llama.cpp and what is built on it."""

    extra = "gguf"
    libraries = ("auto-round", "gguf", "xllamacpp")
    weights = (_FILE,)

    @functools.cache  # noqa: B019
    def architectures(self) -> frozenset[str]:
        """Return the names in the converter's own table, read from its source."""
        source = (_converter_folder() / "__init__.py").read_text(encoding="utf-8")
        tables = (
            node.value
            for node in ast.parse(source).body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP"
        )
        return frozenset(name for table in tables if table for name in ast.literal_eval(table))

    def check_model(
        self,
        format: ExportFormat,
        architecture: str,
        head_size: int,
        layer_types: Sequence[str] = (),
    ) -> None:
        """Return when llama.cpp knows the architecture, and which attention each layer has."""
        super().check_model(format, architecture, head_size, layer_types)
        period = _PERIODS.get(architecture)
        full = [n for n, each in enumerate(layer_types) if each == "full_attention"]
        if period is None or full == [*range(period - 1, len(layer_types), period)]:
            return
        raise RecipeError(
            f"export.formats asks for {format.name!r}, in which llama.cpp takes every layer of a "
            f"{architecture} for one with a sliding window but each {period}th, and of the "
            f"student's {len(layer_types)} layers those with full attention are {full}, numbered "
            "from 0, so it would compute another model. Keep layers in student.layers that follow "
            "this order, or export onnx."
        )

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Return when llama.cpp splits text as ``tokenizer`` does."""
        _pre_tokenizer(tokenizer, name)

    def write(self, format: ExportFormat, student: Path, folder: Path) -> None:
        """Write one file; the tokenizer's own files stay beside it, to read responses with."""
        run_builder(__name__, student, folder / _FILE, format.precision, name=format.name)
        for name in (*_READ_BESIDE, _TEMPLATE):
            shutil.copy(student / name, folder)

    def open(self, format: ExportFormat, folder: Path, context_tokens: int) -> Runtime:
        """Return the student in llama.cpp's server, which only this machine can reach."""
        self.check_installed(format)
        return _LlamaCpp(folder, format.name, context_tokens)

    def kv_bytes(self, format: ExportFormat) -> int:
        """Return 2: llama.cpp keeps the cache in float16 whatever the weights are."""
        return 2


class _LlamaCpp(Runtime):
    """A student in llama.cpp's server, in this process.

    The server renders, tokenizes and generates as `llama-server` does, for which it is asked three
    times, which takes 2 ms. It keeps no prompts, so that an answer does not depend on what was
    asked before.
    """

    def __init__(self, folder: Path, name: str, context_tokens: int) -> None:
        super().__init__(folder)
        self._path, self._name = folder / _FILE, name
        self._context, self._server = 0, None
        self._make_room(max(context_tokens, _LEAST_CONTEXT))

    def prompt_ids(self, messages: Conversation) -> list[int]:
        text = self._post("/apply-template", messages=list(messages))["prompt"]
        tokenized = self._post("/tokenize", content=text, add_special=True, parse_special=True)
        return [int(token) for token in tokenized["tokens"]]

    def generate(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Generated:
        self._make_room(len(prompt_ids) + max_new_tokens)
        written = self._post(
            "/completion",
            prompt=list(prompt_ids),
            n_predict=max_new_tokens,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
        )
        stopped = written["stop_type"] == "eos"
        # Its first token is there when the prompt has been read.
        first_s = written["timings"]["prompt_ms"] / 1000
        return Generated(written["tokens"][: -1 if stopped else None], stopped, first_s)

    def close(self) -> None:
        self._server = None

    def _make_room(self, num_tokens: int) -> None:
        """Start the server, or start it again with a longer context."""
        if num_tokens <= self._context:
            return
        import torch
        import xllamacpp

        self._context = min(max(num_tokens, 2 * self._context), self.facts.context_length)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self._path)
        parameters.hostnames, parameters.port = ["127.0.0.1"], 0  # 0: one that is free
        parameters.offline = True
        parameters.ui = parameters.warmup = parameters.fit_params = False
        parameters.verbosity = -1
        parameters.n_ctx, parameters.n_parallel = self._context, 1
        threads = torch.get_num_threads()
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        self._server = None  # the memory of the last one first
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise StageError(
                f"llama.cpp cannot open {self._name!r}: {str(error).rstrip('.')}. Remove it from "
                "export.formats, and rerun: the trained student is kept."
            ) from error

    def _post(self, path: str, **body: Any) -> Any:
        assert self._server is not None, "closed"
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with _no_proxy().open(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise StageError(
                f"llama.cpp cannot answer with {self._name!r}: {said:.300}. Remove it from "
                "export.formats, and rerun: the trained student is kept."
            ) from error


@functools.cache
def _no_proxy() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _converter_folder() -> Path:
    found = importlib.util.find_spec("auto_round")
    assert found is not None and found.origin is not None, "check_installed comes first"
    return Path(found.origin).parent / "export" / "export_to_gguf" / "conversion"


def _pre_tokenizer(tokenizer: Any, name: str) -> str | None:
    """Return llama.cpp's name of how a byte-level BPE splits text; None for a SentencePiece one.

    The converter knows tokenizers by a hash of what they make of one text, which has all ids in
    it, so it knows none that was trained here. Those split text as GPT-2 does.

    Raises:
        RecipeError: llama.cpp has no way to split text as this tokenizer does.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] == "BPE" and spec["model"].get("byte_fallback"):
        return None
    splits = spec["pre_tokenizer"] or {}
    if splits.get("type") == "ByteLevel" and splits.get("use_regex"):
        if not splits["add_prefix_space"] and spec["normalizer"] is None:
            return "gpt-2"
    elif (known := _known_pre_tokenizer(tokenizer)) is not None:
        return known
    raise RecipeError(
        f"export.formats asks for gguf, but llama.cpp has no tokenizer that splits text as that of "
        f"{name!r} does ({spec['model']['type']} after {splits.get('type')}), so the student would "
        "read other tokens than it learnt. Remove it from export.formats, or choose another "
        "student."
    )


def _known_pre_tokenizer(tokenizer: Any) -> str | None:
    """Return the name in the converter's table of hashes."""
    source = (_converter_folder() / "base.py").read_text(encoding="utf-8")
    text = re.search(r"^ +chktxt = (.+)$", source, re.MULTILINE)
    assert text is not None, "the converter has its text"
    ids = tokenizer.encode(ast.literal_eval(text[1]))
    digest = hashlib.sha256(str(ids).encode()).hexdigest()
    found = re.search(rf'chkhsh == "{digest}":(?:\s*#.*)*\s*res = "(.+)"', source)
    return found and found[1]


# -- the child process ----------------------------------------------------------------------


def _build(student: str, file: str, precision: str) -> None:
    import logging

    import gguf
    from transformers import AutoTokenizer

    folder = Path(student)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = config["architectures"][0]
    converter = _converter(architecture)(
        folder, gguf.LlamaFileType[_FILE_TYPES[precision]], Path(file), model_name="student"
    )
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pre_tokenizer = _pre_tokenizer(tokenizer, student)

    def set_vocab() -> None:
        if pre_tokenizer is None:
            _write_sentencepiece(converter, tokenizer)
        else:
            converter._set_vocab_gpt2()
        _write_ends(converter.gguf_writer, folder, tokenizer.eos_token_id)
        converter.gguf_writer.add_sampling_temp(0.0)  # greedy by default, as it was measured

    # The converter asks for a SentencePiece file first; what students save has none.
    converter.set_vocab = set_vocab
    converter.get_vocab_base_pre = lambda _: pre_tokenizer
    converter.write()


def _converter(architecture: str) -> Any:
    """Return the converter of an architecture.

    auto-round's copy of it is newer than the last release of gguf: beside the model that is wanted
    a file may define some that gguf has no name for. Those get none.
    """
    import gguf
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

    class Names:
        def __getattr__(self, name: str) -> Any:
            return getattr(known, name, None)

    known, gguf.MODEL_ARCH = gguf.MODEL_ARCH, Names()
    try:
        conversion = get_conversion(hparams={"architectures": [architecture]}, auto_update=False)
        return conversion.get_model_class(architecture)
    finally:
        gguf.MODEL_ARCH = known


def _write_sentencepiece(converter: Any, tokenizer: Any) -> None:
    """Write a BPE with a space mark and bytes for what it does not know, as SentencePiece's.

    llama.cpp merges the pair first whose result has the highest score, so the score is the place
    among the merges.
    """
    import gguf

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    places: dict[str, int] = {}
    for place, pair in enumerate(spec["model"]["merges"], 1):
        merged = "".join(pair) if isinstance(pair, list) else pair.replace(" ", "")
        places.setdefault(merged, place)
    added = {token["id"]: token for token in spec["added_tokens"]}
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    kinds, tokens, types = gguf.TokenType, [], []
    for number in range(converter.hparams["vocab_size"]):
        text = texts.get(number)
        if text is None:
            text, kind = f"[PAD{number}]", kinds.UNUSED
        elif number in added:
            kind = kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED
            text = text if added[number]["special"] else text.replace(_SPACE, " ")
        else:
            kind = kinds.BYTE if _BYTE.fullmatch(text) else kinds.NORMAL
        tokens.append(text)
        types.append(kind)
    writer = converter.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(places.get(text, 0)) for text in tokens])
    writer.add_token_types(types)
    gguf.SpecialVocab(converter.dir_model, n_vocab=len(tokens)).add_to_gguf(writer)
    stages = json.dumps([spec["normalizer"], spec["pre_tokenizer"]])
    writer.add_add_space_prefix('"Prepend"' in stages or '"prepend_scheme": "first"' in stages)


def _write_ends(writer: Any, folder: Path, eos: int) -> None:
    """Name the tokens at which generation stops beside the tokenizer's own."""
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    named = config["eos_token_id"]
    others = sorted({*(named if isinstance(named, list) else [named])} - {eos})
    add = (writer.add_eot_token_id, writer.add_eom_token_id)
    if len(others) > len(add):
        raise ValueError(f"GGUF has room for {1 + len(add)} tokens that end, not {1 + len(others)}")
    for function, token in zip(add, others, strict=False):
        function(token)


if __name__ == "__main__":
    _build(*sys.argv[1:])
