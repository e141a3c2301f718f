"""The registry in an MLflow server: a registered model per task, a version per promotion.

A version carries its entry as a tag and the figures that a person looks for as others; the alias of
the registered model is the gate's alias. A rollback moves the alias and leaves its entry as a tag
of the registered model. MLflow has no transactions:

- An entry counts once the alias has moved, so a kill before that promoted nobody and a kill after
  it promoted for good.
- Compare-and-set is not atomic. Whether the alias still stands where it stood is looked up right
  before it is moved; two promotions within the few milliseconds between may both succeed, and the
  later one stands. Use the ledger's database where runs of one task overlap.
- An alias that a person moves in MLflow itself is believed, and appears in the history as an entry
  by hand.

Credentials come from the environment, by MLflow's own names: MLFLOW_TRACKING_TOKEN, or
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from distillery.data.sources import expand_variables
from distillery.registry.base import Decide, Registry
from distillery.storage.store import Store
from schemas import registry as specs
from schemas.errors import RecipeError, RegistryError, StoreError
from schemas.execution import StoreSpec
from schemas.promotion import HistoryEntry

# How long a server that is away is waited for, seconds: longer than a restart takes.
_OUTAGE_S = 120.0
_PAUSE_S = 2.0
_ANSWER_WITHIN_S = 10.0

_TASK = "distillery.task"
_ENTRY = "distillery.entry"
_DONE = "distillery.done"
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")


@dataclass(frozen=True)
class _Seen:
    """What MLflow says of an alias."""

    entries: list[HistoryEntry]
    """Those that came into force, oldest first."""

    versions: Mapping[str, str]
    """Version of the student of each entry, by the entry's id."""

    unsettled: HistoryEntry | None = None
    """The newest entry when the server does not have it, or not as one that came into force."""


class MlflowRegistry(Registry):
    """Keeps entries as tags of an MLflow server's model versions."""

    def __init__(
        self, store: StoreSpec, spec: specs.MlflowRegistry, *, outage_s: float | None = None
    ) -> None:
        """Open the registry; the server is asked when something is.

        Args:
            store: Where the students are.
            spec: Which server.
            outage_s: How long a server that is away is waited for, seconds. None: `_OUTAGE_S`.

        Raises:
            RecipeError: The address cannot be used, or mlflow-skinny is not installed.
        """
        self.name = _address(spec.tracking_uri)
        self._prefix = spec.prefix
        self._store = Store(store.root)
        self._outage_s = _OUTAGE_S if outage_s is None else outage_s
        self._is_reached = False
        # Nobody has agreed to be counted.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise RecipeError(
                "store.registry.kind is 'mlflow', which needs the package mlflow-skinny. Install "
                "it: pip install 'distillery[mlflow]'."
            ) from None
        self._client = MlflowClient(tracking_uri=self.name, registry_uri=self.name)

    def check(self) -> None:
        """Return when models can be listed. Whether they can be changed is not tried."""
        with self._asking("read"):
            self._client.search_registered_models(max_results=1)

    def aliases(self) -> list[tuple[str, str]]:
        """Return task and alias of all that have a history, sorted."""
        found, token = [], None
        with self._asking("read"):
            while True:
                page = self._client.search_registered_models(page_token=token)
                for model in page:
                    task = model.tags.get(_TASK)
                    if task is not None and model.name == self._model(task):
                        found += [(task, alias) for alias in model.aliases]
                token = page.token
                if not token:
                    return sorted(found)

    def history(self, task: str, alias: str) -> list[HistoryEntry]:
        """Return the entries of an alias, oldest first."""
        with self._asking("read"):
            return self._look(task, alias).entries

    def append(self, task: str, alias: str, decide: Decide) -> HistoryEntry:
        """Return the newest entry after adding what ``decide`` returns; not atomic, see above."""
        name = self._model(task)
        with self._asking("write"):
            seen = self._look(task, alias)
            entry = decide(seen.entries)
            if entry is None:
                return seen.entries[-1]
            if seen.entries:  # tags have no order but this one, and hosts' clocks differ
                after = seen.entries[-1].at + timedelta(microseconds=1)
                entry = entry.model_copy(update={"at": max(entry.at, after)})
            self._create_model(task)
            if seen.unsettled is not None:
                self._tag(name, f"{_ENTRY}.{seen.unsettled.id}", seen.unsettled.model_dump_json())
                self._tag(name, f"{_DONE}.{seen.unsettled.id}", "true")
            if entry.restores is None:
                version = self._create_version(name, entry)
            else:
                version = seen.versions[entry.restores]
                self._tag(name, f"{_ENTRY}.{entry.id}", entry.model_dump_json())
            try:
                decide(self._look(task, alias).entries)
            except RegistryError:
                if entry.restores is None:
                    self._client.delete_model_version(name, version)
                raise
            self._client.set_registered_model_alias(name, alias, version)
            self._tag(name, f"{_DONE}.{entry.id}", "true")
        return entry

    def close(self) -> None:
        """Nothing is held open."""

    def _model(self, task: str) -> str:
        return f"{self._prefix}{task}"

    def _look(self, task: str, alias: str) -> _Seen:
        """Return the entries that came into force, and the versions that they are."""
        name = self._model(task)
        model = self._found(name)
        if model is None:
            return _Seen([], {})
        current = str(model.aliases.get(alias))
        versions: dict[str, str] = {}
        recorded: dict[str, HistoryEntry] = {}
        for version in self._versions(name):
            if _ENTRY in version.tags:
                entry = HistoryEntry.model_validate_json(version.tags[_ENTRY])
                number = str(version.version)
                # A request that was sent twice has made two versions of one entry.
                if entry.id not in recorded or number == current:
                    recorded[entry.id], versions[entry.id] = entry, number
        for tag, value in model.tags.items():
            if tag.startswith(f"{_ENTRY}."):
                entry = HistoryEntry.model_validate_json(value)
                recorded[entry.id] = entry
        everything = sorted(recorded.values(), key=lambda entry: entry.at)
        for entry in everything:
            if entry.restores in versions:
                versions[entry.id] = versions[entry.restores]
        # Those of versions that a person has deleted in MLflow are gone with them.
        everything = [entry for entry in everything if entry.id in versions]
        entries = [entry for entry in everything if entry.alias == alias]
        done = [entry for entry in entries if f"{_DONE}.{entry.id}" in model.tags]
        if alias not in model.aliases and not done:
            return _Seen([], versions)
        if done and versions[done[-1].id] == current:
            return _Seen(done, versions)
        if entries and entries[-1] not in done and versions[entries[-1].id] == current:
            newest = entries[-1]  # a kill came after the alias had moved
        else:
            newest = self._moved_by_hand(model, alias, everything, versions)
            versions[newest.id] = current
        return _Seen([*done, newest], versions, newest)

    def _moved_by_hand(
        self,
        model: Any,
        alias: str,
        everything: Sequence[HistoryEntry],
        versions: Mapping[str, str],
    ) -> HistoryEntry:
        """Return an entry for an alias that stands where no entry has put it."""
        current = model.aliases.get(alias)
        if current is None:
            raise RegistryError(
                f"registered model {model.name!r} of {self.name!r} has versions of alias {alias!r} "
                "but that alias is gone. Set it again in MLflow, on the version that is deployed."
            )
        entry = next((e for e in everything if versions[e.id] == str(current)), None)
        if entry is None:
            raise RegistryError(
                f"alias {alias!r} of registered model {model.name!r} of {self.name!r} points to "
                f"version {current}, which Distillery did not promote. Move it to a version that "
                "it did."
            )
        # The same each time that it is read, until the model changes; and the newest.
        changed_at = datetime.fromtimestamp(model.last_updated_timestamp / 1000, UTC)
        changes = {
            "alias": alias,
            "id": f"{entry.id[:16]}-{model.last_updated_timestamp}",
            "kind": "manual",
            "at": max(changed_at, everything[-1].at + timedelta(microseconds=1)),
            "by": "MLflow",
            "reason": "the alias was moved in MLflow",
            "restores": entry.id,
            "approval": None,
        }
        return entry.model_copy(update=changes)

    def _found(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == _MISSING:
                return None
            raise

    def _versions(self, name: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _tag(self, name: str, tag: str, value: str) -> None:
        self._client.set_registered_model_tag(name, tag, value)

    def _create_model(self, task: str) -> None:
        from mlflow.exceptions import MlflowException

        name = self._model(task)
        if self._found(name) is not None:
            return
        try:
            self._client.create_registered_model(name, tags={_TASK: task})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _create_version(self, name: str, entry: HistoryEntry) -> str:
        """Return the number of a new version: the student, with its figures as tags."""
        source = self._store.location(entry.student.uri)
        if self._store.is_local:
            # A server takes no paths of another machine's disk.
            source = f"distillery:/{entry.student.uri}"
        tags = {
            _ENTRY: entry.model_dump_json(),
            "alias": entry.alias,
            "kind": entry.kind,
            "by": entry.by,
            "reason": entry.reason,
            "fingerprint": entry.student.fingerprint,
            "uri": entry.student.uri,
            **{f"uri of {form}": model.uri for form, model in entry.forms.items()},
            **({"compared": entry.compared} if entry.compared else {}),
            **{metric: f"{i.estimate:.4f}" for metric, i in entry.metrics.items() if i is not None},
        }
        made = self._client.create_model_version(name, source, tags=tags, await_creation_for=0)
        return str(made.version)

    @contextlib.contextmanager
    def _asking(self, action: str) -> Iterator[None]:
        """Turn what goes wrong into a StoreError that says what to do."""
        from mlflow.exceptions import MlflowException

        try:
            self._reach()
            yield
        except MlflowException as error:
            said = str(error).splitlines()[0].rstrip(".")
            advice = "Check store.registry.tracking_uri and the server, then run again."
            if error.error_code in _REFUSALS:
                advice = (
                    "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, to credentials that may do it."
                )
            raise StoreError(f"cannot {action} registry {self.name!r}: {said}. {advice}") from error

    def _reach(self) -> None:
        """Return once the server answers; MLflow's own client would try for minutes."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        give_up_at = time.monotonic() + self._outage_s
        credentials = get_default_host_creds(self.name)
        once = {"max_retries": 0, "timeout": _ANSWER_WITHIN_S, "raise_on_status": False}
        while not self._is_reached:
            try:
                http_request(credentials, "/health", "GET", **once)
                self._is_reached = True
            except MlflowException:
                if time.monotonic() >= give_up_at:
                    raise
                time.sleep(_PAUSE_S)


def _address(tracking_uri: str) -> str:
    """Return the address of the server that the recipe names.

    Raises:
        RecipeError: It is not the address of a server, or holds a password.
    """
    uri = expand_variables(tracking_uri).rstrip("/")
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise RecipeError(
            "store.registry.tracking_uri holds credentials, which would stand in manifests and the "
            "UI. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            f"store.registry.tracking_uri {tracking_uri!r} is not the address of a server. Write "
            "it as http://host:port, or use kind: database, which needs no server."
        )
    return uri
