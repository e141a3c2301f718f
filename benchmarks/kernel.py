"""Time and memory of the loss at a vocabulary of 151,936: ours, the dense formula, TRL's, Liger's.

    python -m benchmarks.kernel [--repeats 5]
    python -m benchmarks.kernel --once {formula,trl,liger,sparse,dense} [--tokens 2048]

The loss is the forward KL at T = 1, in float32, with its gradients for hidden states and output
layer. Every value is of a process of its own; the variants take turns.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import benchmarks.processes
from benchmarks.processes import REPO, ProcessError
from benchmarks.report import Metric
from benchmarks.results import Line, goal_table, heading, load_average

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE, WIDTH, K, NUM_TOKENS = 151_936, 256, 64, 2048
FEWER_TOKENS = (512, 1024)
"""At these ours is measured too: its peak must not depend on them."""

NAMES = {
    "formula": "dense formula",
    "trl": "TRL's generalised JSD, as forward KL",
    "liger": "Liger's fused JSD, as forward KL",
    "sparse": f"ours, sparse k = {K}",
    "dense": "ours, dense in chunks",
}
_TIMEOUT_S = 600.0


class Cost(NamedTuple):
    """What a loss and its gradients took."""

    seconds: float
    peak_bytes: int
    """The most memory beyond what stood before."""
    loss: float
    """Nats per token."""


def obstacles() -> dict[str, str]:
    """Return the variants that cannot be measured here, and why."""
    import torch

    found = {}
    if importlib.util.find_spec("trl") is None:
        found["trl"] = "trl is not installed"
    if not torch.cuda.is_available():
        found["liger"] = "Liger runs on a GPU"
    elif importlib.util.find_spec("liger_kernel") is None:
        found["liger"] = "liger_kernel is not installed"
    return found


def measure(repeats: int = 5, *, num_tokens: int = NUM_TOKENS) -> list[Line]:
    """Return the lines of the table; ratios are of runs that took turns.

    Raises:
        ProcessError: A variant failed, or computes another loss than the dense formula.
    """
    fewer = [num_tokens * tokens // NUM_TOKENS for tokens in FEWER_TOKENS]
    left_out = obstacles()
    cases = [(variant, num_tokens) for variant in NAMES if variant not in left_out]
    cases += [(variant, tokens) for variant in ("sparse", "dense") for tokens in fewer]
    costs: dict[tuple[str, int], list[Cost]] = {case: [] for case in cases}
    for repeat in range(repeats):
        # Who goes first alternates: the pace of a machine drifts.
        for variant, tokens in cases if repeat % 2 == 0 else cases[::-1]:
            cost = _in_a_process(variant, tokens)
            costs[variant, tokens].append(cost)
            said = f"kernel, {tokens:,} tokens, {NAMES[variant]}, {repeat + 1}"
            took = f"{cost.seconds:.2f} s, {cost.peak_bytes / 2**30:.3f} GiB"
            print(f"{said}: {took}", file=sys.stderr, flush=True)
    _check_same_loss({v: costs[v, num_tokens][0].loss for v in NAMES if v not in left_out})
    return [*_ratios(costs, num_tokens), *_values(costs)]


def _in_a_process(variant: str, tokens: int) -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-kernel-") as folder:
        benchmarks.processes.measure(
            ["-m", "benchmarks.kernel", "--once", variant, "--tokens", str(tokens)],
            folder=Path(folder),
            environment=dict(os.environ)
            | {"PYTHONPATH": str(REPO), "TRL_EXPERIMENTAL_SILENCE": "1"},
            timeout_s=_TIMEOUT_S,
        )
        lines = Path(folder, "output.txt").read_text("utf-8").splitlines()
        return Cost(**json.loads(lines[-1]))


def _check_same_loss(losses: Mapping[str, float]) -> None:
    """Raise when a dense variant is not another way to the same number."""
    for variant, loss in losses.items():
        if variant != "sparse" and not math.isclose(loss, losses["formula"], rel_tol=1e-4):
            raise ProcessError(f"the variants do not compute the same loss: {dict(losses)}.")


def _ratios(costs: Mapping[tuple[str, int], list[Cost]], num_tokens: int) -> list[Line]:
    """Return how ours compares with the others, and with itself at fewer tokens."""
    case = f"loss kernel, {num_tokens:,} tokens, vocabulary {VOCAB_SIZE:,}"

    def line(
        what: str, goal: float | None, over: str, under: str, tokens: int, digits: int
    ) -> Line:
        field = "peak_bytes" if what == "peak memory" else "seconds"
        of = "the same" if over == under else NAMES[under]
        if tokens != num_tokens:
            of += f" at {tokens:,} tokens"
        name = f"{NAMES[over]}: {what} over {of}"
        pairs = zip(costs[over, num_tokens], costs[under, tokens], strict=True)
        ratios = [getattr(one, field) / getattr(other, field) for one, other in pairs]
        return Line(case, Metric(name, goal=goal, digits=digits), ratios)

    lines = [
        line("peak memory", 1 / 20, "sparse", "formula", num_tokens, 3),
        line("time", 0.6, "sparse", "formula", num_tokens, 2),
        line("peak memory", 1 / 8, "dense", "formula", num_tokens, 3),
        line("time", 1.1, "dense", "formula", num_tokens, 2),
    ]
    for other in ("trl", "liger"):
        if (other, num_tokens) in costs:
            lines += [
                line(what, None, ours, other, num_tokens, digits)
                for ours in ("sparse", "dense")
                for what, digits in (("peak memory", 3), ("time", 2))
            ]
    # What grows are the hidden states' gradient and three numbers a token.
    fewest = min(tokens for _, tokens in costs)
    return lines + [
        line("peak memory", 1.05, ours, ours, fewest, 3) for ours in ("sparse", "dense")
    ]


def _values(costs: Mapping[tuple[str, int], list[Cost]]) -> list[Line]:
    lines = []
    for (variant, tokens), found in costs.items():
        case = f"loss kernel, {tokens:,} tokens"
        gib = [cost.peak_bytes / 2**30 for cost in found]
        lines += [
            Line(case, Metric(f"{NAMES[variant]}, s", digits=2), [cost.seconds for cost in found]),
            Line(case, Metric(f"{NAMES[variant]}, peak GiB", digits=3), gib),
        ]
    return lines


# -- One measurement --------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """Student and teacher of random numbers. N = tokens, V = vocabulary, D = width."""

    hidden_ND: "Tensor"
    weight_VD: "Tensor"
    teacher_ND: "Tensor"
    teacher_VD: "Tensor"
    labels_N: "Tensor"
    targets: Any


def _inputs(num_tokens: int, vocab_size: int) -> _Inputs:
    import torch

    from benchmarks.synthetic import random_targets
    from distillery.objectives.divergence import SparseTargets

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    stored = random_targets(num_tokens, vocab_size=vocab_size, k=K, spread="even", seed=0)
    ids_NK, log_p_NK, rest_N = (torch.from_numpy(column).to(device) for column in stored)
    shape, scale = (vocab_size, WIDTH), WIDTH**-0.5
    return _Inputs(
        torch.randn(num_tokens, WIDTH, device=device).requires_grad_(),
        torch.randn(shape, device=device).mul_(scale).requires_grad_(),
        torch.randn(num_tokens, WIDTH, device=device),
        torch.randn(shape, device=device).mul_(scale),
        torch.randint(vocab_size, (num_tokens,), device=device),
        SparseTargets(ids_NK.long(), log_p_NK, rest_N),
    )


def _logits(inputs: _Inputs) -> tuple["Tensor", "Tensor"]:
    """Return all logits of student and teacher."""
    import torch

    with torch.no_grad():
        teacher_NV = inputs.teacher_ND @ inputs.teacher_VD.T
    return inputs.hidden_ND @ inputs.weight_VD.T, teacher_NV


def _formula(inputs: _Inputs) -> "Tensor":
    from torch.nn import functional

    student_NV, teacher_NV = _logits(inputs)
    log_q_NV, log_p_NV = student_NV.log_softmax(1), teacher_NV.log_softmax(1)
    total = functional.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)
    return total / len(inputs.labels_N)


def _trl(inputs: _Inputs) -> "Tensor":
    from trl.experimental.gkd import GKDTrainer

    # Of one row: TRL divides by rows where it is given no labels.
    student_1NV, teacher_1NV = (logits_NV[None] for logits_NV in _logits(inputs))
    total: Tensor = GKDTrainer.generalized_jsd_loss(student_1NV, teacher_1NV, beta=0)
    return total / len(inputs.labels_N)


def _liger(inputs: _Inputs) -> "Tensor":
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    loss: Tensor = fused(*inputs[:5])
    return loss


def _ours(inputs: _Inputs, variant: str) -> "Tensor":
    from distillery.models.head import Head
    from distillery.objectives.losses import DenseTargets, response_losses
    from schemas.objectives import SoftTargets

    teacher = DenseTargets(inputs.teacher_ND, Head(inputs.teacher_VD))
    return response_losses(
        inputs.hidden_ND,
        Head(inputs.weight_VD),
        inputs.labels_N,
        vocab_size=len(inputs.weight_VD),
        normaliser=len(inputs.labels_N),
        soft=SoftTargets(soft_weight=1, hard_weight=0),
        targets=inputs.targets if variant == "sparse" else teacher,
    ).loss


_LOSSES: dict[str, Callable[[_Inputs], "Tensor"]] = {
    "formula": _formula,
    "trl": _trl,
    "liger": _liger,
    "sparse": lambda inputs: _ours(inputs, "sparse"),
    "dense": lambda inputs: _ours(inputs, "dense"),
}


def measure_once(variant: str, num_tokens: int, vocab_size: int = VOCAB_SIZE) -> Cost:
    """Return what one loss took in this process, which must not have computed another before."""
    import torch

    has_gpu = torch.cuda.is_available()
    # On a GPU at full size: what is compiled or tuned there depends on the sizes.
    warm_up = (num_tokens, vocab_size) if has_gpu else (8, 1000)
    _LOSSES[variant](_inputs(*warm_up)).backward()
    inputs = _inputs(num_tokens, vocab_size)
    if has_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, began = _peak_bytes(has_gpu), time.perf_counter()
    loss = _LOSSES[variant](inputs)
    loss.backward()
    if has_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Cost(seconds, _peak_bytes(has_gpu) - before, loss.item())


def _peak_bytes(has_gpu: bool) -> int:
    """Return the most memory that was in use since the process began, or its GPU's was reset."""
    if has_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Print the table, or what one loss took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", choices=NAMES, help="measure one variant, print JSON")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(measure_once(arguments.once, arguments.tokens)._asdict()))
        return
    began, load = time.monotonic(), load_average()
    lines = measure(arguments.repeats, num_tokens=arguments.tokens)
    minutes = (time.monotonic() - began) / 60
    print("\n".join(heading("Loss kernel", "benchmarks.kernel", load=load, minutes=minutes)))
    print(goal_table(lines))
    for variant, reason in obstacles().items():
        print(f"\n- {NAMES[variant]}: left out, {reason}.")


if __name__ == "__main__":
    main()
