"""A name that one process holds at a time, as long as it lives."""

import contextlib
import time
from collections.abc import Iterator

from distillery.ledger.ledger import Ledger
from distillery.storage.fingerprint import sha256
from schemas.execution import StoreSpec

_LOOK_S = 1.0


@contextlib.contextmanager
def held(store: StoreSpec, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Claim ``name`` as the ledger's requests are claimed; yield whether nobody alive holds it.

    Args:
        store: Whose ledger everybody sees.
        name: What is held.
        wait: Until whoever holds it has let go, or died: then it is always True.
    """
    key = {sha256({"held": name})}
    with Ledger.open(store) as ledger, ledger.working() as owner:
        while not (is_held := bool(ledger.claim(key, owner, max_new_tokens=1))) and wait:
            time.sleep(_LOOK_S)
        yield is_held
