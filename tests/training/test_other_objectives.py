"""Objectives of inner states and of another tokenizer, through whole trainings."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.models.local import LocalModel
from schemas.objectives import Attention, CrossTokenizer, HiddenStates, LayerPair, SoftTargets
from schemas.training import LoraMethod, TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import SCRATCH, Killed, School, die_at, same_weights, soft_training
from tests.stub_vllm import ASSISTANT, LOG_PROBS, StubVllm, save_tokenizer

OBJECTIVES: dict[str, Any] = {
    "hidden states": HiddenStates(projector=True),
    "relations": Attention(relation_heads=2),
    "averaged heads": Attention(match="averaged_heads"),
    "another tokenizer": CrossTokenizer(k=8),
}


def school_of(root: Path, folder: str, training: TrainingSpec) -> School:
    """Return a school whose student has a new tokenizer where that is what is learnt."""
    school = School(root, folder)
    if isinstance(training.objective, CrossTokenizer):
        school.student = SCRATCH
    return school


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "model", seed=3))


@pytest.fixture(params=list(OBJECTIVES.values()), ids=list(OBJECTIVES))
def training(request: pytest.FixtureRequest) -> TrainingSpec:
    return soft_training(objective=request.param)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_goes_on_with_the_very_same_losses(
    tmp_path: Path, folder: str, training: TrainingSpec
) -> None:
    school = school_of(tmp_path / "killed", folder, training)
    with pytest.raises(Killed):
        school.teach(training, on_progress=die_at(5))
    result = school.teach(training)
    assert result.manifest.facts["resumed_from_step"] == 4
    other = school_of(tmp_path / "other", folder, training)
    untouched = other.teach(training)
    assert result.manifest.facts["curve"] == untouched.manifest.facts["curve"]
    assert same_weights(school.weights(result), other.weights(untouched))


def test_what_is_learnt_falls_and_is_all_of_the_loss(
    tmp_path: Path, folder: str, training: TrainingSpec
) -> None:
    longer = training.model_copy(update={"epochs": 8.0})
    curve: Any = school_of(tmp_path, folder, longer).teach(longer).manifest.facts["curve"]
    validated = [entry for entry in curve if "eval_loss" in entry]
    assert validated[-1]["eval_loss"] < 0.9 * validated[0]["eval_loss"]
    for entry in validated:
        parts = sum(entry[f"eval_{name}"] * weight for name, weight in _weights(longer).items())
        assert entry["eval_loss"] == pytest.approx(parts, rel=1e-4)


def _weights(training: TrainingSpec) -> dict[str, float]:
    match training.objective:
        case HiddenStates() as spec:
            own = {"hidden_loss": spec.hidden_weight}
        case Attention() as spec:
            own = {"attention_loss": spec.attention_weight}
        case CrossTokenizer() as spec:
            own = {}
        case _:
            raise AssertionError(training.objective)
    return own | {"hard_loss": spec.hard_weight, "soft_loss": spec.soft_weight}


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_equal_one(
    tmp_path: Path, folder: str, training: TrainingSpec, parallelism: str
) -> None:
    def final_loss(root: str, **settings: Any) -> float:
        changed = training.model_copy(update=settings)
        curve: Any = school_of(tmp_path / root, folder, changed).teach(changed).manifest.facts
        return float([entry for entry in curve["curve"] if "loss" in entry][-1]["loss"])

    both = final_loss("two", num_processes=2, parallelism=parallelism)
    assert both == pytest.approx(final_loss("one"), rel=1e-3)


def test_adapters_learn_as_well(tmp_path: Path, folder: str, training: TrainingSpec) -> None:
    lora = training.model_copy(update={"method": LoraMethod(r=2, alpha=4)})
    school = school_of(tmp_path, folder, lora)
    assert school.teach(lora).model("model").num_parameters > 0


def test_what_is_compared_and_projected_is_part_of_the_memory_estimate(
    tmp_path: Path, folder: str
) -> None:
    def parts(spec: Any) -> dict[str, int]:
        training = soft_training(objective=spec, epochs=1.0)
        facts: Any = School(tmp_path / spec.kind, folder).teach(training).manifest.facts
        found: dict[str, int] = facts["preflight"]["memory_estimate_bytes"]
        return found

    beside = parts(SoftTargets(source="online"))
    projected = parts(HiddenStates(projector=True))
    learnt = 32 * 16  # one layer's map between the widths of student and teacher
    for name, each in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert projected[name] - beside[name] == each * learnt
    assert projected["teacher"] == beside["teacher"] > 4 * 2 * 16 * 32
    assert projected["layers compared"] > 0
    assert "layers compared" not in beside
    weights = parts(Attention(match="averaged_heads"))
    assert weights["layers compared"] > 0
    assert weights["activations"] > beside["activations"]
    assert weights["teacher"] > beside["teacher"]


K = 8


def _sorted_distance(log_p: Any, log_q: Any) -> float:
    """Return the distance of the K likeliest and of what is left, in float64."""
    best = []
    for each in (log_p, log_q):
        found = torch.as_tensor(each).double().exp().sort(descending=True).values
        best.append(torch.cat([found[:K], found[K:].sum()[None]]))
    return float((best[0] - best[1]).abs().sum())


def test_a_served_teacher_with_a_tokenizer_of_its_own_teaches(tmp_path: Path) -> None:
    """Its tokens are bytes, so that every token of the student begins where one of them does."""
    spec = CrossTokenizer(k=K, tokenizer=str(save_tokenizer(tmp_path / "tokenizer")))
    training = soft_training(objective=spec, epochs=8.0)
    school = School(tmp_path / "store", "nowhere")
    school.student = SCRATCH
    with StubVllm() as server:
        school.teacher = server.spec()
        result = school.teach(training)
        num_asked = len(server.completions)
        school.teach(training)
        assert len(server.completions) == num_asked == len(school.rows)
    curve: Any = result.manifest.facts["curve"]
    validated = [entry for entry in curve if "eval_loss" in entry]
    assert validated[-1]["eval_loss"] < 0.9 * validated[0]["eval_loss"]
    best = min(validated, key=lambda entry: entry["eval_loss"])
    assert best["eval_compared_fraction"] == 1

    model, tokenizer = school.load(result)
    distances = []
    for row in school.rows:
        if row["split"] != "validation":
            continue
        tokens = ChatFormat(tokenizer).row(json.loads(row["messages"]), row["response"])
        with torch.no_grad():
            log_q = model(torch.tensor([tokens.input_ids])).logits[0].log_softmax(-1)
        said = b""
        for at, label in enumerate(tokens.labels):
            if label != IGNORED:
                log_p = LOG_PROBS[said[-1] if said else ASSISTANT]
                distances.append(_sorted_distance(log_p, log_q[at - 1]))
                said += tokenizer.decode([label]).encode()
    assert best["eval_soft_loss"] == pytest.approx(sum(distances) / len(distances), rel=1e-3)


def test_trainings_beside_each_other_pay_for_the_teachers_probabilities_once(
    tmp_path: Path,
) -> None:
    spec = CrossTokenizer(k=K, tokenizer=str(save_tokenizer(tmp_path / "tokenizer")))
    school = School(tmp_path / "store", "nowhere")
    with StubVllm() as server, ThreadPoolExecutor(2) as threads:
        school.teacher = server.spec()
        one, two = threads.map(school.score, [soft_training(objective=spec)] * 2)
        assert one == two
        assert len(server.completions) == len(school.rows)


def _reads(bench: School, model: Any, tokenizer: Any) -> Iterator[tuple[Any, list[int]]]:
    """Yield the tokens of each validation row, and where a response token is predicted."""
    for row in bench.rows:
        if row["split"] == "validation":
            tokens = ChatFormat(tokenizer).row(json.loads(row["messages"]), row["response"])
            places = [at - 1 for at, label in enumerate(tokens.labels) if label != IGNORED]
            yield torch.tensor([tokens.input_ids]), places


def _best(result: Any) -> dict[str, float]:
    entries = [e for e in result.manifest.facts["curve"] if "eval_loss" in e]
    best: dict[str, float] = min(entries, key=lambda entry: entry["eval_loss"])
    return best


def test_with_one_tokenizer_every_token_is_compared_with_itself(
    tmp_path: Path, folder: str
) -> None:
    training = soft_training(objective=CrossTokenizer(k=K))
    school = School(tmp_path, folder)
    result = school.teach(training)
    best = _best(result)
    assert best["eval_compared_fraction"] == 1
    (model, tokenizer), teacher = school.load(result), LocalModel.load(folder, device="cpu").model
    distances = []
    for ids, places in _reads(school, model, tokenizer):
        with torch.no_grad():
            log_p, log_q = (m(ids).logits[0].log_softmax(-1) for m in (teacher, model))
        distances += [_sorted_distance(log_p[at], log_q[at]) for at in places]
    assert best["eval_soft_loss"] == pytest.approx(sum(distances) / len(distances), rel=2e-3)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_each_layer_learns_from_the_one_that_is_named_where_a_token_is_predicted(
    tmp_path: Path, distance: Any
) -> None:
    pairs = (LayerPair(student=0, teacher=1), LayerPair(student=1, teacher=2))
    teacher_folder = str(make_tiny_model(tmp_path / "deep", num_layers=4, seed=3))
    training = soft_training(objective=HiddenStates(distance=distance, layers=pairs))
    school = School(tmp_path / "store", teacher_folder)
    school.student = school.student.model_copy(update={"num_layers": 2, "hidden_size": 16})
    result = school.teach(training)
    model, tokenizer = school.load(result)
    teacher = LocalModel.load(teacher_folder, device="cpu").model
    of_pairs: list[float] = []
    for ids, places in _reads(school, model, tokenizer):
        for pair in pairs:
            h, g = (
                _output(each, layer, ids)[places].double()
                for each, layer in ((model, pair.student), (teacher, pair.teacher))
            )
            if distance == "mse":
                found = (h - g).square().sum(-1) / g.square().sum(-1)
            else:
                found = 1 - (h * g).sum(-1) / (h.norm(dim=-1) * g.norm(dim=-1))
            of_pairs += found.tolist()
    assert _best(result)["eval_hidden_loss"] == pytest.approx(
        sum(of_pairs) / len(of_pairs), rel=1e-3
    )


def _output(model: Any, layer: int, ids: Any) -> Any:
    """Return what a layer gives to the next, [T, D]."""
    seen: list[Any] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook = model.get_decoder().layers[layer].register_forward_hook(note)
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0][0]


_MEASURE = """
import sys
from pathlib import Path
import psutil
from pydantic import TypeAdapter
from distillery.models.hardware import process_peak_bytes
from schemas.frames import TrainingFrame
from schemas.objectives import Objective
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import ANSWERS, School, soft_training

root, spec = Path(sys.argv[1]), TypeAdapter(Objective).validate_json(sys.argv[2])


def teach(name, width, num_layers, times):
    teacher = make_tiny_model(
        root / name, hidden_size=width, num_layers=num_layers, max_length=512
    )
    school = School(root / f"store of {name}", str(teacher), num_train=8)
    rows = [row | {"response": times * ANSWERS[2]} for row in school.rows]
    school.training_rows = school._put("long", rows, TrainingFrame)
    sizes = {"hidden_size": width * 3 // 4, "num_layers": num_layers, "num_heads": 4}
    school.student = school.student.model_copy(update=sizes | {"max_length": 512})
    training = soft_training(objective=spec, epochs=1.0, evaluations=1, max_length=512)
    return school.teach(training).manifest.facts["preflight"]["memory_estimate_bytes"]["peak"]


teach("small", 32, 1, 1)  # libraries and kernels
before = psutil.Process().memory_info().rss
estimated = teach("large", 256, 4, 9)
print((process_peak_bytes() - before) / estimated)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [HiddenStates(projector=True), Attention(relation_heads=2), Attention(match="averaged_heads")],
    ids=["hidden states", "relations", "averaged heads"],
)
def test_real_steps_take_no_more_than_was_estimated_and_not_much_less(
    tmp_path: Path, spec: Any
) -> None:
    """Less, as what passes through the teacher is gone before the student's activations come."""
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), spec.model_dump_json()],
        cwd=Path(__file__).resolve().parents[2],
        # Otherwise glibc keeps what tensors gave back, and the peak is its own.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert 0.65 < float(ran.stdout.splitlines()[-1]) < 1.1
