"""The stage that filters prompts before a teacher is asked: what it drops costs nothing."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import cast

from distillery.data.split_hashes import SplitHashes
from distillery.filters import prompt_filters
from distillery.filters.base import Context, Rows
from distillery.filters.funnel import Funnel, note_filters, ready, row_batches, write_rows
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types import task_type
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import PromptFrame, RejectedPromptFrame, TrainingFrame, arrow_schema
from schemas.refs import PromptSet
from schemas.task import TaskSpec

_LOGIC_VERSION = 2
_ANSWERED = ("train", "validation")
_HELD_OUT = ("selection", "test")


def prompt_filtering_stage(valid: PromptSet, filters: FilterSpec) -> Stage:
    """Return what identifies the rows of ``valid`` that are kept."""
    return Stage(
        StageName.FILTER_PROMPTS,
        _LOGIC_VERSION,
        inputs={
            "prompts": valid.prompts.fingerprint,
            "held_out": valid.prompts.identities(*_HELD_OUT),
            "models": [each.identity() for _, each in prompt_filters(filters.prompts)],
        },
        spec={"filters": filters.prompts, "restore": sorted(filters.restore)},
    )


def filter_prompts(
    valid: PromptSet,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return the `prompts` that pass all filters, the `gold` rows among them, and the `rejected`.

    Training and validation rows are filtered together, so that a validation prompt which is nearly
    a training prompt leaves the validation split. Gold rows meet the filters that are about what
    must not be learnt. Selection and test rows stay as they are; their hashes are among the stage's
    inputs, so its manifest says what the prompts were decontaminated against.

    Raises:
        InputDataError: Nothing is left of a split. The rejected rows stay in the store.
    """
    stage = prompt_filtering_stage(valid, filters)

    def work(attempt: Attempt) -> None:
        opened, chosen = attempt.store, prompt_filters(filters.prompts)
        for _, each in chosen:
            each.prepare(_each_row(row_batches(opened, valid.prompts, _HELD_OUT)))
        of_gold = [(name, each) for name, each in chosen if each.reads_gold]
        before, kept = Counter[str](), Counter[str]()
        hashes = SplitHashes((*_ANSWERED, "gold"), "references")
        gold: dict[str, str] = {}
        kind = task_type(task)
        context = Context(kind, valid.prompts, opened, store, stage.fingerprint)
        with (
            ready(chosen, context),
            attempt.row_writer("prompts", arrow_schema(PromptFrame)) as writer,
            attempt.row_writer("rejected", arrow_schema(RejectedPromptFrame)) as rejected,
        ):
            # Two of them: the way of the gold rows is not that of the rows to be answered.
            funnel, gold_funnel = (
                Funnel(kind, PromptFrame, RejectedPromptFrame, rejected, restore=filters.restore)
                for _ in range(2)
            )
            ways = ((_ANSWERED, funnel, chosen), (("gold",), gold_funnel, of_gold))
            for splits, passing, through in ways:
                rows = _counted(row_batches(opened, valid.prompts, splits), before)
                for batch in passing.passing(through, rows):
                    kept.update(row["split"] for row in batch)
                    hashes.update([row[name] for name in hashes.columns] for row in batch)
                    gold |= {r["prompt_id"]: r["messages"] for r in batch if r["split"] == "gold"}
                    write_rows(writer, batch, PromptFrame)
            for batch in row_batches(opened, valid.prompts, _HELD_OUT):
                write_rows(writer, batch, PromptFrame)
        _note_hashes(attempt, "prompts", valid.prompts.hashes | hashes.hexdigests())
        _write_gold(attempt, valid, gold)
        attempt.counts |= {f"kept_{split}": kept[split] for split in (*_ANSWERED, "gold")}
        note_filters(attempt, funnel, chosen)
        attempt.facts["emptied"] = [split for split in before if not kept[split]]
        attempt.facts["reasons"] = dict((funnel.drops + gold_funnel.drops).most_common())
        attempt.facts["rewrites"] = dict((funnel.rewrites + gold_funnel.rewrites).most_common())
        attempt.counts["rejected"] = (funnel.drops + gold_funnel.drops).total()
        if restored := funnel.restored | gold_funnel.restored:
            attempt.counts["restored"] = len(restored)

    result = run_stage(stage, store, execution, work)
    _refuse_empty_splits(result, store)
    return result


def _each_row(batches: Iterable[Rows]) -> Iterable[dict[str, object]]:
    return (row for batch in batches for row in batch)


def _counted(batches: Iterable[Rows], counts: Counter[str]) -> Iterator[Rows]:
    for batch in batches:
        counts.update(row["split"] for row in batch)
        yield batch


def _write_gold(attempt: Attempt, valid: PromptSet, messages: dict[str, str]) -> None:
    """Write the gold rows whose prompts were kept, as they read now."""
    hashes = SplitHashes(_ANSWERED, "response")
    with attempt.row_writer("gold", arrow_schema(TrainingFrame)) as writer:
        for batch in row_batches(attempt.store, valid.gold):
            kept = [
                row | {"messages": messages[row["prompt_id"]]}
                for row in batch
                if row["prompt_id"] in messages
            ]
            hashes.update([row[name] for name in hashes.columns] for row in kept)
            write_rows(writer, kept, TrainingFrame)
    _note_hashes(attempt, "gold", hashes.hexdigests())


def _note_hashes(attempt: Attempt, name: str, hashes: dict[str, str]) -> None:
    attempt.outputs[name] = attempt.outputs[name].model_copy(update={"hashes": hashes})


def _refuse_empty_splits(result: StageResult, store: StoreSpec) -> None:
    """Raise where nothing of a split is left; checked on every run, as it costs no seal."""
    emptied = cast("list[str]", result.manifest.facts["emptied"])
    if emptied:
        counted = ", ".join(f"{reason} {n}" for reason, n in result.drop_reasons.items())
        raise InputDataError(
            f"the filters of filters.prompts leave nothing of the split {emptied[0]!r}: {counted}. "
            f"No teacher was asked. See {store.root}/{result.dataset('rejected').uri}, and change "
            "filters.prompts."
        )
