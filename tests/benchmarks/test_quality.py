"""What students learn by each objective is measured as said, and the tables count right."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gains
from benchmarks.gains import Learnts, table
from benchmarks.processes import REPO
from benchmarks.quality import HARD, SETTINGS, WAYS, lock
from benchmarks.school import Cost, Learnt
from schemas.recipe import Recipe, load_recipe
from schemas.student import PrunedStudent

TITLES = {name: way.title for name, way in WAYS.items()}


def learnt(*shares: float, steps: int = 10, before: int = 0) -> Learnts:
    return {seed: Learnt(share, 0.9, steps, before) for seed, share in enumerate(shares)}


def cells(found: dict[str, Learnts], costs: dict[str, Cost], row: int) -> list[str]:
    line = table(found, costs, TITLES, HARD, "accuracy").splitlines()[2 + row]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_examples_of_docstrings_hold() -> None:
    found = doctest.testmod(gains)
    assert found.attempted > 0 and found.failed == 0


def test_differences_between_objectives_are_paired_by_seed() -> None:
    found = {"hard": learnt(0.50, 0.70), "soft": learnt(0.52, 0.73)}
    row = cells(found, {}, 1)
    # The seeds are far apart, what the objectives differ by is not.
    assert row[5:7] == ["62.5 ± 133.4", "+2.5 ± 6.4"]


def test_a_difference_without_0_in_its_interval_is_bold() -> None:
    found = {"hard": learnt(0.50, 0.70, 0.60), "soft": learnt(0.52, 0.72, 0.62)}
    assert cells(found, {}, 1)[6] == "**+2.0 ± 0.0**"


def test_seeds_that_one_of_two_has_not_learnt_yet_do_not_count() -> None:
    found = {"hard": learnt(0.50, 0.70), "soft": learnt(0.52, 0.72, 0.99)}
    assert cells(found, {}, 1)[1] == "3"
    assert cells(found, {}, 1)[9] == "52.0, 72.0, 99.0"
    assert cells(found, {}, 1)[6] == "**+2.0 ± 0.0**"


def test_at_equal_time_the_rival_is_the_next_longer_training_on_hard_targets() -> None:
    found = {
        "hard": learnt(0.50, 0.50),
        "hard-2": learnt(0.60, 0.60, steps=20),
        "soft": learnt(0.55, 0.55),
        "attention": learnt(0.55, 0.55),
        "on-policy": learnt(0.55, 0.55, steps=5, before=10),
    }
    costs = {"hard": Cost(1.0, 2**30), "hard-2": Cost(1.0, 2**30), "soft": Cost(1.08, 2**31)}
    costs |= {"attention": Cost(2.5, 2**30), "on-policy": Cost(2.0, 2**30)}
    assert cells(found, costs, 0)[2:5] == ["1,000 ms", "1.0 GiB", "1.0 x"]
    assert cells(found, costs, 2)[2:5] == ["1.08 x", "2.00 x", "1.1 x"]
    assert cells(found, costs, 2)[7] == "**+5.0 ± 0.0** (1 x)"
    assert cells(found, costs, 3)[7] == "-"  # no hard targets were learnt for as long
    assert cells(found, costs, 4)[4] == "2.0 x"  # ten steps on hard targets before its own five
    assert cells(found, costs, 4)[7] == "**-5.0 ± 0.0** (2 x)"


def test_what_is_compared_differs_and_recipes_can_be_read() -> None:
    assert len(set(map(repr, WAYS.values()))) == len(WAYS)
    assert set(HARD) < set(WAYS)
    for setting in SETTINGS:
        recipe = load_recipe(REPO / setting.recipe, setting.overrides, Recipe)
        assert isinstance(recipe.student, PrunedStudent) == (setting.teacher is not None)


def test_a_model_or_data_set_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == "banking77-9")
    monkeypatch.setenv("DISTILLERY_GEMMA", str(tmp_path / "model"))
    monkeypatch.setenv("DISTILLERY_DATA", str(tmp_path))
    assert "model/config.json" in (setting.obstacle() or "")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert "banking77/train.csv" in (setting.obstacle() or "")
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "train.csv").touch()
    assert setting.obstacle() is None


def test_a_student_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    from filelock import Timeout

    file = tmp_path / "seed.lock"
    with lock(file), pytest.raises(Timeout), lock(file, blocking=False):
        pass


@pytest.mark.slow
def test_the_quality_of_one_objective_is_measured_from_a_recipe(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.quality", "--settings=demo-few", "--seeds=1"]
    command += ["--objectives=hard", f"--store={tmp_path}", f"--output={tmp_path / 'q.md'}"]

    def report(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, *command, *more],
            cwd=REPO, capture_output=True, text=True, timeout=1200, check=True,
        )  # fmt: skip
        return done.stdout

    said = report()
    row = next(line for line in said.splitlines() if line.startswith("| hard targets"))
    accuracy = float(row.split("|")[6])
    assert 40 < accuracy < 90
    assert "360 responses, 2,880 tokens" in said
    assert row in report("--report-only")
