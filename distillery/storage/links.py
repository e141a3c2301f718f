"""Links to files of the store, for readers whose browser may be anywhere."""

from urllib.parse import quote

from distillery.storage.store import Store
from schemas.base import Ref
from schemas.execution import StoreSpec


def file_link(title: str, ref: Ref, file: str, store: StoreSpec) -> str:
    """Return Markdown that leads to a file of ``ref``: a link below `store.browse_url`.

    Without that address it says where the file is and what would make a link of it: a path of the
    worker's disk leads nowhere from another machine.
    """
    uri = f"{ref.uri}/{file}"
    if store.browse_url is not None:
        return f"[{title}]({store.browse_url.rstrip('/')}/{quote(uri)})"
    opened = Store(store.root)
    where = " on the machine that ran this" if opened.is_local else ""
    return (
        f"{title}: `{opened.location(uri)}`{where}. Set `store.browse_url` to the address under "
        "which browsers reach the store, and this becomes a link (docs/reports.md)."
    )
