"""Training checkpoints in the store: uploaded as they are made, found by the next attempt.

<stage>/<fingerprint>/checkpoints/checkpoint-<step>/...
<stage>/<fingerprint>/checkpoints/checkpoint-<step>.json     put last: it is complete
<stage>/<fingerprint>/checkpoints/tensorboard/...            the curve so far
"""

import json
import re
from pathlib import Path

from distillery.store import Store

TENSORBOARD = "tensorboard"
_NAME = re.compile(r"checkpoint-(\d+)")


def upload_checkpoint(store: Store, uri: str, folder: Path) -> None:
    """Upload the checkpoint ``folder`` below ``uri``, and drop those that the trainer dropped.

    The event files in the folder ``tensorboard`` beside it go along.
    """
    store.delete(f"{uri}/{folder.name}.json")  # another attempt may have been at the same step
    store.upload(f"{uri}/{folder.name}", folder)
    store.upload(f"{uri}/{TENSORBOARD}", folder.parent / TENSORBOARD)
    store.write_bytes(f"{uri}/{folder.name}.json", b'{"complete": true}')
    for name in store.list_folders(uri):
        if not (folder.parent / name).is_dir():
            store.delete(f"{uri}/{name}.json")
            store.delete(f"{uri}/{name}")


def download_checkpoints(store: Store, uri: str, scratch: Path) -> Path | None:
    """Return the newest complete checkpoint, downloaded below ``scratch``, or None.

    The best one comes along, and the trainer's record of where it lies is corrected.
    """
    complete = {
        int(match[1]): name
        for name in store.list_folders(uri)
        if (match := _NAME.fullmatch(name)) and store.read_json(f"{uri}/{name}.json")
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
