"""Finding a store or making one, and refusing another's.

The root's marker and the catalog's row carry the same store id. Without it, a root that is opened with the
wrong catalog would have every file look like an orphan, to be cleaned away.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

from sqlalchemy import URL

from streamkv.errors import ForeignStoreError, StoreError
from streamkv.store import durable, layout
from streamkv.store.catalog import Catalog
from streamkv.store.records import FORMAT_VERSION, READABLE, ModelIdentity
from streamkv.store.rows import StoredIdentity


def open_catalog(
    root: Path, catalog_url: str, identity: ModelIdentity | None, *, read_only: bool
) -> tuple[Catalog, ModelIdentity]:
    """The catalog of the store at `root`, and the model that the store is of. See `SegmentStore.open`."""
    catalog = Catalog(catalog_url or default_url(root), read_only=read_only)
    try:
        known = bool(catalog_url) or (root / layout.CATALOG).is_file()
        stored = catalog.identity() if known else None
        if stored is None:
            stored = _created(root, catalog, identity, read_only=read_only)
        catalog.bring_up_to_date(read_only=read_only)
        _check_identity(root, stored, identity)
        _check_marker(root, catalog, stored, read_only=read_only)
        if stored.format_version != FORMAT_VERSION and not read_only:
            stored = _upgraded(root, catalog, stored)
    except OSError as exc:
        catalog.close()
        raise StoreError(f"store.root: cannot open {root}: {exc}") from exc
    except BaseException:
        catalog.close()
        raise
    return catalog, stored.model


def default_url(root: Path) -> URL:
    """The catalog's, unless store.catalog_url names another."""
    return URL.create("sqlite", database=str(root / layout.CATALOG))


def _created(
    root: Path, catalog: Catalog, identity: ModelIdentity | None, *, read_only: bool
) -> StoredIdentity:
    if identity is None or read_only:
        raise StoreError(f"no store in {root}; check store.root and store.catalog_url, or ingest first")
    durable.make_folder(root)
    if layout.holds_segments(root):
        found = catalog.identity()  # another process may have made it just now; else it is lost
        if found is None:
            raise StoreError(
                f"{root} holds segment files, but catalog {catalog.name} is new: restore the catalog that "
                "belongs to them, or make it from them with `streamkv store verify --repair`, or choose another "
                "store.root; nothing was changed"
            )
        return found
    store_id = marked_id(root) or uuid.uuid4().hex
    return catalog.create(StoredIdentity(store_id, FORMAT_VERSION, identity))


def _check_identity(root: Path, stored: StoredIdentity, identity: ModelIdentity | None) -> None:
    if stored.format_version not in READABLE:
        raise ForeignStoreError(
            f"store {root}: format version {stored.format_version}, this program reads "
            f"{', '.join(map(str, READABLE))}; use the release that wrote it, or another store.root"
        )
    if identity is not None and identity != stored.model:
        raise ForeignStoreError(
            f"store {root} was written by another model (the store's against this one's): "
            f"{stored.model.differences(identity)}; load the store's model, or use another store.root"
        )


def _check_marker(root: Path, catalog: Catalog, stored: StoredIdentity, *, read_only: bool) -> None:
    """Compares the root's marker; writes it when the store is new."""
    store_id = marked_id(root)
    if store_id is None and not read_only:
        if not catalog.streams():
            write_marker(root, stored)
        store_id = marked_id(root)  # again: another process may have written it, and then added a stream
    if store_id == stored.store_id:
        return
    raise ForeignStoreError(
        f"catalog {catalog.name} belongs to store {stored.store_id}, but {root} is {store_id or 'no store'}; "
        "check store.root and store.catalog_url"
    )


def _upgraded(root: Path, catalog: Catalog, stored: StoredIdentity) -> StoredIdentity:
    """Says that files of this version may follow, so that an older program refuses the store as a whole."""
    stored = replace(stored, format_version=FORMAT_VERSION)
    write_marker(root, stored)
    catalog.upgrade(FORMAT_VERSION)  # last: until then the next opening does this again
    return stored


def is_store(root: Path) -> bool:
    """Whether a store's marker is there; what it says is not looked at."""
    return (root / layout.MARKER).is_file()


def marked_id(root: Path) -> str | None:
    """The store's id in the root's marker; None when there is no marker."""
    path = root / layout.MARKER
    try:
        return str(json.loads(path.read_bytes())["store_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"{path}: not a store's marker ({exc}); restore it") from exc


def write_marker(root: Path, stored: StoredIdentity) -> None:
    """Durably; replaces one that is there."""
    text = json.dumps({"store_id": stored.store_id, "format_version": stored.format_version}, indent=1) + "\n"
    durable.make_folder(root)
    temp = root / f".{layout.MARKER}.{uuid.uuid4().hex}.tmp"
    with durable.removed_on_error(temp):
        durable.write_temp(temp, lambda file: file.write(text.encode()))
        durable.publish(temp, root / layout.MARKER)
