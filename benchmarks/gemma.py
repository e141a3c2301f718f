"""What a real pretrained model learns of a task type: the tables of docs/results.md.

    DISTILLERY_DATA=path/to/data python -m benchmarks.gemma nli [section.key=value ...]

Runs recipes/gemma/NAME.yaml as a user runs it: Gemma 3 270M as a LoRA student, the data set's own
references behind an endpoint as its teacher. Prints where the report is.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.processes import REPO
from benchmarks.references import read_references, serve
from schemas.recipe import Recipe, load_recipe

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "distillery/gemma-3-270m"


def main(name: str, *overrides: str) -> int:
    """Return the exit status of the run."""
    recipe = REPO / "recipes" / "gemma" / f"{name}.yaml"
    model = Path(os.environ.get("DISTILLERY_GEMMA", CACHE))
    if not (model / "config.json").is_file():
        print(
            f"{name} is skipped: Gemma 3 270M is not in {str(model)!r}. Name its folder in "
            "DISTILLERY_GEMMA."
        )
        return 1
    settings = [f"student.model={json.dumps(str(model))}", *overrides]
    references = read_references(load_recipe(recipe, settings, Recipe))
    server = serve(references)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base_url = f"http://127.0.0.1:{server.server_port}/v1"
    command = [sys.executable, "-m", "cli", "run", str(recipe), *settings]
    began = time.monotonic()
    status = subprocess.run([*command, f"teacher.base_url={base_url}"], cwd=REPO).returncode
    if status < 0:
        print(f"{name} was killed by signal {-status}: often for want of memory")
    print(f"{name}: {time.monotonic() - began:,.0f} s; {len(references):,} references known")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
