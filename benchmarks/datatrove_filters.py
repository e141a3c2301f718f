"""What datatrove's filters take on rows of a file; runs in an environment that has datatrove.

    <interpreter> datatrove_filters.py FOLDER {near_duplicate,decontamination,pii}

FOLDER holds `rows.jsonl` and `held_out.jsonl`, each row with `id` and `text`. Prints a JSON object:
the seconds between the first row and the last, with all steps in one process, and the rows kept.
Imports are not counted. Each filter is set as ours is by default, as far as it has the setting.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def documents(file: Path) -> Iterator[Any]:
    """Yield the rows of a file as datatrove has them."""
    from datatrove.data import Document

    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Document(text=row["text"], id=row["id"])


def near_duplicate(folder: Path) -> int:
    """Return the rows kept by MinHash: signatures, buckets, clusters, filter."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    # 128 hashes in bands of 4 of word 3-grams, as ours.
    config = MinhashConfig(n_grams=3, num_buckets=32, hashes_per_bucket=4)
    places = [str(folder / f"minhash-{time.time_ns()}" / name) for name in "abc"]
    MinhashDedupSignature(places[0], config).run(documents(folder / "rows.jsonl"))
    buckets = MinhashDedupBuckets(places[0], places[1], config=config)
    for bucket in range(config.num_buckets):
        buckets.run(rank=bucket, world_size=config.num_buckets)
    MinhashDedupCluster(places[1], places[2], config).run()
    return sum(1 for _ in MinhashDedupFilter(places[2]).run(documents(folder / "rows.jsonl")))


def decontamination(folder: Path) -> int:
    """Return the rows that share no 8-gram with a held-out row."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=8)
    place = folder / f"index-{time.time_ns()}"
    place.mkdir()
    chosen = NGramsDecontFilter(str(place), config)
    hashes = set()
    for row in documents(folder / "held_out.jsonl"):
        # Its own indexer wants lighteval; these are the lines that make an index.
        words = chosen.tokenizer.word_tokenize(simplify_text(row.text, config.norm_config))
        hashes |= {chosen.hash_func(" ".join(gram)) for gram in ngrams(words, config.n_grams)}
    kind = config.hash_config.np_descr
    np.array(list(hashes), dtype=kind).tofile(place / "held_out.index.hashes")
    return sum(1 for _ in chosen.run(documents(folder / "rows.jsonl")))


def pii(folder: Path) -> int:
    """Return the rows; e-mail and IP addresses in them are replaced."""
    from datatrove.pipeline.formatters import PIIFormatter

    return sum(1 for _ in PIIFormatter().run(documents(folder / "rows.jsonl")))


if __name__ == "__main__":
    from datatrove.utils.logging import logger

    logger.remove()
    chosen = {"near_duplicate": near_duplicate, "decontamination": decontamination, "pii": pii}
    run, at = chosen[sys.argv[2]], Path(sys.argv[1])
    import datatrove.pipeline.dedup
    import datatrove.pipeline.formatters  # noqa: F401

    start = time.perf_counter()
    kept = run(at)
    print(json.dumps({"seconds": time.perf_counter() - start, "kept": kept}))
