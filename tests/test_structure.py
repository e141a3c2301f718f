"""The floors of the house: who may import whom."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW_THE_TASKS = sorted([*ROOT.glob("distillery/**/*.py"), *ROOT.glob("schemas/**/*.py")])


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kept, 0 broken" in done.stdout


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the packages that a file imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", BELOW_THE_TASKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_neither_prefect_nor_vllm_nor_what_stands_above_it(path: Path) -> None:
    imported = set(_imported(ast.parse(path.read_text())))
    above = {"prefect", "vllm", "tasks", "flows", "cli"}
    if path.is_relative_to(ROOT / "schemas"):
        above |= {"distillery", "torch", "transformers", "duckdb", "great_expectations"}
    assert imported & above == set()


_HEAVY = ("torch", "transformers", "peft", "datasets", "great_expectations", "matplotlib")


def test_flows_load_without_the_heavy_parts_of_the_library() -> None:
    modules = [f"flows.{path.stem}" for path in (ROOT / "flows").glob("*.py")]
    modules += ["cli.app", "cli.ledger", "cli.runs", "cli.store"]
    assert _loaded(_HEAVY, modules) == "[]"


def test_help_loads_neither_prefect_nor_the_library() -> None:
    assert _loaded(("prefect", "distillery", "pydantic", "rich.table"), ["cli.app"]) == "[]"


def _loaded(of: Sequence[str], modules: Sequence[str]) -> str:
    """Return which modules ``of`` those named are there once ``modules`` are imported."""
    code = f"import sys, {', '.join(modules)}\nprint([m for m in {of} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
