"""`distillery gate simulate` prints how often a recipe's gate errs."""

import re
from pathlib import Path

import pytest
import yaml

from cli.gate import simulate_gate
from schemas.errors import RecipeError
from tests.fixtures_recipe import SHORTEST


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    few = {"bootstrap_samples": 100}
    path.write_text(yaml.safe_dump(SHORTEST | {"evaluation": few}))
    return str(path)


def printed(
    capsys: pytest.CaptureFixture[str], recipe: str, *overrides: str, rows: tuple[int, ...] = (100,)
) -> str:
    simulate_gate(
        recipe,
        overrides,
        rows=rows,
        teacher=0.9,
        correlation=0.5,
        champion=None,
        num_simulations=40,
    )
    return capsys.readouterr().out


def test_a_worse_student_is_held_back_and_a_good_one_promoted(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    text = printed(capsys, recipe, rows=(1000,))
    assert "1,000 rows" in text
    assert "0.92 (the bound)" in text and "+0 points" in text
    (worse,) = re.findall(r"0\.88 .*", text)
    (good,) = re.findall(r"0\.98 .*", text)
    rates = [[float(rate) for rate in re.findall(r"([\d.]+) %", line)] for line in (worse, good)]
    assert rates[0] == [0] and rates[1][0] > 95
    assert re.search(r"promoted in 4 of 5 from about [\d,]+ test rows on", text)


def test_what_is_not_simulated_is_said(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    overrides = ("task.type=qa", "gate.max_latency_ratio=0.1", "gate.max_loss_to_champion=null")
    text = printed(capsys, recipe, *overrides)
    assert (
        "Taken to hold: gate.min_gain, gate.min_lead_over_majority, gate.max_latency_ratio, "
        "gate.regressions_against." in text
    )
    assert "F1 is simulated as right or wrong" in text
    assert "champion" not in text.split("regressions_against")[1].replace(
        "there is no champion", ""
    )


@pytest.mark.parametrize("champion", [-1.0, 1.5])
def test_a_champion_that_cannot_be_is_refused_and_not_left_out(
    recipe: str, champion: float
) -> None:
    with pytest.raises(RecipeError, match=f"a champion that keeps {champion:g} of a teacher"):
        simulate_gate(
            recipe,
            [],
            rows=(100,),
            teacher=0.9,
            correlation=0.5,
            champion=champion,
            num_simulations=40,
        )
