"""A tiny student in a store, to be exported."""

import json
from pathlib import Path

import pandas as pd

from distillery.data.chat import Message, dump_messages
from distillery.export.stage import export_student
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportFormat
from schemas.frames import TrainingFrame, arrow_schema
from tests.fixtures_models import make_tiny_model

QUESTIONS = (
    "what is 2 + 2 ?",
    "where is my transfer",
    "It's\n\n\tÜber 123  zwei 🚀",
    "the card was stolen",
)


_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class TrainedStudent:
    """A random model that stands for a trained one, and rows that stand for what it learnt."""

    def __init__(self, folder: Path, files: Path | None = None) -> None:
        self.files = files or make_tiny_model(folder / "student", hidden_size=64)
        self.store = StoreSpec(root=str(folder / "store"))
        self.conversations = [[Message(role="user", content=text)] for text in QUESTIONS]
        made = run_stage(
            Stage(StageName.TRAIN_STUDENT, 1, {}, {}), self.store, ExecutionSpec(), self._write
        )
        self.student, self.rows = made.model("model"), made.dataset("rows")

    def export(self, format: ExportFormat) -> StageResult:
        execution = ExecutionSpec(cpu_threads=1)
        return export_student(self.student, self.rows, format, self.store, execution)

    def _write(self, attempt: Attempt) -> None:
        rows = pd.DataFrame(
            {
                "prompt_id": [str(number) for number in range(len(QUESTIONS))],
                "split": "train",
                "messages": [dump_messages(messages) for messages in self.conversations],
                "response": "yes",
                "reasoning": None,
                "teacher": None,
                "chosen_because": None,
            }
        )
        with attempt.row_writer("rows", arrow_schema(TrainingFrame)) as writer:
            writer.write(rows)
        attempt.add_model("model", self.files, num_parameters=123)


def make_tiny_gemma(folder: Path) -> Path:
    """Return ``folder`` with a random Gemma 3 in it.

    It has what Llama has not: a tokenizer with a mark for spaces and bytes for what it does not
    know, a token that begins every prompt, two that end a response, and layers of two kinds, in
    the order that llama.cpp takes them to have.
    """
    import torch
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GenerationConfig,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", _SPACE)
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    bpe.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")  # no token of two words
    symbols = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=symbols, show_progress=False)
    bpe.train_from_iterator(["where is my transfer of the card", "what is this + that ?"], trainer)
    # Bytes are tokens like others, and nothing is split, as in what Gemma's authors published.
    saved = json.loads(bpe.to_str()) | {"pre_tokenizer": None}
    saved["added_tokens"] = saved["added_tokens"][: len(special)]
    bpe = Tokenizer.from_str(json.dumps(saved))
    bpe.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=special[4:],
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=32,
        layer_types=5 * ["sliding_attention"] + ["full_attention"],
        max_position_embeddings=256,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, 5], pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
