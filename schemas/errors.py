"""The one tree of errors that a user can meet.

DistilleryError
├── RecipeError           the recipe asks for something that cannot be done (also a ValueError)
├── InputDataError        a data file, or a row of it, cannot be used (also a ValueError)
├── StoreError            the store cannot be read or written (also a RuntimeError)
├── TeacherError          the teacher cannot answer (also a RuntimeError)
├── BudgetError           a cap of teacher.budget is reached (also a RuntimeError)
├── TrainingError         training cannot start or go on (also a RuntimeError)
│   └── RowError          one row cannot be learnt from, so it is left out and counted
├── TrialPruned           a sweep gives this trial up (also a RuntimeError)
├── RegistryError         an alias does not stand as is needed (also a RuntimeError)
├── ReleaseError          the training set does not pass its release gate (also a RuntimeError)
└── StageError            a stage ended without a result (also a RuntimeError)
    └── CrashedError      its run on a work pool crashed, and again when it was retried

Every message says what is wrong with its value, why it matters where that is not plain, and the
one thing to do. All are picklable: Prefect stores the exceptions of failed runs.
"""


class DistilleryError(Exception):
    """Root of all errors raised on purpose."""


class RecipeError(DistilleryError, ValueError):
    """The recipe asks for something that cannot be done."""


class InputDataError(DistilleryError, ValueError):
    """A data file, or a row of it, cannot be used."""


class StoreError(DistilleryError, RuntimeError):
    """The store cannot be read or written."""


class TeacherError(DistilleryError, RuntimeError):
    """The teacher cannot answer."""


class BudgetError(DistilleryError, RuntimeError):
    """A cap of ``teacher.budget`` is reached."""


class TrainingError(DistilleryError, RuntimeError):
    """Training cannot start or go on."""


class RowError(TrainingError):
    """One row cannot be learnt from; it is left out, and counted."""


class TrialPruned(DistilleryError, RuntimeError):
    """A sweep gives this trial up: nothing is wrong, other trials are better."""


class RegistryError(DistilleryError, RuntimeError):
    """The registry refuses: the alias has moved meanwhile, or there is none."""


class ReleaseError(DistilleryError, RuntimeError):
    """The training set does not pass its release gate."""


class StageError(DistilleryError, RuntimeError):
    """A stage ended without a result."""


class CrashedError(StageError):
    """Its run on a work pool crashed, and again when it was retried: memory ran out, perhaps."""
