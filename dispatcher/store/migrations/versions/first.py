"""The first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

WORD = sa.Text().with_variant(sa.String(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
BRISK = {"autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.05}
TURN = ("minus_priority", "rank", "id")
UNHELD = "status IN ('waiting', 'delayed')"


def upgrade() -> None:
    _jobs()
    _jobs_indexes()
    _what_is_said_of_jobs()
    _who_holds()
    _how_it_ended()
    _the_line()
    _the_fleet()


def _numbered(name: str) -> sa.Column[Any]:
    return sa.Column(name, NUMBER, sa.Identity(), primary_key=True)


def _column(name: str, of: Any, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, of, nullable=False, **more)


def _place() -> sa.Column[Any]:
    return sa.Column("place", NUMBER, primary_key=True, autoincrement=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        _numbered("place"),
        _column("id", WORD, unique=True),
        _column("fingerprint", WORD),
        _column("status", WORD),
        _column("key", WORD),
        _column("minus_priority", NUMBER),
        _column("rank", sa.Double),
        _column("work_ms", NUMBER),
        _column("owner", WORD),
        _column("queued_at", NUMBER),
        sa.Column("visible_at", NUMBER),
        sa.Column("deadline", NUMBER),
        _column("run", sa.Integer, server_default="0"),
        _column("deliveries", sa.Integer, server_default="0"),
        _column("handed", sa.Integer, server_default="0"),
        sa.Column("token", NUMBER),
        sa.Column("ended_at", NUMBER),
        sa.Column("code", WORD),
        _column("needs", sa.Text),
        sqlite_autoincrement=True,
        postgresql_with=BRISK,
    )


def _partial(name: str, *columns: str, where: str) -> None:
    op.create_index(name, "jobs", list(columns), postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def _jobs_indexes() -> None:
    _partial("jobs_of_key", "key", *TURN, where="status = 'waiting'")
    _partial("jobs_in_line", *TURN, where="status = 'waiting'")
    _partial("jobs_of_owner", "owner", *TURN, where="status = 'waiting'")
    _partial("jobs_delayed", "visible_at", "id", where="status = 'delayed'")
    _partial("jobs_due", "deadline", where=f"{UNHELD} AND deadline IS NOT NULL")
    _partial("jobs_handed_much", "deliveries", where=f"{UNHELD} AND deliveries > 3")
    _partial("jobs_over", "status", "ended_at", "id", where="status IN ('done', 'dead')")


def _what_is_said_of_jobs() -> None:
    op.create_table("documents", _place(), _column("document", sa.Text))
    op.create_table("results", _place(), _column("result", sa.Text))
    op.create_table(
        "inline_results",
        _numbered("number"),
        _column("place", NUMBER, unique=True),
        _column("result", sa.Text),
        sqlite_autoincrement=True,
    )


def _who_holds() -> None:
    op.create_table(
        "leases",
        _numbered("token"),
        _column("place", NUMBER, unique=True),
        _column("job_id", WORD, unique=True),
        _column("node", WORD),
        _column("minus_priority", NUMBER),
        _column("rank", sa.Double),
        _column("until", NUMBER),
        sa.Column("progress", sa.Double),
        sa.Column("hop", WORD),
        _column("cancelling", sa.Boolean, server_default=sa.false()),
        sqlite_autoincrement=True,
        postgresql_with={"fillfactor": 50, **BRISK},
    )


def _how_it_ended() -> None:
    op.create_table(
        "attempts",
        sa.Column("token", NUMBER, primary_key=True, autoincrement=False),
        _column("place", NUMBER, index=True),
        _column("run", sa.Integer),
        _column("worker", WORD),
        _column("ended_at", NUMBER),
        sa.Column("code", WORD),
        _column("charged", sa.Boolean),
    )
    op.create_table(
        "letters",
        _numbered("id"),
        _column("place", NUMBER, index=True),
        _column("job_id", WORD),
        _column("event", WORD),
        _column("document", sa.Text),
        _column("result", sa.Text),
        _column("tries", sa.Integer, server_default="0"),
        _column("due_at", NUMBER, index=True),
        sqlite_autoincrement=True,
    )


def _the_line() -> None:
    line = op.create_table(
        "line",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first", WORD),
        _column("passed", NUMBER, server_default="0"),
        _column("news", NUMBER, server_default="0"),
        postgresql_with={"fillfactor": 10},
    )
    op.bulk_insert(line, [{"one": 1}])
    op.create_table(
        "virtual_times",
        sa.Column("minus_priority", NUMBER, primary_key=True, autoincrement=False),
        _column("virtual", sa.Double),
        _column("moved_at", NUMBER),
    )
    op.create_table(
        "backlog",
        _numbered("number"),
        _column("key", WORD),
        _column("waiting", NUMBER),
        _column("work_ms", NUMBER),
        sqlite_autoincrement=True,
        postgresql_with=BRISK,
    )


def _the_fleet() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", WORD, primary_key=True),
        _column("seen", NUMBER),
        _column("report", sa.Text),
        _column("orders", sa.Text),
        postgresql_with={"fillfactor": 50, **BRISK},
    )
    op.create_table(
        "roles", sa.Column("role", WORD, primary_key=True), _column("holder", WORD), _column("until", NUMBER)
    )
    op.create_table(
        "models",
        sa.Column("kind", WORD, primary_key=True),
        sa.Column("name", WORD, primary_key=True),
        sa.Column("url", sa.Text),
        sa.Column("sha256", WORD),
        sa.Column("size", NUMBER),
        sa.Column("base", WORD),
    )
