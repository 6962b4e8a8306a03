"""The catalog's tables, of this release, of earlier and of later ones."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import create_mock_engine
from store_samples import IDENTITY, filled

from streamkv.errors import (
    ForeignStoreError,
)
from streamkv.store import SegmentPlace, SegmentStore, migrations, tables


def test_tables_can_be_made_on_postgresql() -> None:
    statements: list[str] = []
    engine = create_mock_engine("postgresql://", lambda sql, *_: statements.append(str(sql.compile(engine))))
    tables.Base.metadata.create_all(engine, checkfirst=False)
    assert len([text for text in statements if "CREATE TABLE" in text]) == 5


def test_migrations_make_the_tables_that_the_program_has(store: SegmentStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._catalog._reading() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, tables.Base.metadata) == []
        assert context.get_current_revision() == migrations.HEAD


def test_catalog_of_the_first_release_is_brought_up_to_date(store: SegmentStore) -> None:
    """Its tables had neither codec nor time of commit, and no note of a revision."""
    filled(store, 2)
    before = store.streams()
    store.close()
    with closing(sqlite3.connect(store.root / "catalog.sqlite")) as database:
        for column in ("codec", "committed_at"):
            database.execute(f"ALTER TABLE segments DROP COLUMN {column}")
        database.execute("DROP TABLE alembic_version")
        database.commit()
    with pytest.raises(
        ForeignStoreError, match=r"revision 0000, this program reads 0002; open .* for writing"
    ):
        SegmentStore.open(store.root, read_only=True)
    with SegmentStore.open(store.root, identity=IDENTITY) as again:
        assert again.streams() == before
        assert [place.codec for place in again.segments("cam", 0, 9)] == ["raw", "raw"]
        ages = again._catalog.committed_before("cam", before[0].created_at)
        assert [committed_at for _, committed_at in ages] == [before[0].created_at] * 2


def test_catalog_of_a_later_release_is_refused(store: SegmentStore) -> None:
    with closing(sqlite3.connect(store.root / "catalog.sqlite")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0999'")
        database.commit()
    with pytest.raises(ForeignStoreError, match="revision 0999, this program's of 0002"):
        SegmentStore.open(store.root, identity=IDENTITY)


def test_segment_row_has_every_field_of_a_place() -> None:
    columns = tables.SegmentRow.__table__.columns.keys()
    assert columns == [*(f.name for f in dataclasses.fields(SegmentPlace)), "committed_at"]
