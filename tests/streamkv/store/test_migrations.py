"""The catalog's tables, of this release, of earlier and of later ones."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import create_engine, text
from store_samples import IDENTITY, filled, on_both

from streamkv.errors import ForeignStoreError
from streamkv.store import SegmentPlace, SegmentStore, migrations, tables


def execute(store: SegmentStore, url: str, *statements: str) -> None:
    """What an earlier or a later release would have done to the catalog."""
    engine = create_engine(url or f"sqlite:///{store.root}/catalog.sqlite")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@on_both
def test_migrations_make_the_tables_that_the_program_has(store: SegmentStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._catalog._reading() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, tables.Base.metadata) == []
        assert context.get_current_revision() == migrations.HEAD


@on_both
def test_catalog_of_the_first_release_is_brought_up_to_date(store: SegmentStore, catalog_url: str) -> None:
    """Its tables had neither codec nor time of commit, and no note of a revision."""
    filled(store, 2)
    before = store.streams()
    store.close()
    later = (
        "segments.codec segments.committed_at segments.uploaded_at segments.exchange_no "
        "streams.tenant streams.legal_hold streams.first_segment_no streams.name streams.num_exchanged"
    )
    drops = ["ALTER TABLE {} DROP COLUMN {}".format(*name.split(".")) for name in later.split()]
    tables_too = [
        f"DROP TABLE {name}" for name in ("watch_events", "watches", "removed_objects", "alembic_version")
    ]
    indexes = [f"DROP INDEX {name}" for name in ("segments_waiting", "segments_exchanged", "streams_by_name")]
    execute(store, catalog_url, *indexes, *drops, *tables_too)
    with pytest.raises(
        ForeignStoreError, match=rf"revision 0000, this program reads {migrations.HEAD}; open .* for writing"
    ):
        SegmentStore.open(store.root, catalog_url=catalog_url, read_only=True)
    with SegmentStore.open(store.root, catalog_url=catalog_url, identity=IDENTITY) as again:
        assert again.streams() == before
        assert [place.codec for place in again.segments("cam", 0, 9)] == ["raw", "raw"]
        ages = again._catalog.committed_before("cam", before[0].created_at)
        assert [committed_at for _, committed_at in ages] == [before[0].created_at] * 2


@on_both
def test_catalog_of_a_later_release_is_refused(store: SegmentStore, catalog_url: str) -> None:
    execute(store, catalog_url, "UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(ForeignStoreError, match=f"revision 0999, this program's of {migrations.HEAD}"):
        SegmentStore.open(store.root, catalog_url=catalog_url, identity=IDENTITY)


def test_segment_row_has_every_field_of_a_place() -> None:
    columns = tables.SegmentRow.__table__.columns.keys()
    more = ["committed_at", "uploaded_at", "exchange_no"]
    assert columns == [*(f.name for f in dataclasses.fields(SegmentPlace)), *more]
