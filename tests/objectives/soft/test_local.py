"""A local teacher's scores are those of a plain forward pass, in any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.stored import ScoringRow
from schemas.errors import RecipeError, TeacherError
from schemas.objectives import SoftTargets
from tests.fixtures_scores import (
    TOP_4,
    local_teacher,
    rows_to_score,
    score_here,
    soft_of,
    tokenizer_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _by_hand(folder: Path, row: ScoringRow, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the response's ids and the logits before them, [N, V], by a plain forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = ChatFormat(tokenizer).row(row.messages, row.response)
    with torch.no_grad():
        logits_TV = model(torch.tensor([tokens.input_ids])).logits[0]
    ids = [label for label in tokens.labels if label != IGNORED]
    return ids, logits_TV[-len(ids) - 1 : -1].double()


def test_scores_are_those_of_a_plain_forward_pass(folder: Path) -> None:
    asked = rows_to_score()
    scored = score_here(folder, TOP_4, asked)
    assert [row.prompt_id for row in scored] == [row.prompt_id for row in asked]
    for found, row in zip(scored, asked, strict=True):
        ids, logits_NV = _by_hand(folder, row)
        log_probs_NV = logits_NV.log_softmax(-1)
        assert found.split == row.split
        assert found.response_ids == ids
        values_NK, ids_NK = log_probs_NV.topk(4)
        assert found.ids_NK.tolist() == ids_NK.tolist()
        np.testing.assert_allclose(found.log_probs_NK, values_NK, atol=1e-5)
        tempered_NV = (logits_NV / 2).log_softmax(-1).scatter(-1, ids_NK, -torch.inf)
        np.testing.assert_allclose(found.log_rest_N, tempered_NV.logsumexp(-1), atol=1e-5)


def test_scores_do_not_depend_on_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = rows_to_score()
    alone = score_here(folder, TOP_4, asked, batch_size=1)
    monkeypatch.setattr("distillery.objectives.soft.local.CHUNK_LOGITS", 5 * 300)
    together = score_here(folder, TOP_4, asked, batch_size=4)
    monkeypatch.setattr("distillery.objectives.soft.local._BATCH_TOKENS", 100)
    few_tokens = score_here(folder, TOP_4, asked[::-1])[::-1]
    for rows in (together, few_tokens):
        for found, row in zip(rows, alone, strict=True):
            assert found[:3] == row[:3]
            assert np.array_equal(found.ids_NK, row.ids_NK)
            np.testing.assert_allclose(found.log_probs_NK, row.log_probs_NK, atol=1e-5)
            np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-5)


def test_logits_of_padding_are_no_part_of_the_probabilities(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer) + 20, mean_resizing=False)
    with torch.no_grad():  # as likely as the likeliest tokens
        model.lm_head.weight[-20:] = 3 * model.lm_head.weight[:20]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for plain, padded in zip(
        score_here(folder, TOP_4, rows_to_score(3)),
        score_here(tmp_path, TOP_4, rows_to_score(3)),
        strict=True,
    ):
        assert np.array_equal(plain.ids_NK, padded.ids_NK)
        np.testing.assert_allclose(plain.log_probs_NK, padded.log_probs_NK, atol=1e-6)
        np.testing.assert_allclose(plain.log_rest_N, padded.log_rest_N, atol=1e-6)


def test_tokens_that_the_teacher_cannot_write_have_no_mass(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = tokenizer_of(folder)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path)
    scorer = LocalScorer(local_teacher(tmp_path), soft_of(TOP_4))
    for found, row in zip(
        scorer.score(rows_to_score(2)), score_here(folder, TOP_4, rows_to_score(2)), strict=True
    ):
        np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-6)


def test_a_model_that_caps_its_logits_is_scored_by_what_it_gives(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=len(tokenizer) + 3,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                initializer_range=0.5,
                final_logit_softcapping=1.0,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = rows_to_score(3)
    assert LocalScorer(local_teacher(folder), soft_of(TOP_4))._split.holds_logits is False
    assert LocalScorer(local_teacher(tmp_path), soft_of(TOP_4))._split.holds_logits is True
    for found, row in zip(score_here(tmp_path, TOP_4, asked), asked, strict=True):
        _, logits_NV = _by_hand(tmp_path, row)
        values_NK, ids_NK = logits_NV[:, : len(tokenizer)].log_softmax(-1).topk(4)
        assert found.ids_NK.tolist() == ids_NK.tolist()
        np.testing.assert_allclose(found.log_probs_NK, values_NK, atol=1e-5)


def test_half_precision_rounds_hidden_states_but_not_logits(folder: Path) -> None:
    asked = rows_to_score(2)
    for found, row in zip(score_here(folder, TOP_4, asked, dtype="bfloat16"), asked, strict=True):
        _, logits_NV = _by_hand(folder, row, torch.bfloat16)
        expected_NK = logits_NV.log_softmax(-1).gather(-1, torch.tensor(found.ids_NK).long())
        step = 2**-8 * float(logits_NV.abs().max())
        np.testing.assert_allclose(found.log_probs_NK, expected_NK, atol=2 * step)
        # Rounded to bfloat16, logits would be multiples of a step and often equal.
        assert len(np.unique(np.diff(found.log_probs_NK))) == found.ids_NK.size * 3 // 4


def test_a_k_above_the_vocabulary_is_refused_with_both_numbers(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective\.k is 999, but .* has 3\d\d tokens"):
        LocalScorer(local_teacher(folder), SoftTargets(k=999))


def test_logits_that_are_not_finite_are_refused(folder: Path) -> None:
    scorer = LocalScorer(local_teacher(folder), soft_of(TOP_4))
    with torch.no_grad():
        scorer._local.model.model.norm.weight[3] = torch.nan
    with pytest.raises(TeacherError, match=r"not finite in float32, among rows 'row "):
        list(scorer.score(rows_to_score(2)))
