"""Documents by status: what is active is found without reading all that ever was."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index(
        "documents_by_status", "documents", ["service_id", "kind", "status", "at"], unique=False
    )


def downgrade() -> None:
    op.drop_index("documents_by_status", "documents")
