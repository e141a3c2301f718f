"""The release gate: a Great Expectations suite over the training set, with Data Docs.

It looks at aggregates over all rows and at a stated sample of the rows. It fails closed: a suite
that cannot be evaluated releases nothing.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from distillery.data.card import Embed, make_card
from distillery.data.card_page import write_card
from distillery.data.journey import kept_tokens, read_steps
from distillery.storage.scratch import scratch_folder
from distillery.storage.sql import querying
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.card import DataCard
from schemas.errors import ReleaseError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec
from schemas.refs import DatasetRef, FilteredSet, PromptSet
from schemas.task import TaskSpec

_LOGIC_VERSION = 2
_SAMPLE_ROWS = 50_000

CARD_BOUNDS = ("min_distinct_2", "max_near_duplicates", "max_imbalance", "max_drift")
"""Fields of `filters` that bound figures of the data card."""

_DRIFT = "drift: "

_AGGREGATES = """
    SELECT
        count(*) AS num_rows,
        count(*) FILTER (split = 'train') AS num_train_rows,
        count(*) FILTER (split = 'validation') AS num_validation_rows,
        count(*) / {num_responses}::DOUBLE AS keep_fraction,
        count(*) - count(DISTINCT (split, prompt_id)) AS num_repeated_ids,
        max(length(response)) AS longest_response_chars
    FROM kept
"""


def release_dataset(
    filtered: FilteredSet,
    prompts: PromptSet,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    embed: Embed | None = None,
) -> StageResult:
    """Return `training_set`, the kept rows once the suite passes, `data_docs` and `data_card`.

    What is released last under a task's name is what the next set is compared with.

    Args:
        filtered: The rows that passed the filters, and why the others did not.
        prompts: What was answered; it leads to the files.
        task: Its labels, if any, are expected of every response.
        filters: Thresholds of the release.
        store: Where the rows are.
        execution: How the run is carried out.
        embed: Called for the vectors of prompts, where the recipe names an embedding model.

    Raises:
        ReleaseError: An expectation failed; the message names each with what was observed, and
            the Data Docs, which stay in the store.
    """
    kept = filtered.kept
    stage = Stage(
        StageName.RELEASE_DATASET,
        _LOGIC_VERSION,
        inputs={"kept": kept.fingerprint, "prompts": prompts.prompts.fingerprint},
        spec={
            "task": task,
            "min_keep_fraction": filters.min_keep_fraction,
            "min_train_rows": filters.min_train_rows,
            "card": {name: getattr(filters, name) for name in CARD_BOUNDS},
            "embedding": embed is not None,
        },
    )
    opened = Store(store.root)
    last_uri = f"released/{task.name}.json"

    def work(attempt: Attempt) -> None:
        raw = attempt.store.read_json(last_uri)
        card = make_card(
            kept,
            task_type(task),
            read_steps(prompts, filtered, attempt.store),
            kept_tokens(attempt.store.manifest_of(kept)),
            None if raw is None else DataCard.model_validate(raw),
            attempt.store,
            embed=embed,
        )
        counted, sample = _read(attempt.store, kept, filtered.num_responses)
        aggregates = {**counted, **card_aggregates(card)}
        attempt.counts["rows"] = kept.num_rows
        attempt.counts["sampled_rows"] = len(sample)
        with scratch_folder("gx") as scratch:
            result = _validate(aggregates, sample, task, filters, scratch)
            docs = scratch / "gx" / "uncommitted" / "data_docs" / "local_site"
            if result["failures"]:
                place = _keep_failed_docs(attempt.store, stage, docs)
                reasons = filtered.drop_reasons
                raise ReleaseError(_refusal(result["failures"], aggregates, reasons, place))
            attempt.add_folder("data_docs", docs)
            attempt.add_folder("data_card", write_card(card, scratch / "card"))
        attempt.facts["expectations"] = result["num_expectations"]
        attempt.facts["aggregates"] = {**aggregates}
        attempt.facts["compared_with"] = card.compared_with
        # The rows are the filters' own: another threshold must not train the student again.
        attempt.outputs["training_set"] = kept

    result = run_stage(stage, store, execution, work)
    _note_released(result, opened, last_uri)
    return result


def _note_released(result: StageResult, store: Store, uri: str) -> None:
    """Keep the card of what was released last, whether it was made now or is used again."""
    card = store.read_bytes(f"{result.report('data_card').uri}/card.json")
    if card is not None and card != store.read_bytes(uri):
        store.write_bytes(uri, card)


def _read(
    store: Store, kept: DatasetRef, num_responses: int
) -> tuple[dict[str, float], pd.DataFrame]:
    """Return the aggregates over all rows, and a repeatable sample of them."""
    with querying(store, kept=kept) as sql:
        row = sql.sql(_AGGREGATES.format(num_responses=max(1, num_responses))).df()
        sample = sql.sql(
            "SELECT split, prompt_id, messages, response FROM kept "
            f"USING SAMPLE reservoir({_SAMPLE_ROWS} ROWS) REPEATABLE (0)"
        ).df()
    return {str(k): float(v) for k, v in row.fillna(0).iloc[0].items()}, sample


def card_aggregates(card: DataCard) -> dict[str, float | None]:
    """Return the figures of a card that a release can be bound to; None: could not be computed."""
    return {
        "distinct_2 of prompts": card.prompts.distinct["2"],
        "near_duplicates of prompts": card.prompts.near_duplicates,
        **{f"imbalance of {name}": ratio for name, ratio in card.imbalance.items()},
        **{f"{_DRIFT}{shift.figure}": shift.divergence for shift in card.drift},
    }


def card_bounds(
    aggregates: Mapping[str, float | None], filters: FilterSpec
) -> dict[str, dict[str, float]]:
    """Return the bounds that the recipe sets, by aggregate; drift has none in a first release."""
    found: dict[str, dict[str, float]] = {}
    for column in aggregates:
        if column.startswith("distinct_2") and filters.min_distinct_2 is not None:
            found[column] = {"min_value": filters.min_distinct_2}
        for start, bound in (
            ("near_duplicates", filters.max_near_duplicates),
            ("imbalance", filters.max_imbalance),
            (_DRIFT, filters.max_drift),
        ):
            if column.startswith(start) and bound is not None:
                found[column] = {"max_value": bound}
    return found


def _validate(
    aggregates: Mapping[str, float | None],
    sample: pd.DataFrame,
    task: TaskSpec,
    filters: FilterSpec,
    scratch: Path,
) -> dict[str, Any]:
    """Return how many expectations were checked and the sentences of those that failed."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        import great_expectations as gx
        import great_expectations.expectations as gxe
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="file", project_root_dir=str(scratch))
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("training_set")
        on_aggregates = [
            gxe.ExpectColumnValuesToBeBetween(
                column="num_train_rows", min_value=filters.min_train_rows
            ),
            gxe.ExpectColumnValuesToBeBetween(column="num_validation_rows", min_value=1),
            gxe.ExpectColumnValuesToBeBetween(
                column="keep_fraction", min_value=filters.min_keep_fraction, max_value=1.0
            ),
            gxe.ExpectColumnValuesToBeBetween(column="num_repeated_ids", max_value=0),
            *(
                expectation
                for column, bounds in card_bounds(aggregates, filters).items()
                for expectation in (
                    gxe.ExpectColumnValuesToNotBeNull(column=column),
                    gxe.ExpectColumnValuesToBeBetween(column=column, **bounds),
                )
            ),
        ]
        on_rows = [
            gxe.ExpectColumnValuesToNotBeNull(column="response"),
            gxe.ExpectColumnValueLengthsToBeBetween(column="response", min_value=1),
            gxe.ExpectColumnValuesToMatchRegex(column="messages", regex=r"^\[\{.*\}\]$"),
            gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "validation"]),
        ]
        if labels := list(task_type(task).labels):
            on_rows.append(gxe.ExpectColumnValuesToBeInSet(column="response", value_set=labels))
        frames = {
            "aggregates over all rows": (pd.DataFrame([aggregates]), on_aggregates),
            f"sample of {len(sample)} rows": (sample, on_rows),
        }
        results: list[Any] = []
        for name, (frame, expectations) in frames.items():
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
            definition = context.validation_definitions.add(
                gx.ValidationDefinition(name=name, data=batch, suite=suite)
            )
            checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition])
            outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
            for validation in outcome.run_results.values():
                results += validation.results
        context.build_data_docs()
    failures = [_failure(result) for result in results if not result.success]
    asked = len(on_aggregates) + len(on_rows)
    if len(results) != asked:
        failures.append(f"only {len(results)} of {asked} expectations could be checked")
    return {"num_expectations": asked, "failures": failures}


def _failure(result: Any) -> str:
    """Return one failed expectation in words."""
    settings = result.expectation_config.kwargs
    seen = result.result.get("partial_unexpected_list", [])
    if not seen:
        info = dict(result.exception_info or {})
        raised = info if "exception_message" in info else next(iter(info.values()), {})
        why = raised.get("exception_message", "no value was reported")
        return f"{settings['column']} could not be checked: {why:.200}"
    wanted = {
        "expect_column_values_to_be_between": f"has to be {_bounds(settings)}",
        "expect_column_value_lengths_to_be_between": f"has to have {_bounds(settings)} characters",
        "expect_column_values_to_be_in_set": f"has to be one of {settings.get('value_set')}",
        "expect_column_values_to_match_regex": f"has to match {settings.get('regex')!r}",
        "expect_column_values_to_not_be_null": "has to be there",
    }[result.expectation_config.type]
    values = ", ".join(f"{v:g}" if isinstance(v, float) else f"{v!r:.80}" for v in seen[:3])
    rows = f" in {result.result['unexpected_count']} rows" if len(seen) > 1 else ""
    return f"{settings['column']} {wanted}, but is {values}{rows}"


def _bounds(settings: dict[str, Any]) -> str:
    bounds = {"at least": settings.get("min_value"), "at most": settings.get("max_value")}
    return " and ".join(f"{word} {value:g}" for word, value in bounds.items() if value is not None)


def _keep_failed_docs(store: Store, stage: Stage, docs: Path) -> str:
    """Upload the Data Docs of a refused training set beside its attempts; return their place."""
    uri = f"{stage.name}/{stage.fingerprint}/refused"
    store.delete(uri)
    store.upload(uri, docs)
    return store.path(f"{uri}/index.html")


def _refusal(
    failures: list[str], aggregates: Mapping[str, float | None], reasons: dict[str, int], docs: str
) -> str:
    dropped = ", ".join(f"{reason!r} {count}" for reason, count in reasons.items()) or "nothing"
    return (
        f"the training set is not released: {'; '.join(failures)}. Kept "
        f"{aggregates['num_rows']:.0f} responses ({aggregates['keep_fraction']:.1%}); dropped "
        f"{dropped}. A student would learn from what is left. Read {docs} and the rejected rows, "
        "then correct the teacher, the filters or their thresholds."
    )
