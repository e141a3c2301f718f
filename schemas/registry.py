"""Where promoted students are recorded."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Branch


class _Registry(Branch):
    """Keeps aliases and their history."""


class DatabaseRegistry(_Registry):
    """Tables in the ledger's database."""

    kind: Literal["database"] = "database"
    """The ledger's database."""


class MlflowRegistry(_Registry):
    """The model registry of an MLflow server."""

    kind: Literal["mlflow"] = "mlflow"
    """MLflow."""

    tracking_uri: str
    """Address of the server, such as `http://mlflow:5000`. `${NAME}` stands for an environment
    variable."""

    prefix: str = "distillery-"
    """Put before the name of the task to make the name of the registered model."""


RegistrySpec = Annotated[DatabaseRegistry | MlflowRegistry, Field(discriminator="kind")]
