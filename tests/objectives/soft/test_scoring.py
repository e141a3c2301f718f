"""The teacher's probabilities are stored small and exact, and scored the same in any batch."""

import functools
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from distillery.data.chat import dump_messages
from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.models.vocabulary import tokenizer_hash, vocabulary_size
from distillery.objectives.soft import targets as storage
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.selection import draw_tokens, likeliest_tokens, uniform_numbers
from distillery.objectives.soft.stage import score_soft_targets, scoring_stage
from distillery.objectives.soft.targets import (
    ScoredRow,
    ScoringRow,
    SoftTargetMeta,
    at_temperature,
    check_meta,
    read_meta,
    read_targets,
    to_batch,
    write_targets,
)
from distillery.storage.stage import Attempt, Stage, StageResult
from distillery.storage.store import Store
from schemas.errors import RecipeError, StoreError, TeacherError, TrainingError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import TrainingFrame, arrow_schema
from schemas.objectives import SoftTargets
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

INLINE = ExecutionSpec()
STAGE = Stage(StageName.SCORE_SOFT_TARGETS, 1, inputs={}, spec={})
TOP_4 = TrainingSpec(objective=SoftTargets(k=4, distillation_temperature=2.0), seed=3)
DRAWN = TrainingSpec(objective=SoftTargets(k=8, selection="sampled"), seed=3)
CONTEXT = 96  # tokens, of the teacher
META = SoftTargetMeta(
    teacher="{}",
    tokenizer_hash=None,
    distillation_temperature=4.0,
    selection="top_k",
    k=3,
)


def soft_of(training: TrainingSpec) -> SoftTargets:
    assert isinstance(training.objective, SoftTargets)
    return training.objective


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", max_length=CONTEXT)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(Store(str(tmp_path / "store")), STAGE, "attempt")


def _teacher(folder: Path, **named: Any) -> TransformersTeacher:
    given: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4} | named
    return TransformersTeacher(model=str(folder), **given)


def _asked(num_rows: int = 7) -> list[ScoringRow]:
    """Return rows of different lengths, prompt and response."""
    return [
        ScoringRow(
            f"row {n}",
            "validation" if n % 3 == 2 else "train",
            [{"role": "user", "content": "where is my " + "card " * (n * 5 % 8)}],
            "it was stolen" + " and I need it" * (n * 3 % 5),
        )
        for n in range(num_rows)
    ]


def _put_rows(spec: StoreSpec, asked: list[ScoringRow]) -> DatasetRef:
    rows = [
        row._asdict() | {"messages": dump_messages(row.messages), "response": row.response}
        for row in asked
    ]
    schema = arrow_schema(TrainingFrame)
    with Store(spec.root).row_writer("rows", schema) as writer:
        writer.write(pd.DataFrame(rows, columns=schema.names))
    return writer.ref("rows")


def _score(
    folder: Path, training: TrainingSpec, asked: list[ScoringRow], **named: Any
) -> list[ScoredRow]:
    scorer = LocalScorer(_teacher(folder, **named), soft_of(training), seed=training.seed)
    return list(scorer.score(asked))


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


def _random_row(name: str, num_tokens: int, seed: int, *, drawn: bool = False) -> ScoredRow:
    """Return a row of random numbers whose ids are in no order."""
    random = np.random.default_rng(seed)
    ids_NK = np.array([random.choice(50, META.k, replace=False) for _ in range(num_tokens)])
    return ScoredRow(
        name,
        "train" if seed % 2 else "validation",
        random.integers(0, 50, num_tokens).tolist(),
        ids_NK.astype(np.int32),
        -random.gamma(2.0, size=ids_NK.shape).astype(np.float32),
        -random.gamma(2.0, size=num_tokens).astype(np.float32),
        random.integers(0, 9, ids_NK.shape).astype(np.uint16) if drawn else None,
    )


@pytest.mark.parametrize("drawn", [False, True])
def test_what_is_written_is_read_in_order_with_ids_ascending(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    monkeypatch.setattr(storage, "_GROUP_TOKENS", 7)  # several row groups
    rows = [_random_row(str(n), 1 + n * 5 % 4, n, drawn=drawn) for n in range(9)]
    meta = META.model_copy(update={"selection": "sampled"}) if drawn else META
    batches = [to_batch(rows[:5], meta), to_batch([], meta), to_batch(rows[5:], meta)]
    ref = write_targets(attempt, "soft_targets", batches, meta)
    assert (ref.num_rows, attempt.outputs["soft_targets"]) == (9, ref)
    for splits in (None, ("train",), ("validation",)):
        wanted = [row for row in rows if splits is None or row.split in splits]
        read = list(read_targets(attempt.store, ref, splits))
        assert [row.prompt_id for row in read] == [row.prompt_id for row in wanted]
        for found, row in zip(read, wanted, strict=True):
            order = row.ids_NK.argsort(axis=1)
            assert (found.split, found.response_ids) == (row.split, row.response_ids)
            assert np.array_equal(found.ids_NK, np.take_along_axis(row.ids_NK, order, 1))
            log_probs_NK = np.take_along_axis(row.log_probs_NK, order, 1)
            assert np.array_equal(found.log_probs_NK, log_probs_NK.astype(np.float16))
            assert np.array_equal(found.log_rest_N, row.log_rest_N)
            if row.counts_NK is None:
                assert found.counts_NK is None
            else:
                counts_NK = np.take_along_axis(row.counts_NK, order, 1)
                assert np.array_equal(found.counts_NK, counts_NK)  # type: ignore[arg-type]


def test_impossible_tokens_and_an_empty_rest_are_kept(attempt: Attempt) -> None:
    row = _random_row("a", 2, 1)
    row.log_probs_NK[:] = [[-np.inf, -1e9, 0.0]] * 2
    row.log_rest_N[:] = -np.inf
    ref = write_targets(attempt, "soft_targets", [to_batch([row], META)], META)
    (found,) = read_targets(attempt.store, ref)
    assert sorted(found.log_probs_NK[0].tolist()) == [-65504.0, -65504.0, 0.0]
    assert np.isneginf(found.log_rest_N).all()


def test_soft_targets_say_what_they_were_made_with(attempt: Attempt) -> None:
    batch = to_batch([_random_row("a", 2, 1)], META)
    ref = write_targets(attempt, "soft_targets", [batch], META)
    assert read_meta(attempt.store, ref) == META


def test_other_data_sets_are_no_soft_targets(tmp_path: Path) -> None:
    spec = StoreSpec(root=str(tmp_path))
    with pytest.raises(StoreError, match=r"holds no soft targets\. Name the output of score_soft"):
        read_meta(Store(spec.root), _put_rows(spec, _asked(1)))


@pytest.mark.parametrize("ids", ["uniform", "zipf"])
def test_a_token_takes_at_most_300_bytes_at_a_real_vocabulary(attempt: Attempt, ids: str) -> None:
    random = np.random.default_rng(0)
    vocabulary, k, num_tokens = 151_936, 64, 32

    def row(name: str) -> ScoredRow:
        logits_NV = 3 * random.standard_normal((num_tokens, vocabulary), dtype=np.float32)
        ids_NK = np.argpartition(-logits_NV, k, axis=1)[:, :k].astype(np.int32)
        total_N = np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
        log_probs_NK = np.take_along_axis(logits_NV, ids_NK, 1) - total_N
        rest_N = np.log1p(-np.exp(log_probs_NK).sum(axis=1))
        if ids == "zipf":
            ranks = (vocabulary ** random.random((num_tokens, 16 * k))).astype(np.int32) - 1
            ids_NK = np.array([random.permutation(np.unique(drawn))[:k] for drawn in ranks])
        return ScoredRow(name, "train", ids_NK[:, 0].tolist(), ids_NK, log_probs_NK, rest_N)

    meta = META.model_copy(update={"k": k})
    batch = to_batch([row(name) for name in "abcdefgh"], meta)
    ref = write_targets(attempt, "soft_targets", [batch], meta)
    bytes_per_token = attempt.store.fs.du(attempt.store.path(ref.uri)) / (8 * num_tokens)
    assert 100 < bytes_per_token <= 300


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_stored_targets_are_the_dense_softmax_at_their_temperature(
    temperature: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NV = spread * torch.randn(40, 500, generator=generator)
    ids_NK, log_probs_NK, log_rest_N = likeliest_tokens(logits_NV.clone(), 16, temperature)
    dense_NV = (logits_NV.double() / temperature).log_softmax(-1)
    log_p_NK, rest_N = at_temperature(log_probs_NK.half(), log_rest_N, temperature)
    expected_NK = dense_NV.gather(-1, ids_NK)
    rest_of_dense_N = dense_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
    # Half of float16's step is 2**-11 of a number; softmax sees each number and their sum.
    bound_NK = 2 * 2**-11 * log_probs_NK.abs().max() / temperature + 1e-5
    assert bool(((log_p_NK - expected_NK).abs() <= bound_NK).all())
    torch.testing.assert_close(rest_N.double(), rest_of_dense_N, rtol=1e-5, atol=1e-5)
    total_N = torch.logaddexp(log_p_NK.double().logsumexp(-1), rest_N.double())
    torch.testing.assert_close(total_N, torch.zeros_like(total_N), rtol=0, atol=2e-6)


def test_tiny_masses_keep_their_digits_on_either_side() -> None:
    rare_V = torch.full((1, 4000), -20.0)
    rare_V[0, 7] = 0.0  # all but 4000 e^-20 of the mass
    _, _, log_rest_N = likeliest_tokens(rare_V.clone(), 1, 1.0)
    assert log_rest_N.item() == pytest.approx(np.log(3999) - 20, rel=1e-5)
    flat_V = torch.zeros(1, 150_000, dtype=torch.float32)
    _, log_probs_NK, log_rest_N = likeliest_tokens(flat_V, 1, 1.0)
    log_p_NK, _ = at_temperature(log_probs_NK.half(), log_rest_N, 1.0)
    assert log_p_NK.item() == pytest.approx(-np.log(150_000), rel=1e-5)


def test_the_whole_vocabulary_leaves_no_rest() -> None:
    logits_V = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    ids_NK, log_probs_NK, log_rest_N = likeliest_tokens(logits_V.clone(), 8, 2.0)
    assert bool(log_rest_N.isneginf().all())
    log_p_NK, _ = at_temperature(log_probs_NK, log_rest_N, 2.0)
    expected_NV = (logits_V / 2).log_softmax(-1)
    torch.testing.assert_close(log_p_NK, expected_NV.gather(-1, ids_NK))


def test_scores_are_those_of_a_plain_forward_pass(folder: Path) -> None:
    asked = _asked()
    scored = _score(folder, TOP_4, asked)
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


@pytest.mark.parametrize("training", [TOP_4, DRAWN], ids=["top_k", "sampled"])
def test_scores_do_not_depend_on_the_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, training: TrainingSpec
) -> None:
    asked = _asked()
    alone = _score(folder, training, asked, batch_size=1)
    monkeypatch.setattr("distillery.objectives.soft.local._CHUNK_LOGITS", 5 * 300)
    together = _score(folder, training, asked, batch_size=4)
    monkeypatch.setattr("distillery.objectives.soft.local._BATCH_TOKENS", 100)
    few_tokens = _score(folder, training, asked[::-1])[::-1]
    for rows in (together, few_tokens):
        for found, row in zip(rows, alone, strict=True):
            assert found[:3] == row[:3]
            assert np.array_equal(found.ids_NK, row.ids_NK)
            np.testing.assert_allclose(found.log_probs_NK, row.log_probs_NK, atol=1e-5)
            np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-5)
            np.testing.assert_array_equal(found.counts_NK, row.counts_NK)


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
        _score(folder, TOP_4, _asked(3)), _score(tmp_path, TOP_4, _asked(3)), strict=True
    ):
        assert np.array_equal(plain.ids_NK, padded.ids_NK)
        np.testing.assert_allclose(plain.log_probs_NK, padded.log_probs_NK, atol=1e-6)
        np.testing.assert_allclose(plain.log_rest_N, padded.log_rest_N, atol=1e-6)


def test_tokens_that_the_teacher_cannot_write_have_no_mass(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = _tokenizer(folder)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path)
    scorer = LocalScorer(_teacher(tmp_path), soft_of(TOP_4), seed=0)
    for found, row in zip(scorer.score(_asked(2)), _score(folder, TOP_4, _asked(2)), strict=True):
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
    asked = _asked(3)
    assert LocalScorer(_teacher(folder), soft_of(TOP_4), seed=0)._split.holds_logits is False
    assert LocalScorer(_teacher(tmp_path), soft_of(TOP_4), seed=0)._split.holds_logits is True
    for found, row in zip(_score(tmp_path, TOP_4, asked), asked, strict=True):
        _, logits_NV = _by_hand(tmp_path, row)
        values_NK, ids_NK = logits_NV[:, : len(tokenizer)].log_softmax(-1).topk(4)
        assert found.ids_NK.tolist() == ids_NK.tolist()
        np.testing.assert_allclose(found.log_probs_NK, values_NK, atol=1e-5)


def test_half_precision_rounds_hidden_states_but_not_logits(folder: Path) -> None:
    asked = _asked(2)
    for found, row in zip(_score(folder, TOP_4, asked, dtype="bfloat16"), asked, strict=True):
        _, logits_NV = _by_hand(folder, row, torch.bfloat16)
        expected_NK = logits_NV.log_softmax(-1).gather(-1, torch.tensor(found.ids_NK).long())
        step = 2**-8 * float(logits_NV.abs().max())
        np.testing.assert_allclose(found.log_probs_NK, expected_NK, atol=2 * step)
        # Rounded to bfloat16, logits would be multiples of a step and often equal.
        assert len(np.unique(np.diff(found.log_probs_NK))) == found.ids_NK.size * 3 // 4


def test_draws_follow_the_seed_and_the_row_alone(folder: Path) -> None:
    asked = _asked(3)
    other = DRAWN.model_copy(update={"seed": 4})
    first, again, seeded = (_score(folder, t, asked) for t in (DRAWN, DRAWN, other))
    assert all(np.array_equal(a.ids_NK, b.ids_NK) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.ids_NK, b.ids_NK) for a, b in zip(first, seeded, strict=True))
    assert not torch.equal(uniform_numbers("a", 3, 2, 8), uniform_numbers("b", 3, 2, 8))
    for row in first:
        assert row.counts_NK is not None
        assert row.counts_NK.sum(axis=1).tolist() == [8] * len(row.response_ids)
        assert bool((np.diff(row.ids_NK)[row.counts_NK[:, 1:] > 0] > 0).all())


def test_draws_are_right_on_average_and_know_what_they_left_out() -> None:
    temperature, k, num_seeds = 2.0, 16, 500
    logits_V = 4 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    numbers_CK = torch.cat([uniform_numbers("a", seed, 1, k) for seed in range(num_seeds)])
    ids_CK, log_probs_CK, log_rest_C, counts_CK = draw_tokens(
        logits_V.repeat(num_seeds, 1), numbers_CK, temperature
    )
    log_p_V = (logits_V.double() / temperature).log_softmax(-1)
    counts_V = torch.zeros(40).scatter_add_(0, ids_CK.flatten(), counts_CK.flatten().float())
    draws = num_seeds * k
    deviation_V = (log_p_V.exp() * (1 - log_p_V.exp()) / draws).sqrt()
    assert bool(((counts_V / draws - log_p_V.exp()).abs() < 4.5 * deviation_V + 1e-9).all())
    drawn_CK = counts_CK > 0
    expected_CK = log_p_V[ids_CK]
    torch.testing.assert_close(
        log_probs_CK[drawn_CK].double(), expected_CK[drawn_CK], rtol=1e-5, atol=1e-5
    )
    left_C = 1 - (expected_CK.exp() * drawn_CK).sum(-1)
    torch.testing.assert_close(log_rest_C.double().exp(), left_C, rtol=1e-5, atol=1e-6)


def test_a_k_above_the_vocabulary_is_refused_with_both_numbers(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective\.k is 999, but .* has 3\d\d tokens"):
        LocalScorer(_teacher(folder), SoftTargets(k=999), seed=0)


def test_logits_that_are_not_finite_are_refused(folder: Path) -> None:
    scorer = LocalScorer(_teacher(folder), soft_of(TOP_4), seed=0)
    with torch.no_grad():
        scorer._local.model.model.norm.weight[3] = torch.nan
    with pytest.raises(TeacherError, match=r"not finite in float32, among rows 'row "):
        list(scorer.score(_asked(2)))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_is_told_by_its_vocabulary_and_merges_alone(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = _tokenizer(folder)
    ours = tokenizer_hash(tokenizer)
    tokenizer.chat_template = "{{ 'another' }}"
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == ours
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(_tokenizer(tmp_path / "saved")) == ours

    files = tmp_path / "saved" / "tokenizer.json"
    kept = json.loads(files.read_text())
    kept["model"]["merges"].reverse()
    files.write_text(json.dumps(kept))
    assert tokenizer_hash(_tokenizer(tmp_path / "saved")) != ours
    size = vocabulary_size(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    assert tokenizer_hash(tokenizer) != ours
    assert vocabulary_size(tokenizer) == size + 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"tokenizer_hash": "f" * 64}, r"tokenizer ffffffffffff, the student has \w{12}, so"),
        ({"distillation_temperature": 3.0}, r"_temperature 3\.0, but .*_temperature is 2\.0\."),
        ({"selection": "sampled"}, r"made with selection 'sampled', but .* is 'top_k'\."),
        ({"k": 5}, r"made with k 5, but training\.objective\.k is 4\."),
    ],
)
def test_soft_targets_of_another_training_are_refused_by_name(
    folder: Path, made: dict[str, Any], message: str
) -> None:
    tokenizer = _tokenizer(folder)
    meta = LocalScorer(_teacher(folder), soft_of(TOP_4), seed=0).meta
    for fitting in (meta, meta.model_copy(update={"tokenizer_hash": None})):
        check_meta(fitting, tokenizer=tokenizer, spec=soft_of(TOP_4))
    with pytest.raises(TrainingError, match=message):
        check_meta(meta.model_copy(update=made), tokenizer=tokenizer, spec=soft_of(TOP_4))


def _fingerprint(
    folder: Path, training: TrainingSpec = TOP_4, rows: str = "rows", **named: Any
) -> str:
    ref = DatasetRef(uri="rows", fingerprint=rows, num_rows=1, columns=())
    return scoring_stage(ref, _teacher(folder, **named), training).fingerprint


def _changed(training: TrainingSpec, **soft: Any) -> TrainingSpec:
    targets = soft_of(training).model_copy(update=soft)
    return training.model_copy(update={"objective": targets})


def test_only_what_is_stored_is_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    same = _fingerprint(folder)
    for training in (
        _changed(TOP_4, divergence="reverse_kl"),
        _changed(TOP_4, soft_weight=0.9, hard_weight=0.0),
        TOP_4.model_copy(update={"seed": 9, "learning_rate": 1.0, "epochs": 1.0}),
    ):
        assert _fingerprint(folder, training) == same
    assert _fingerprint(folder, batch_size=1, seed=5, max_new_tokens=9) == same
    others = [
        _fingerprint(folder, _changed(TOP_4, k=5)),
        _fingerprint(folder, _changed(TOP_4, distillation_temperature=1.0)),
        _fingerprint(folder, _changed(TOP_4, selection="sampled")),
        _fingerprint(folder, _changed(TOP_4, selection="sampled").model_copy(update={"seed": 9})),
        _fingerprint(folder, rows="other rows"),
        _fingerprint(folder, dtype="bfloat16"),
        _fingerprint(make_tiny_model(tmp_path / "other", seed=1)),
    ]
    assert len({same, *others}) == 1 + len(others)


def _run(spec: StoreSpec, rows: DatasetRef, folder: Path, **named: Any) -> StageResult:
    return score_soft_targets(rows, _teacher(folder), TOP_4, spec, INLINE, **named)


def test_the_stage_scores_all_rows_that_fit_and_is_reused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked = _asked()
    asked.insert(2, asked[0]._replace(prompt_id="long", response="and " * CONTEXT))
    spec = StoreSpec(root=str(tmp_path))
    rows = _put_rows(spec, asked)
    told: list[tuple[int, int]] = []
    result = _run(spec, rows, folder, on_progress=lambda *now: told.append(now))
    assert told == [(3, 8), (6, 8), (8, 8)]

    read = list(read_targets(Store(spec.root), result.dataset("soft_targets")))
    asked.pop(2)
    scored = _score(folder, TOP_4, asked)
    assert [row[:3] for row in read] == [row[:3] for row in scored]
    for found, row in zip(read, scored, strict=True):
        assert np.array_equal(found.ids_NK, np.sort(row.ids_NK))
        np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-5)
    manifest = result.manifest
    num_tokens = sum(len(row.response_ids) for row in scored)
    assert manifest.counts == {"rows": 7, "response_tokens": num_tokens, "left_out_too_long": 1}
    assert manifest.facts["left_out_first_ids"] == ["long"]
    rest_N = np.concatenate([row.log_rest_N for row in scored])
    assert manifest.facts["mean_kept_mass"] == pytest.approx(1 - np.exp(rest_N).mean(), rel=1e-5)
    meta = read_meta(Store(spec.root), result.dataset("soft_targets"))
    assert manifest.facts["soft_targets"] == meta.model_dump(mode="json")
    assert (meta.k, meta.distillation_temperature, meta.selection) == (4, 2.0, "top_k")
    assert meta.tokenizer_hash == tokenizer_hash(_tokenizer(folder))

    monkeypatch.setattr(LocalScorer, "score", None)
    assert _run(spec, rows, folder).reused


class Killed(BaseException):
    """Stands for the end of the process."""


def _die(*_: int) -> None:
    raise Killed


def _numbers(spec: StoreSpec, result: StageResult) -> list[Any]:
    rows = read_targets(Store(spec.root), result.dataset("soft_targets"))
    return [
        [part.tolist() if isinstance(part, np.ndarray) else part for part in row] for row in rows
    ]


@pytest.mark.parametrize("selection", ["top_k", "sampled"])
def test_a_killed_stage_goes_on_where_it_was(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    selection: str,
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    training, asked = _changed(TOP_4, selection=selection), _asked()
    asked.insert(1, asked[0]._replace(prompt_id="long", response="and " * CONTEXT))
    spec, alone = (StoreSpec(root=str(tmp_path / name)) for name in ("store", "alone"))
    rows = _put_rows(spec, asked)
    run = functools.partial(score_soft_targets, rows, _teacher(folder), training, spec, INLINE)
    with pytest.raises(Killed):
        run(on_progress=_die)
    scored = _spy_on_scores(monkeypatch)
    with caplog.at_level(logging.INFO, "distillery"):
        result = run()
    assert "3 rows had been scored before" in caplog.messages
    assert scored == [row.prompt_id for row in asked[3:]]
    assert result.manifest.facts["rows_scored_before"] == 3
    assert result.manifest.facts["left_out_first_ids"] == ["long"]

    whole = score_soft_targets(_put_rows(alone, asked), _teacher(folder), training, alone, INLINE)
    assert whole.manifest.facts["rows_scored_before"] == 0
    assert _numbers(spec, result) == _numbers(alone, whole)
    assert result.manifest.facts["mean_kept_mass"] == pytest.approx(
        whole.manifest.facts["mean_kept_mass"], rel=1e-6
    )
    kept = Store(spec.root).list_folders(f"{STAGE.name}/{result.manifest.fingerprint}")
    assert kept == [result.manifest.attempt]


def _spy_on_scores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scored: list[str] = []
    score = LocalScorer.score

    def spy(self: LocalScorer, rows: Any) -> Any:
        scored.extend(row.prompt_id for row in rows)
        return score(self, rows)

    monkeypatch.setattr(LocalScorer, "score", spy)
    return scored


def test_kept_scores_of_other_responses_or_of_a_damaged_file_are_not_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked, spec = _asked(), StoreSpec(root=str(tmp_path))
    with pytest.raises(Killed):
        _run(spec, _put_rows(spec, asked), folder, on_progress=_die)
    # The stage before was done again and gave something else.
    asked[0] = asked[0]._replace(response="yes, today")
    rows = _put_rows(spec, asked)
    scored = _spy_on_scores(monkeypatch)
    with pytest.raises(Killed):
        _run(spec, rows, folder, on_progress=_die)
    assert scored == [row.prompt_id for row in asked[:3]]
    for file in tmp_path.rglob("*.arrow"):
        content = bytearray(file.read_bytes())
        content[-len(content) // 3] ^= 1
        file.write_bytes(content)
    result = _run(spec, rows, folder)
    assert scored[3:] == [row.prompt_id for row in asked]
    assert "is damaged; its rows are scored again" in caplog.text
    assert result.manifest.counts["rows"] == len(asked)


def test_a_forced_stage_takes_nothing_that_was_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked, spec = _asked(), StoreSpec(root=str(tmp_path))
    rows = _put_rows(spec, asked)
    with pytest.raises(Killed):
        _run(spec, rows, folder, on_progress=_die)
    scored = _spy_on_scores(monkeypatch)
    forced = ExecutionSpec(force=(StageName.SCORE_SOFT_TARGETS,))
    result = score_soft_targets(rows, _teacher(folder), TOP_4, spec, forced)
    assert scored == [row.prompt_id for row in asked]
    assert result.manifest.facts["rows_scored_before"] == 0


def test_chunks_of_long_responses_have_fewer_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, spec = _asked(), StoreSpec(root=str(tmp_path))
    longest = max(len(row.response) for row in asked)
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_CHARS", longest * 4)  # k = 4
    told: list[tuple[int, int]] = []
    _run(spec, _put_rows(spec, asked), folder, on_progress=lambda *now: told.append(now))
    done = [0, *(now for now, _ in told)]
    sizes = [len(asked[start:stop]) for start, stop in itertools.pairwise(done)]
    assert sum(sizes) == len(asked)
    for start, size in zip(done, sizes, strict=False):
        assert size == 1 or sum(len(r.response) for r in asked[start : start + size]) <= longest
    assert len(sizes) > 1


def test_a_teacher_that_no_row_fits_is_an_error(folder: Path, tmp_path: Path) -> None:
    spec = StoreSpec(root=str(tmp_path))
    rows = _put_rows(spec, [_asked(1)[0]._replace(response="and " * CONTEXT)])
    with pytest.raises(TeacherError, match="none of 1 rows fits the context of teacher"):
        _run(spec, rows, folder)
    assert Store(spec.root).list_folders(f"{STAGE.name}") in ([], [_folder_of(rows, folder)])


def _folder_of(rows: DatasetRef, folder: Path) -> str:
    return scoring_stage(rows, _teacher(folder), TOP_4).fingerprint


def test_a_served_teacher_is_asked_through_its_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillery.objectives.soft import served

    made: list[Any] = []

    def opened(*given: Any) -> Any:
        made.append(given)
        raise TeacherError("asked")

    monkeypatch.setattr(served, "ServedScorer", opened)
    spec = StoreSpec(root=str(tmp_path))
    teacher = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(TeacherError, match="asked"):
        score_soft_targets(_put_rows(spec, _asked(1)), teacher, TOP_4, spec, INLINE)
    assert made == [(teacher, soft_of(TOP_4))]


def test_the_flow_returns_the_soft_targets_and_shows_what_is_kept(
    folder: Path, tmp_path: Path, prefect_server: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    from flows.score_soft_targets import score_soft_targets as flow

    spec = StoreSpec(root=str(tmp_path))
    rows = _put_rows(spec, _asked())
    ref = flow(spec, INLINE, rows, _teacher(folder), TOP_4)
    assert ref.num_rows == 7
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["soft-targets"])
        (artifact,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
    assert "| kept per token | 4 likeliest tokens |" in str(artifact.data)
    assert "| mass on them, mean |" in str(artifact.data)
