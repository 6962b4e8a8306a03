"""Run by Alembic for each upgrade; the connection and its transaction are the catalog's."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
