"""How the log of an application in production is read."""

from typing import Literal

from pydantic import Field

from schemas.base import Spec
from schemas.prompt_filters import EmbeddingModel


class LogSample(Spec):
    """A part of a log."""

    rows: int = Field(ge=1)
    """Most rows to take."""

    by: Literal["cluster", "chance"] = "cluster"
    """cluster: as equally from all clusters of what users ask as their sizes allow, so that rare
    topics stay. chance: a seeded random sample, which holds what is asked most."""

    model: EmbeddingModel | None = Field(None, title="Embedding model")
    """What says which prompts are alike. None: the words that they share."""

    num_clusters: int = Field(100, ge=2)
    """Clusters. More than topics that you could name does no harm: each gives fewer rows."""
