"""`distillery ledger`: what is in the ledger, and how it gets out of it."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from distillery.ledger import Ledger, SentBatch, SentRequest
from schemas.execution import StoreSpec
from tests.fixtures_ledger import commit, row

OTHER = {"kind": "openai", "provider": "vllm", "model": "other/model", "weights": None}
PROMPTS = ("old", "new", "answered")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ledger", *arguments])


def printed(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def place(spec: StoreSpec) -> list[str]:
    return ["--root", spec.root] if spec.ledger_url is None else ["--ledger-url", spec.ledger_url]


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    commit(
        ledger,
        row("old", created_at=time.time() - 86_400 * 31),
        row("new"),
        row("answered", text="Dear Łukasz"),
        row("a", identity=OTHER),
    )
    return ledger


def left(ledger: Ledger) -> set[str]:
    there = ledger.get([row(prompt).request_hash for prompt in PROMPTS])
    return {prompt for prompt in PROMPTS if row(prompt).request_hash in there}


def test_rows_are_counted_then_removed_on_both_databases(
    filled: Ledger, ledger_spec: StoreSpec
) -> None:
    where = place(ledger_spec)
    table = printed("stats", *where)
    assert "owner/name" in table and "3 ok" in table and "0.75 USD" in table
    asked = ("purge", "--older-than", "30d", *where)
    assert printed(*asked) == "would remove 1 row; add --yes to remove them for good\n"
    assert left(filled) == {"old", "new", "answered"}
    assert printed(*asked, "--yes") == "removed 1 row\n"
    assert left(filled) == {"new", "answered"}
    hashes = [f"--prompt-hash={row(name).prompt_hash}" for name in ("new", "answered")]
    assert printed("purge", *hashes, "--contains", "Dear", "--yes", *where) == "removed 1 row\n"
    assert left(filled) == {"new"}


def test_stats_of_an_empty_ledger_say_so(ledger_spec: StoreSpec, ledger: Ledger) -> None:
    assert printed("stats", *place(ledger_spec)) == "the ledger has no rows yet\n"


def test_recipe_names_the_store_and_looking_at_it_makes_nothing(tmp_path: Path) -> None:
    raw = Path("recipes/demo.yaml").read_text()
    assert "\nstore:" not in raw
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{raw}\nstore:\n  root: {tmp_path / 'store'}\n")
    done = run("stats", "--recipe", str(recipe))
    assert done.exit_code == 1
    assert f"there is no ledger '{tmp_path / 'store' / 'ledger.sqlite'}'" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y"])
def test_age_without_a_unit_is_refused(age: str) -> None:
    done = run("purge", f"--older-than={age}")
    assert done.exit_code == 1
    assert f"{age!r} is not an age. Write 12h, 30d or 8w." in done.stderr


def test_purge_without_a_criterion_is_refused() -> None:
    done = run("purge", "--yes")
    assert done.exit_code == 1
    assert "Give one of --teacher" in done.stderr


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:hunter2@127.0.0.1:1/x", "mysql://me:hunter2@db/x", "hunter2"]
)
def test_errors_are_one_line_without_the_password(url: str) -> None:
    done = run("stats", "--ledger-url", url)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1 and "Error: " in done.stderr
    assert "hunter2" not in done.output


def test_batches_are_listed_and_can_be_forgotten(ledger: Ledger, ledger_spec: StoreSpec) -> None:
    assert "no batch is waited for" in printed("batches", *place(ledger_spec))
    batch = SentBatch("key", None, "http://here/v1", 2, 1_700_000_000.0)
    ledger.batches.begin(batch, {"a": SentRequest("{}", 1), "b": SentRequest("{}", 1)})
    ledger.batches.submitted("key", "batch_7")
    ledger.batches.settle(["a"])
    shown = printed("batches", *place(ledger_spec))
    assert "batch_7" in shown and "2023-11-14 22:13" in shown
    wrong = run("batches", "--forget", "batch_8", *place(ledger_spec))
    assert wrong.exit_code == 1 and "no batch 'batch_8' is noted" in wrong.stderr
    assert "1 requests are asked" in printed("batches", "--forget", "batch_7", *place(ledger_spec))
    assert ledger.batches.all() == []
