"""A model leaves the store, and nothing but a model makes way for it."""

from pathlib import Path

import pytest

from distillery.storage.export import export_model
from distillery.storage.store import Store
from schemas.errors import RecipeError
from schemas.execution import StoreSpec
from schemas.refs import ModelRef


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ModelRef, StoreSpec]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"new": true}')
    store = StoreSpec(root=str(tmp_path / "store"))
    Store(store.root).upload("train/model", source)
    return ModelRef(uri="train/model", fingerprint="0", num_parameters=1), store


def test_an_exported_model_takes_the_place_of_the_one_before(
    tmp_path: Path, stored: tuple[ModelRef, StoreSpec]
) -> None:
    target = tmp_path / "models" / "teacher"
    export_model(stored[0], str(target), stored[1])
    (target / "left-over.safetensors").write_text("old")
    export_model(stored[0], str(target), stored[1])
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in target.parent.iterdir()] == ["teacher"]


def test_an_export_deletes_nothing_but_a_model(
    tmp_path: Path, stored: tuple[ModelRef, StoreSpec]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "home", tmp_path / "home" / "thesis.txt"):
        with pytest.raises(
            RecipeError, match=r"other than a model, .*Name a new folder under 'output'"
        ):
            export_model(stored[0], str(place), stored[1])
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
