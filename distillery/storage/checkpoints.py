"""Training checkpoints in the store: uploaded as they are made, found by the next attempt.

<stage>/<fingerprint>/checkpoints/checkpoint-<step>/...
<stage>/<fingerprint>/checkpoints/checkpoint-<step>.json     put last: it is complete
<stage>/<fingerprint>/checkpoints/tensorboard/...            the curve so far
"""

import json
import re
from pathlib import Path

from distillery.storage.store import Store
from schemas.errors import TrainingError

TENSORBOARD = "tensorboard"
_NAME = re.compile(r"checkpoint-(\d+)")


def upload_checkpoint(store: Store, uri: str, folder: Path, *, parallelism: str) -> None:
    """Upload the checkpoint ``folder`` below ``uri``, and drop those that the trainer dropped.

    The event files in the folder ``tensorboard`` beside it go along. Optimizer states are laid out
    as ``parallelism`` says.
    """
    store.delete(f"{uri}/{folder.name}.json")  # another attempt may have been at the same step
    store.upload(f"{uri}/{folder.name}", folder)
    store.upload(f"{uri}/{TENSORBOARD}", folder.parent / TENSORBOARD)
    marker = {"training": _training(uri), "parallelism": parallelism}
    store.write_bytes(f"{uri}/{folder.name}.json", json.dumps(marker).encode())
    for name in store.list_folders(uri):
        if not (folder.parent / name).is_dir():
            store.delete(f"{uri}/{name}.json")
            store.delete(f"{uri}/{name}")


def download_checkpoints(store: Store, uri: str, scratch: Path, *, parallelism: str) -> Path | None:
    """Return the newest complete checkpoint, downloaded below ``scratch``, or None.

    The best one comes along, and the trainer's record of where it lies is corrected.

    Raises:
        TrainingError: One was made by another training, or has another layout.
    """
    complete = {
        int(match[1]): name
        for name in store.list_folders(uri)
        if (match := _NAME.fullmatch(name)) and _is_complete(store, uri, name, parallelism)
    }
    if not complete:
        return None
    for name in (TENSORBOARD, *complete.values()):
        store.download(f"{uri}/{name}", scratch / name)
    newest = scratch / complete[max(complete)]
    state_file = newest / "trainer_state.json"
    state = json.loads(state_file.read_text(encoding="utf-8"))
    if best := state.get("best_model_checkpoint"):
        moved = scratch / Path(best).name
        state["best_model_checkpoint"] = str(moved) if moved.is_dir() else None
        state_file.write_text(json.dumps(state), encoding="utf-8")
    return newest


def _training(uri: str) -> str:
    """Return the fingerprint of the training whose checkpoints are at ``uri``."""
    return uri.split("/")[1]


def _is_complete(store: Store, uri: str, name: str, parallelism: str) -> bool:
    """Return whether a checkpoint was uploaded whole; raise when this training cannot read it."""
    marker = store.read_json(f"{uri}/{name}.json")
    if marker is None:
        return False
    if (other := marker.get("training")) != _training(uri):
        raise TrainingError(
            f"{name} in {store.path(uri)!r} was made by the training {other!r:.14}, not by this "
            f"one, {_training(uri)!r:.14}: another recipe, other rows or another model. Delete "
            "that folder; this training then starts over."
        )
    if (layout := marker.get("parallelism")) != parallelism:
        raise TrainingError(
            f"{name} in {store.path(uri)!r} was made with training.parallelism {layout!r}, and "
            f"{parallelism!r} lays optimizer states out in another way. Set training.parallelism "
            "(and more than one process for fsdp2) as it was, or delete that folder to start over."
        )
    return True
