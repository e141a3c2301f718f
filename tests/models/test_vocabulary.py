"""A tokenizer is told by what its ids mean, not by how it is used."""

import json
from pathlib import Path

from distillery.models.vocabulary import tokenizer_hash, vocabulary_size
from tests.fixtures_models import make_tiny_model
from tests.fixtures_scores import tokenizer_of


def test_a_tokenizer_is_told_by_its_vocabulary_and_merges_alone(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(make_tiny_model(tmp_path / "tiny"))
    ours = tokenizer_hash(tokenizer)
    tokenizer.chat_template = "{{ 'another' }}"
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == ours
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(tokenizer_of(tmp_path / "saved")) == ours

    files = tmp_path / "saved" / "tokenizer.json"
    kept = json.loads(files.read_text())
    kept["model"]["merges"].reverse()
    files.write_text(json.dumps(kept))
    assert tokenizer_hash(tokenizer_of(tmp_path / "saved")) != ours
    size = vocabulary_size(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    assert tokenizer_hash(tokenizer) != ours
    assert vocabulary_size(tokenizer) == size + 1
