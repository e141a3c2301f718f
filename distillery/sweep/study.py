"""The trials of a sweep, kept in the ledger's database, so that a killed sweep goes on."""

import contextlib
import importlib.metadata
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import sqlalchemy as sa

from distillery.ledger.database import Database
from distillery.ledger.engine import engine_options, ledger_url
from distillery.ledger.held import held
from distillery.ledger.tables import create_tables
from distillery.storage.fingerprint import sha256
from distillery.sweep.curves import Curve, is_behind
from distillery.sweep.space import as_values, distributions
from schemas.base import versioned
from schemas.comparison import Interval
from schemas.errors import StoreError, TrialPruned
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.sweep import Cost, SweepRecipe, SweepSpec, Trial, TrialState

_LOGIC_VERSION = 1
_SWEEP, _QUALITY, _COSTS, _REASON, _MEANING = "sweep", "quality", "costs", "reason", "loss"


def study_name(recipe: SweepRecipe, prompts: DatasetRef, identities: dict[str, str]) -> str:
    """Return the name of a sweep's study: another one as soon as its trials would differ.

    The test rows are no part of it, and neither is how many trials there are.

    Args:
        recipe: What is tried.
        prompts: The valid rows.
        identities: Of teacher and student: what tells their weights from others.
    """
    sections = (recipe.task, recipe.teacher, recipe.filters, recipe.student, recipe.training)
    decides = {
        "logic_version": _LOGIC_VERSION,
        # Of the stages behind a trial; trials of another release were other students.
        "release": importlib.metadata.version("distillery"),
        "sections": versioned(sections),
        "max_new_tokens": recipe.evaluation.max_new_tokens,
        "sweep": versioned(recipe.sweep),
        "rows": prompts.identities("train", "validation", "gold", "selection"),
        "models": identities,
    }
    return f"{recipe.task.name}-{sha256(decides)[:16]}"


@contextlib.contextmanager
def _running(store: StoreSpec, name: str) -> Iterator[None]:
    """Hold the study ``name``.

    Raises:
        StoreError: A process that is alive runs it.
    """
    with held(store, name) as is_held:
        if not is_held:
            raise StoreError(
                f"the sweep {name!r} is running already, and two at once would train its trials "
                "twice. Wait until the other one has ended; if it is stopped, the same command "
                "goes on."
            )
        yield


class Study:
    """The trials of one sweep. Safe to use from several threads; close it after use.

    The sampler is made anew for each trial, seeded by the trial's number, and the trial is
    written with all its values in one transaction: a sweep that is killed anywhere and started
    again tries what it would have tried.
    """

    def __init__(self, store: StoreSpec, name: str, sweep: SweepSpec | None = None) -> None:
        """Open the study ``name``; with ``sweep`` this process runs it, and nobody else may.

        It is made where it is not there yet.

        Raises:
            StoreError: The database cannot be used, has no such study, or another process runs it.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self._lock = name, threading.Lock()
        self._held: set[int] = set()
        url = ledger_url(store)
        database = Database(url)
        try:
            create_tables(database)  # which also sets up an SQLite file as the ledger needs it
            self._database_name = database.name
        finally:
            database.dispose()
        with contextlib.ExitStack() as running:
            if sweep is not None:
                running.enter_context(_running(store, name))
            with self._named_errors():
                self._storage = self._open(url)
            self._running = running.pop_all()
        try:
            self.sweep = self._join(sweep)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; another process may run it then."""
        self._running.close()
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials, by number."""
        return tuple(map(self._trial, self._frozen()))

    def next_trial(self) -> Trial | None:
        """Return the trial to run next, or None when all of them have been begun.

        One that a killed sweep left running comes first, with its own values: its training goes
        on from its checkpoint.
        """
        with self._lock:
            trials = self._frozen()
            left = (t for t in trials if not t.state.is_finished() and t.number not in self._held)
            found = next(left, None)
            if found is None:
                if len(trials) >= self.sweep.num_trials:
                    return None
                found = self._begin(trials)
            elif _REASON in found.user_attrs:
                self._note(found.number, _REASON, None)  # of a try whose sweep was killed
                found = self._frozen()[found.number]
            self._held.add(found.number)
            return self._trial(found)

    def complete(self, number: int, quality: Interval, costs: dict[Cost, float]) -> None:
        """Note what the student of a trial is worth."""
        values = [quality.estimate, *(costs[name] for name in self.sweep.costs)]
        self._note(number, _QUALITY, quality.model_dump(mode="json"))
        self._note(number, _COSTS, costs)
        self._end(number, "COMPLETE", values)

    def give_up(self, number: int, reason: str) -> None:
        """Note that a trial was pruned."""
        self._note(number, _REASON, reason)
        self._end(number, "PRUNED")

    def fail(self, number: int, reason: str) -> None:
        """Note that a trial cannot be completed."""
        self._note(number, _REASON, reason)
        self._end(number, "FAIL")

    def note_reason(self, number: int, reason: str) -> None:
        """Note why a trial is about to end, for the process that ends it."""
        self._note(number, _REASON, reason)

    def trial(self, number: int) -> Trial:
        """Return one trial."""
        return self._trial(self._frozen()[number])

    def report(self, number: int, share: int, loss: float, *, meaning: str) -> None:
        """Note the validation loss of a trial at a share of its training; see `curves`.

        Raises:
            TrialPruned: It is to be given up.
        """
        with self._named_errors():
            # Optuna takes them for the quality, which has to be large.
            self._storage.set_trial_intermediate_value(self._id(number), share, -loss)
        self._note(number, _MEANING, meaning)
        if not self.sweep.pruning:
            return
        trials = self._frozen()
        others = [
            _curve(trial)
            for trial in trials
            if trial.state.name == "COMPLETE" and trial.user_attrs.get(_MEANING) == meaning
        ]
        own = {at: loss for at, loss in _curve(trials[number]).items() if at <= share}
        if is_behind(own, others, after=self.sweep.startup_trials):
            raise TrialPruned(
                f"given up after {share / 10:.0f} % of its training: its best validation loss is "
                f"{min(own.values()):.4g}, above the median of {len(others)} others by then. Set "
                "sweep.pruning to false to train such trials to the end."
            )

    def importance(self, quantile: float) -> dict[str, float]:
        """Return how much of the best trials' quality each field explains; they add up to 1.

        Args:
            quantile: Which share of the trials are the best.

        Source: Watanabe et al. 2023, PED-ANOVA, arXiv:2304.10255.
        """
        import warnings

        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        with warnings.catch_warnings(action="ignore"):
            found = get_param_importances(
                self._study, evaluator=evaluator, target=lambda trial: -trial.values[0]
            )
        return {str(field): float(share) for field, share in found.items()}

    # -- the storage -------------------------------------------------------------------------

    def _open(self, url: sa.URL) -> Any:
        import optuna

        # It fills in braces as a template's.
        address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        storage = optuna.storages.RDBStorage(
            address, engine_kwargs=engine_options(url), skip_compatibility_check=True
        )
        if storage.get_current_version() != storage.get_head_version():
            storage.engine.dispose()
            raise StoreError(
                f"ledger {self._database_name!r} cannot hold sweeps: its table alembic_version is "
                "of another version of Optuna, or of another program, such as Prefect or MLflow. "
                "Set store.ledger_url to a database, or a schema, of its own."
            )
        return storage

    def _join(self, sweep: SweepSpec | None) -> SweepSpec:
        """Return what the study tries, once it is open."""
        import optuna

        try:
            with self._named_errors():
                if sweep is None:
                    self._study = optuna.load_study(study_name=self.name, storage=self._storage)
                    return SweepSpec.model_validate(self._study.user_attrs[_SWEEP])
                self._study = optuna.create_study(
                    study_name=self.name,
                    storage=self._storage,
                    directions=_directions(sweep),
                    load_if_exists=True,
                )
                self._study.set_user_attr(_SWEEP, sweep.model_dump(mode="json"))
                return sweep
        except KeyError:
            raise StoreError(
                f"ledger {self._database_name!r} has no sweep {self.name!r}. A sweep and its "
                "trials have to see the same ledger: set store.ledger_url to a database that both "
                "reach."
            ) from None

    def _begin(self, trials: Sequence[Any]) -> Any:
        """Return a new trial with the values that the sampler draws."""
        import optuna

        number = len(trials)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.sweep.startup_trials,
            seed=int(sha256([self.sweep.seed, number])[:8], 16),
        )
        # In memory, so that a trial without all its values is never seen.
        copy = optuna.create_study(directions=_directions(self.sweep), sampler=sampler)
        copy.add_trials(trials)
        drawn = copy.ask(distributions(self.sweep))
        begun = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=drawn.params,
            distributions=drawn.distributions,
        )
        with self._named_errors():
            self._study.add_trial(begun)
        return self._frozen()[number]

    def _frozen(self) -> list[Any]:
        with self._named_errors():
            found: list[Any] = self._study.get_trials(deepcopy=False)
        return found

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self.name)
        return int(self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _note(self, number: int, key: str, value: Any) -> None:
        with self._named_errors():
            self._storage.set_trial_user_attr(self._id(number), key, value)

    def _end(self, number: int, state: str, values: list[float] | None = None) -> None:
        from optuna.trial import TrialState as State

        with self._named_errors():
            self._storage.set_trial_state_values(self._id(number), State[state], values)

    def _trial(self, frozen: Any) -> Trial:
        attributes = frozen.user_attrs
        states: dict[str, TrialState] = {
            "COMPLETE": "complete",
            "PRUNED": "pruned",
            "FAIL": "failed",
        }
        return Trial(
            number=frozen.number,
            values=as_values(frozen.params, self.sweep),
            state=states.get(frozen.state.name, "running"),
            quality=attributes.get(_QUALITY),
            costs=attributes.get(_COSTS, {}),
            reason=attributes.get(_REASON),
            seconds=frozen.duration.total_seconds() if frozen.duration else None,
        )

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise what the database says as a StoreError."""
        import optuna

        try:
            yield
        except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError) as error:
            cause = error.__cause__ or error
            raise StoreError(
                f"the sweep {self.name!r} cannot be kept in ledger {self._database_name!r}: "
                f"{str(cause).splitlines()[0]}. Trials that have ended are kept. Check that the "
                "database can be reached, then run again."
            ) from error


def _directions(sweep: SweepSpec) -> list[str]:
    return ["maximize"] + ["minimize"] * len(sweep.costs)


def _curve(trial: Any) -> Curve:
    return {at: -value for at, value in trial.intermediate_values.items()}
