"""The verbs of `distillery registry`."""

import contextlib
import logging
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from cli.console import console
from distillery.registry import alias_files, open_registry
from distillery.registry.base import Registry, standing
from distillery.registry.by_hand import promote_by_hand, roll_back
from distillery.storage.store import Store
from schemas.base import nearest
from schemas.contestants import TEACHER
from schemas.errors import RegistryError, StoreError
from schemas.execution import StoreSpec
from schemas.promotion import HistoryEntry
from schemas.refs import ModelRef

logger = logging.getLogger("distillery.run")

_TABLE_COLUMNS = 100
_SHOWN = 12  # characters of a fingerprint


def print_aliases(spec: StoreSpec) -> None:
    """Print one row per alias: for whom it stands, since when, and how good that student is."""
    out = console(_TABLE_COLUMNS)
    with _opened(spec) as (registry, _):
        current = [registry.known_history(*alias)[-1] for alias in registry.aliases()]
    if not current:
        out.print("no student was ever promoted")
        return
    table = Table()
    table.add_column("alias", overflow="fold", no_wrap=True)
    for name in ("student", "since", "by", "quality", "forms"):
        table.add_column(name)
    for entry in current:
        table.add_row(
            f"{entry.task}/{entry.alias}",
            entry.student.fingerprint[:_SHOWN],
            f"{entry.at:%Y-%m-%d}",
            escape(entry.by) if entry.kind == "promotion" else f"{escape(entry.by)} ({entry.kind})",
            _quality(entry),
            escape(", ".join(entry.forms)) or "-",
        )
    out.print(table)


def print_alias(spec: StoreSpec, task: str, alias: str) -> None:
    """Print for whom an alias stands, where its files are, and its history, newest first."""
    out = console(_TABLE_COLUMNS)
    with _opened(spec) as (registry, store):
        entries = registry.known_history(task, alias)
        reached = {entry.id for entry in standing(entries)}
        is_there = {
            entry.id: store.holds(entry.student) for entry in entries if entry.id in reached
        }
    current = entries[-1]
    out.print(f"{task}/{alias}: {current.student.fingerprint}")
    out.print(f"  student: {escape(place(store, current.student))}")
    for name, form in current.forms.items():
        out.print(f"  {escape(name)}: {escape(place(store, form))}")
    out.print(f"  file:    {escape(store.location(alias_files.uri(task, alias)))}")
    for check in current.checks:
        out.print(f"  {'✓' if check.passed else '✗'} {escape(check.sentence)}")
    out.print()
    table = Table("when", "what", "student", "by", "quality", "why", "state")
    for entry in reversed(entries):
        state = "current" if entry is current else "in reserve" if entry.id in reached else ""
        if state and not is_there[entry.id]:
            state = "files gone"
        approval = entry.approval
        table.add_row(
            f"{entry.at:%Y-%m-%d %H:%M}",
            entry.kind,
            entry.student.fingerprint[:_SHOWN],
            escape(f"{entry.by}, {approval.by}" if approval else entry.by),
            _quality(entry, brief=True),
            escape(entry.reason),
            state,
        )
    out.print(table)


def print_path(spec: StoreSpec, task: str, alias: str, form: str | None) -> None:
    """Print where the files of an alias's student are, or those of one of its forms."""
    with _opened(spec) as (registry, store):
        current = registry.known_history(task, alias)[-1]
        if form is not None and form not in current.forms:
            known = list(current.forms)
            has = ", ".join(map(repr, known)) or "none"
            raise RegistryError(
                f"{task}/{alias} has no form {form!r}.{nearest(form, known)} It has: {has}. Forms "
                "are published when they are in export.formats of the recipe and pass the gate."
            )
        model = current.student if form is None else current.forms[form]
        if not store.holds(model):
            raise StoreError(
                f"{model.uri!r}, which {task}/{alias} points to, is gone from store "
                f"{spec.root!r}. Go back to the one before it: `distillery registry rollback "
                f"{task} --reason ...`."
            )
        print(place(store, model))


def go_back(spec: StoreSpec, task: str, alias: str, reason: str) -> None:
    """Roll an alias back to the student before, and say to which."""
    with _opened(spec) as (registry, store):
        before = registry.known_history(task, alias)[-1]
        entry = roll_back(registry, store, task, alias, reason)
    _print_move(entry, before)


def promote(spec: StoreSpec, task: str, alias: str, fingerprint: str, reason: str) -> None:
    """Promote a student of the store past the gate, and say whom it replaces."""
    with _opened(spec) as (registry, store):
        before = registry.champion(task, alias)
        entry = promote_by_hand(registry, store, task, alias, fingerprint, reason)
    _print_move(entry, before)


def place(store: Store, model: ModelRef) -> str:
    """Return the absolute path, or the URL, of a model's files."""
    return store.location(model.uri)


@contextlib.contextmanager
def _opened(spec: StoreSpec) -> Iterator[tuple[Registry, Store]]:
    """Yield registry and store; alias files that a killed run has left behind are put right."""
    store = Store(spec.root)
    with open_registry(spec, outage_s=0.0) as registry:
        try:
            alias_files.refresh_all(registry, store)
        except StoreError as error:
            if not registry.aliases():
                raise
            logger.warning("alias files could not be refreshed: %s", error)
        yield registry, store


def _print_move(entry: HistoryEntry, before: HistoryEntry | None) -> None:
    was = before.student.fingerprint[:_SHOWN] if before else "nobody"
    console().print(
        f"{entry.task}/{entry.alias} points to {entry.student.fingerprint[:_SHOWN]} now (before: "
        f"{was})"
    )


def _quality(entry: HistoryEntry, *, brief: bool = False) -> str:
    """Return the primary metric, and unless ``brief`` its name and what it keeps of the teacher."""
    metric, interval = next(iter(entry.metrics.items()), (None, None))
    if metric is None or interval is None:
        return "-"
    figure = f"{interval.estimate:.3f}"
    if brief:
        return figure
    pairs = [d for d in entry.differences if d.against == TEACHER and d.metric == metric]
    kept = pairs[0].ratio if pairs else None
    return f"{figure} {metric}" + (f", {kept.estimate:.1%} kept" if kept is not None else "")
