"""Brings a ledger's tables to this version's form (Alembic)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from intonaco.errors import StorageError


def migrate(engine: Engine) -> None:
    """Apply the migrations that are missing. Raises StorageError if the ledger is newer than this
    version of Intonaco."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    # Reading first: a ledger that somebody keeps locked can be opened all the same.
    with engine.execution_options(intonaco_read_only=True).connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == (
            scripts.get_current_head()
        ):
            return
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current == scripts.get_current_head():
            return
        if current is not None and current not in {s.revision for s in scripts.walk_revisions()}:
            raise StorageError(
                f"the ledger has revision {current}, which this version does not know",
                hint="upgrade intonaco to the version that wrote this workspace",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
