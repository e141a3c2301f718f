"""The benchmarks of training measure what they say, and their tables count right."""

import doctest
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, lora, report, results, synthetic, training
from benchmarks.processes import ProcessError
from benchmarks.report import Metric
from benchmarks.results import Line, goal_table
from benchmarks.steps import VARIANTS, prepare, run_variant
from benchmarks.storage import bytes_per_token
from benchmarks.trainers import TRAINERS, require_same_losses, run
from distillery.data.chat import load_messages
from distillery.models.loading import ModelFiles
from distillery.storage.store import Store
from distillery.training.batches import RowOrder
from tests.fixtures_models import make_tiny_model

TINY = gpu.Size(
    {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128}
    | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    batch_size=2,
    row_tokens=16,
    prompt_tokens=0,
)


@pytest.mark.parametrize("module", [report, results, synthetic], ids=lambda m: m.__name__)
def test_the_examples_of_docstrings_hold(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


# -- Soft targets that no teacher made --------------------------------------------------------


def test_made_up_probabilities_are_those_of_the_likeliest_of_many_normal_logits() -> None:
    _, log_p_NK, log_rest_N = synthetic.random_targets(
        300, vocab_size=20_000, k=16, spread="even", seed=0
    )
    draws = np.random.default_rng(1)
    logits_NV = np.sort(synthetic._LOGIT_STD * draws.standard_normal((300, 20_000)))[:, ::-1]
    p_NV = np.exp(logits_NV - logits_NV[:, :1])
    p_NV /= p_NV.sum(1, keepdims=True)
    assert np.exp(log_p_NK[:, 0]).mean() == pytest.approx(p_NV[:, 0].mean(), abs=0.05)
    assert np.exp(log_rest_N).mean() == pytest.approx(1 - p_NV[:, :16].sum(1).mean(), abs=0.02)


def test_frequent_tokens_are_frequent_only_where_they_should_be() -> None:
    share = {}
    for spread in ("even", "zipf"):
        ids_NK, _, _ = synthetic.random_targets(200, vocab_size=10_000, k=4, spread=spread, seed=0)
        share[spread] = (ids_NK < 100).mean()
    assert share["even"] == pytest.approx(0.01, abs=0.01)
    assert share["zipf"] == pytest.approx(0.5, abs=0.1)  # ln(101) / ln(10001)


def test_stored_bytes_follow_k_and_the_spread_of_ids(tmp_path: Path) -> None:
    def measured(spread: Any, k: int) -> float:
        return bytes_per_token(tmp_path / f"{spread}-{k}", spread, seed=0, num_rows=16, k=k)

    assert measured("zipf", 64) < measured("even", 64) < 392  # 6 bytes each and 8 as they are
    assert measured("even", 16) < measured("even", 64) / 2


# -- Steps ------------------------------------------------------------------------------------


def test_other_losses_are_other_work() -> None:
    require_same_losses([2.0, 1.0], [2.0, 1.00001])
    require_same_losses([2.0, 1.0], [2.0, 1.001], within=0.01)
    for theirs in ([2.0, 1.001], [2.0]):
        with pytest.raises(ProcessError, match="not do the same work"):
            require_same_losses([2.0, 1.0], theirs)


@pytest.mark.slow
def test_all_variants_take_steps_and_trl_learns_the_same_as_ours(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    works = prepare(tmp_path, 2000)
    found = {variant: run_variant(works, variant, tmp_path, threads=1) for variant in VARIANTS}
    assert all(one.step_s > 0 for one in found.values())
    require_same_losses(found["hard"].losses, found["trl"].losses)
    assert found["soft"].losses[0] != pytest.approx(found["hard"].losses[0], rel=1e-3)


# -- A pretrained model -----------------------------------------------------------------------

SHORT = lora.Case("short", 14, 4, 8, 4, num_steps=3, num_dropped=1)


def test_rows_are_as_long_as_those_of_the_task_and_the_first_steps_do_not_count(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "model")
    work, num_tokens = lora.prepare(tmp_path, SHORT, model)
    rows = Store(work.store.root).dataset(work.rows).to_table().to_pylist()
    prompts = [load_messages(row["messages"])[0]["content"] for row in rows]
    assert sorted(len(prompt.split()) for prompt in prompts)[len(rows) // 2] in range(11, 18)
    assert all(" " not in row["response"] for row in rows)
    chat_format = ModelFiles(str(model)).chat_format()
    lengths = [
        len(chat_format.row(load_messages(row["messages"]), row["response"]).input_ids)
        for row in rows
    ]
    assert work.num_steps == 3
    order = list(RowOrder(lengths, batch_size=8, steps=3, seed=work.training.seed))
    assert num_tokens == sum(lengths[row] for row in order[8:]) < sum(lengths)


def test_a_model_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_GEMMA", str(tmp_path))
    assert str(tmp_path / "config.json") in (lora.obstacle() or "")
    (tmp_path / "config.json").touch()
    assert lora.obstacle() is None


@pytest.mark.slow
def test_a_lora_in_half_precision_learns_the_same_from_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    work, _ = lora.prepare(tmp_path, SHORT, make_tiny_model(tmp_path / "model"))
    ours, theirs = (run(work, who, tmp_path, threads=1, dropped=1) for who in TRAINERS)
    require_same_losses(ours.losses, theirs.losses, within=0.01)
    assert min(ours.peak_bytes, theirs.peak_bytes) > 100 * 2**20


def test_the_operations_of_a_step_are_those_that_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**TINY.config, tie_word_embeddings=True, attn_implementation="eager")
    model = Qwen2ForCausalLM(config)
    ids_BT = torch.randint(500, (TINY.batch_size, TINY.row_tokens))
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids_BT).logits.sum().backward()
    num_parameters = sum(p.numel() for p in model.parameters())
    expected = gpu.flops_per_step(TINY, num_parameters)
    # Torch counts attention over all of T, also the masked half; layers, width, tokens, T.
    masked = 6 * 2 * 64 * 32 * 16
    assert counted.get_total_flops() == pytest.approx(expected + masked, rel=0.01)
    half = TINY._replace(prompt_tokens=4)
    fewer = expected - gpu.flops_per_step(half, num_parameters)
    assert fewer == 6 * 64 * 500 * TINY.batch_size * 4


@pytest.mark.parametrize("variant", gpu.VARIANTS)
def test_the_measurement_of_gpus_works_on_a_cpu(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "K", 8)
    found = gpu.measure_once(TINY._replace(prompt_tokens=3), variant, device="cpu")
    assert found.tokens_per_s * found.step_s == pytest.approx(32)
    assert not found.gradient_checkpointing


# -- The command ------------------------------------------------------------------------------


def test_a_part_that_crashes_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line("case", Metric("m", goal=1), [2.0])

    def crash(*_: Any) -> Any:
        raise ProcessError("fell over")

    monkeypatch.setitem(training.PARTS, "kernel", crash)
    monkeypatch.setitem(training.PARTS, "steps", lambda *_: ([line], ["a note"]))
    lines, notes, crashed = training.run_parts(["kernel", "steps"], tmp_path, 1, 1)
    assert (lines, crashed) == ([line], ["kernel"])
    assert notes == ["**kernel crashed**: fell over", "a note"]
    assert goal_table(lines).endswith("| case | m | <= 1 | 2 | **no** |")


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line("case", Metric("m", goal=1), [0.5])
    monkeypatch.setitem(training.PARTS, "storage", lambda *_: ([line], ["left out"]))
    output = tmp_path / "result.md"
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["x", "--parts=storage", "--quick", f"--output={output}"])
    assert training.main() == 0
    printed = capsys.readouterr().out
    assert printed == output.read_text()
    assert "| case | m | <= 1 | 0 | yes |" in printed and "- left out" in printed
