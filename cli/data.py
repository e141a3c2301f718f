"""The verbs of `distillery data`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cli.console import console
from distillery.filters.rejected import (
    RejectedRow,
    first_rows,
    newest_rejected,
    rejected_rows,
    restored,
)
from distillery.storage.store import Store
from schemas.recipe import GenerationRecipe, load_recipe
from schemas.refs import DatasetRef

_TABLE_COLUMNS = 120
_SHOWN = 200  # characters of a text


def print_rejected(
    target: str,
    overrides: Sequence[str],
    *,
    reason: str | None,
    filter: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the rows that filters dropped, the first ``limit`` of them, and how many there are."""
    refs, store, _ = _rejected(target, overrides)
    rows, total = first_rows(rejected_rows(refs, store, reason=reason, filter=filter), limit)
    if as_json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row), ensure_ascii=False))
        return
    out = console(_TABLE_COLUMNS)
    if not rows:
        out.print("no row was rejected" if reason is filter is None else "no such row was rejected")
        return
    out.print(_table(rows))
    more = "" if total == len(rows) else f"; --limit {total} shows all"
    out.print(f"{len(rows):,} of {total:,} rejected rows{more}. Let one pass: --restore ID")


def print_restored(target: str, overrides: Sequence[str], prompt_ids: Sequence[str]) -> None:
    """Print what the recipe has to say for rows to pass in every run from the next one on."""
    refs, store, before = _rejected(target, overrides)
    names = restored(prompt_ids, refs, store, before)
    out = console(_TABLE_COLUMNS)
    rows = "1 row passes" if len(names) == 1 else f"{len(names):,} rows pass"
    out.print(f"{rows} with this in the recipe, in every run from the next one on:\n")
    print("filters:\n  restore:")
    for name in names:
        print(f"    - {json.dumps(name, ensure_ascii=False)}")


def _rejected(target: str, overrides: Sequence[str]) -> tuple[list[DatasetRef], Store, list[str]]:
    """Return the rejected rows of a recipe or of a store, that store, and what is restored."""
    if Path(target).is_dir() or "://" in target:
        store = Store(target)
        return newest_rejected(store), store, []
    recipe = load_recipe(target, overrides, GenerationRecipe)
    return _rejected_by_recipe(recipe), Store(recipe.store.root), list(recipe.filters.restore)


def _rejected_by_recipe(recipe: GenerationRecipe) -> list[DatasetRef]:
    """Return the rejected rows of the filter stages that a run of ``recipe`` has finished.

    The prompts are loaded, validated and filtered as a run would do it, which is quick where it
    has been done; nobody is asked anything.

    Raises:
        InputDataError: The prompts cannot be used.
        RecipeError: The recipe asks for something that cannot be done.
    """
    from distillery.data.loading import load_prompts
    from distillery.data.validation import prompt_set, validate_prompts
    from distillery.filters.prompts import filter_prompts
    from distillery.filters.responses import response_filtering_stage
    from distillery.logs.stage import read_logs
    from distillery.storage.stage import find_stage
    from distillery.teacher.generation import generation_stage

    task, data, store, execution = recipe.task, recipe.data, recipe.store, recipe.execution
    sources = read_logs(data, store, execution)
    loaded = load_prompts(task, sources, store, execution).dataset("prompts")
    valid = prompt_set(validate_prompts(loaded, task, data, store, execution))
    filtered = filter_prompts(valid, task, recipe.filters, store, execution)
    prompts, found = filtered.dataset("prompts"), [filtered.dataset("rejected")]
    answered = find_stage(generation_stage(prompts, recipe.teacher, task), store, execution)
    if answered is not None:
        stage = response_filtering_stage(
            answered.dataset("responses"), prompts, task, recipe.filters
        )
        if made := find_stage(stage, store, execution):
            found.append(made.dataset("rejected"))
    return found


def _table(rows: Sequence[RejectedRow]) -> Table:
    table = Table()
    table.add_column("id", overflow="fold")
    for name in ("filter", "reason", "what was seen", "prompt", "response"):
        table.add_column(name)
    for row in rows:
        response = "(not asked)" if row.response is None else _cut(row.response)
        texts = (row.prompt_id, row.filter, row.reason, row.detail, _cut(row.prompt), response)
        table.add_row(*map(escape, texts))
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
