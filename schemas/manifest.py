"""The manifest: written last, its presence means that a stage is complete."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue

from schemas.refs import DatasetRef, ModelRef, ReportRef

SCHEMA_VERSION = 2


class Manifest(BaseModel):
    """What one stage made, from what, how, and at what cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    """Version of this layout; another one is refused."""

    stage: str
    """Name of the stage."""

    fingerprint: str
    """Hash of everything that can change the result."""

    attempt: str
    """Folder of the attempt that won."""

    created_at: datetime
    """When it was sealed, UTC."""

    logic_version: int
    """Version of the stage's own logic."""

    inputs: dict[str, JsonValue]
    """Fingerprints of what went in, by name."""

    spec: dict[str, JsonValue]
    """The part of the recipe that the stage read."""

    outputs: dict[str, DatasetRef | ModelRef | ReportRef]
    """What came out, by name."""

    counts: dict[str, int] = {}
    """Rows by what became of them."""

    timings_s: dict[str, float] = {}
    """Seconds by part."""

    cost: float | None = None
    """Money spent on a teacher for this result; None when nothing was, or no price is known."""

    currency: str | None = None
    """Its currency, ISO 4217."""

    facts: dict[str, JsonValue] = {}
    """Further results: curves, drop reasons, metrics."""

    versions: dict[str, str] = {}
    """Versions of the libraries that can change the result."""

    git_sha: str | None = None
    """Commit of the code, when it ran from a checkout."""

    lock_hash: str | None = None
    """sha256 of constraints.txt, if the file is there."""
