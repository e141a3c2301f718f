"""A fingerprint changes exactly when something changes that can change the result."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from distillery.storage.fingerprint import (
    canonical_json,
    model_identity,
    sha256,
    tokenizer_identity,
)
from distillery.storage.stage import Stage
from schemas.base import versioned
from schemas.data import DataSpec, FileSource, HubSource
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.examples import FixedExamples, NearestExamples
from schemas.execution import StageName
from schemas.filters import FilterSpec, LengthFilter, RefusalFilter
from schemas.gate import GateSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.prompt_filters import (
    DecontaminationFilter,
    DiversityFilter,
    EmbeddingModel,
    LanguageFilter,
    NearDuplicateFilter,
    PiiFilter,
)
from schemas.student import FromScratchStudent, PretrainedStudent
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import FullMethod, LoraMethod, TrainingSpec

TEST_ROWS = FileSource(path="test.jsonl")
SPECS: list[BaseModel] = [
    TaskSpec(name="t", type="classification"),
    LabelSet(labels=("a", "b")),
    RegexFormat(pattern="a+"),
    JsonFormat(json_schema={"type": "object"}),
    DataSpec(test=TEST_ROWS),
    TEST_ROWS,
    HubSource(dataset="o/d", revision="0" * 40, split="train"),
    TransformersTeacher(model="teacher"),
    OpenAITeacher(model="teacher", base_url="http://host/v1"),
    FixedExamples(),
    NearestExamples(),
    PretrainedStudent(model="student"),
    FromScratchStudent(
        num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, tokenizer="tokenizer"
    ),
    TrainingSpec(),
    LoraMethod(),
    HardTargets(),
    SoftTargets(),
    FilterSpec(),
    LengthFilter(),
    RefusalFilter(),
    DecontaminationFilter(),
    NearDuplicateFilter(),
    DiversityFilter(embedding=EmbeddingModel(model="encoder"), keep=9),
    EmbeddingModel(model="encoder"),
    PiiFilter(),
    LanguageFilter(languages=("en",)),
    EvaluationSpec(),
    GateSpec(),
]

# What cannot change a result, said here a second time: a field that wanders from one side to the
# other costs either a stale student or a needless training.
RUNTIME_FIELDS = {
    "DataSpec.max_invalid_fraction",
    "FileSource.path",
    "TransformersTeacher.batch_size",
    "TransformersTeacher.device",
    "OpenAITeacher.base_url",
    "OpenAITeacher.batch",
    "OpenAITeacher.api_key_env",
    "OpenAITeacher.concurrency",
    "OpenAITeacher.timeout_s",
    "OpenAITeacher.max_attempts",
    "OpenAITeacher.max_tokens_field",
    "OpenAITeacher.requests_per_minute",
    "OpenAITeacher.tokens_per_minute",
    "OpenAITeacher.max_outage_s",
    "OpenAITeacher.price",
    "OpenAITeacher.budget",
    "OpenAITeacher.api_key_secret",
    "OpenAITeacher.declared",
    "EmbeddingModel.model",
    "EmbeddingModel.revision",
    "EmbeddingModel.device",
    "TrainingSpec.micro_batch_size",
    "TrainingSpec.batching",
    "TrainingSpec.num_processes",
    "TrainingSpec.parallelism",
    "TrainingSpec.gradient_checkpointing",
    "TrainingSpec.device",
    "EvaluationSpec.batch_size",
    "EvaluationSpec.machine_price",
    "EvaluationSpec.canaries",
    "PretrainedStudent.chat_template",
    "FromScratchStudent.chat_template",
}

# Values other than the present one, where the type alone does not give one that is valid.
OTHER_VALUES: dict[str, Any] = {
    "TaskSpec.name": "u",
    "TaskSpec.answer_format": LabelSet(labels=("a", "b")),
    "DataSpec.prompt_template": "{question}",
    "DiversityFilter.embedding": EmbeddingModel(model="encoder", max_length=8),
    "DataSpec.test": FileSource(path="test.jsonl", max_rows=5),
    "FileSource.encoding": "latin-1",
    "FileSource.label_map": {"0": "refund"},
    "HubSource.label_map": {"0": "refund"},
    "TransformersTeacher.chat_template_kwargs": {"enable_thinking": False},
    "PretrainedStudent.chat_template_kwargs": {"enable_thinking": False},
    "FromScratchStudent.chat_template_kwargs": {"enable_thinking": False},
    "FilterSpec.prompts": (),
    "FilterSpec.responses": (LengthFilter(),),
    "DiversityFilter.keep": 0.5,
    "LanguageFilter.languages": ("de",),
    "PiiFilter.entities": ("URL",),
    "PiiFilter.language": "de",
    "FromScratchStudent.num_heads": 4,
    "FromScratchStudent.hidden_size": 32,
    "TrainingSpec.method": LoraMethod(),
    "TrainingSpec.objective": SoftTargets(k=8),
    "SoftTargets.jsd_beta": 0.25,
    "SoftTargets.skew_alpha": 0.25,
    "SoftTargets.panel": ({"name": "b", "teacher": {"kind": "transformers", "model": "b"}},),
    "TransformersTeacher.samples": {"num_samples": 1, "choice": {"kind": "label"}},
    "OpenAITeacher.samples": {"num_samples": 1, "choice": {"kind": "label"}},
    "TransformersTeacher.examples": FixedExamples(),
    "OpenAITeacher.examples": NearestExamples(),
    "OpenAITeacher.extra_body": {"reasoning_effort": "low"},
    "OpenAITeacher.requests_per_minute": 60.0,
    "OpenAITeacher.tokens_per_minute": 60.0,
    "OpenAITeacher.price": {"prompt_per_million": 1.0, "completion_per_million": 2.0},
    "OpenAITeacher.budget": {"max_tokens": 5},
    "OpenAITeacher.api_key_secret": "secret-name",
    "FilterSpec.max_imbalance": 10.0,
    "RefusalFilter.languages": ("de",),
    "OpenAITeacher.declared": {"num_parameters": 1, "memory_gib": 1.0, "source": "card"},
    "JsonFormat.json_schema": {"type": "array"},
    "EvaluationSpec.concurrencies": (1, 8),
    "EvaluationSpec.judge": {"model": {"kind": "transformers", "model": "judge"}},
    "EvaluationSpec.machine_price": {"per_hour": 1.0, "source": "a bill"},
    "GateSpec.regressions_against": ("teacher",),
    "GateSpec.conditions": ({"kind": "quality", "at_least": 0.9},),
}


def _fields() -> Iterator[Any]:
    for spec in SPECS:
        for name in type(spec).model_fields:
            if name != "kind":
                yield pytest.param(spec, name, id=f"{type(spec).__name__}.{name}")


def _other(spec: BaseModel, name: str) -> Any:
    """Return a valid value for the field, other than the present one."""
    key = f"{type(spec).__name__}.{name}"
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    present, kind = getattr(spec, name), type(spec).model_fields[name].annotation
    options = [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [arm for arm in typing.get_args(kind) if arm is not type(None)]
    option = options[0]
    if typing.get_origin(option) is typing.Literal:
        return next(value for value in typing.get_args(option) if value != present)
    if isinstance(option, type) and issubclass(option, BaseModel):
        return option.model_validate({"id": "row"} if name == "columns" else present)
    if option is bool:
        return not present
    if option is int:
        return (present or 0) + 2
    if option is float:
        return 0.625 if present in (None, 0, 1) else present * 0.75
    if name == "revision":
        return "2" * 40
    if isinstance(option, type) and issubclass(option, str):
        return "nli" if name == "type" else f"{present or ''}x"
    if typing.get_origin(option) is tuple:
        return (*present, "x")
    return FileSource(path="more.jsonl")


@pytest.mark.parametrize(("spec", "name"), list(_fields()))
def test_fingerprint_changes_iff_the_field_can_change_the_result(
    spec: BaseModel, name: str
) -> None:
    value = _other(spec, name)
    extra = {"revision": "1" * 40} if name == "trust_remote_code" else {}
    before = type(spec).model_validate(spec.model_dump() | extra)
    after = type(spec).model_validate(spec.model_dump() | extra | {name: value})
    assert getattr(after, name) != getattr(before, name)
    is_runtime = f"{type(spec).__name__}.{name}" in RUNTIME_FIELDS
    assert (_fingerprint(before) == _fingerprint(after)) is is_runtime


def _fingerprint(spec: BaseModel) -> str:
    return Stage(StageName.LOAD_PROMPTS, 1, inputs={}, spec={"spec": spec}).fingerprint


def test_branches_of_a_union_never_share_a_fingerprint() -> None:
    assert _fingerprint(TrainingSpec(method=FullMethod())) != _fingerprint(
        TrainingSpec(method=LoraMethod())
    )


def test_a_runtime_field_inside_a_section_inside_a_list_is_left_out_too() -> None:
    here, there = [[{"data": DataSpec(test=FileSource(path=p))}] for p in ("a.csv", "b.csv")]
    assert versioned(here) == versioned(there)


@pytest.mark.parametrize(
    "change",
    [
        {"name": StageName.COMPARE_MODELS},
        {"logic_version": 2},
        {"inputs": {"a": "2"}},
        {"inputs": {"b": "1"}},
    ],
)
def test_stage_logic_and_inputs_are_in_the_fingerprint(change: dict[str, Any]) -> None:
    stage = Stage(StageName.LOAD_PROMPTS, 1, inputs={"a": "1"}, spec={})
    assert stage.fingerprint != dataclasses.replace(stage, **change).fingerprint


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def _backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _backwards(value[key]) for key in reversed(value)}
    return [_backwards(item) for item in value] if isinstance(value, list) else value


@given(_json)
def test_key_order_never_matters(value: Any) -> None:
    assert sha256(_backwards(value)) == sha256(value)


@given(_json)
def test_canonical_json_loses_nothing(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(_json, _json)
def test_different_values_have_different_hashes(one: Any, two: Any) -> None:
    assert (sha256(one) == sha256(two)) == (canonical_json(one) == canonical_json(two))


def test_a_lone_surrogate_is_hashed_as_it_is() -> None:
    assert sha256("\ud800") != sha256("\udfff")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def _identity(folder: Path) -> str:
    return model_identity(str(folder), None, role="student")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_every_file_that_decides_an_answer_is_in_a_folders_identity(
    folder: Path, name: str
) -> None:
    before = _identity(folder)
    (folder / name).write_text("something else")
    changed = _identity(folder)
    (folder / name).rename(folder / f"other-{name}")
    assert len({before, changed, _identity(folder)}) == 3


def test_the_same_files_elsewhere_are_the_same_model(folder: Path) -> None:
    before = _identity(folder)
    (folder / "README.md").write_text("words about it")
    moved = folder.rename(folder.with_name("moved"))
    assert _identity(moved) == before


def test_a_pinned_hub_model_is_identified_by_its_id_and_commit() -> None:
    one, two = (model_identity("o/m", digit * 40, role="teacher") for digit in "ab")
    assert one == "o/m@" + "a" * 40
    assert one != two


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "a" * 39, "A" * 40])
def test_a_hub_model_without_a_commit_hash_is_refused(revision: str | None) -> None:
    with pytest.raises(RecipeError, match=r"no pinned revision.*Set teacher\.revision"):
        model_identity("owner/model", revision, role="teacher")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/model", "~/nowhere", "gpt2", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str) -> None:
    with pytest.raises(RecipeError, match=r"neither an existing folder.*Correct student\.model"):
        model_identity(model, None, role="student")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no model in it"):
        _identity(tmp_path)


def test_a_tokenizer_is_named_by_its_folder(folder: Path) -> None:
    assert tokenizer_identity(str(folder)) == _identity(folder)
    with pytest.raises(
        RecipeError, match=r"student\.tokenizer 'o/m' is no existing folder\. A tok"
    ):
        tokenizer_identity("o/m")
