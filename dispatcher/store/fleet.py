"""Nodes, roles, the catalogue: what is written off the dispatch path. Each function is one transaction's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, delete, or_, select, update

from dispatcher.store.base import NodeRow
from dispatcher.store.rows import adding_from, document_of, given, insert_into, json_of
from dispatcher.store.schema import models, moment, nodes, roles, stamp
from dispatcher.words import Source


def save_nodes(connection: Connection, rows: Sequence[NodeRow]) -> None:
    """What they told, unless something later is known; in the order of ids, so that nobody waits in a circle."""
    latest = {row.id: row for row in sorted(rows, key=lambda row: row.seen)}
    if not latest:
        return
    values = [
        {"id": row.id, "seen": stamp(row.seen), "report": row.report, "orders": json_of(row.orders)}
        for row in sorted(latest.values(), key=lambda row: row.id)
    ]
    connection.execute(_saving(connection.dialect.name), {"rows": json_of(values)})


@cache
def _saving(dialect: str) -> Executable:
    adding = adding_from(dialect, nodes, ("id", "seen", "report", "orders"))
    return adding.on_conflict_do_update(
        index_elements=["id"],
        set_={"seen": adding.excluded.seen, "report": adding.excluded.report},
        where=nodes.c.seen <= adding.excluded.seen,
    )


def save_orders(connection: Connection, orders: Mapping[str, Mapping[str, Any]]) -> None:
    if orders:
        rows = [{"id": node, "orders": json_of(orders[node])} for node in sorted(orders)]
        connection.execute(_ordering(connection.dialect.name), {"rows": json_of(rows)})


@cache
def _ordering(dialect: str) -> Executable:
    to = given(dialect, nodes.c.id, nodes.c.orders)
    return update(nodes).where(nodes.c.id == to.c.id).values(orders=to.c.orders)


def read_nodes(connection: Connection) -> list[NodeRow]:
    found = connection.execute(select(nodes).order_by(nodes.c.id))
    return [NodeRow(row.id, moment(row.seen), row.report, document_of(row.orders)) for row in found]


def lead(connection: Connection, role: str, holder: str, lease: timedelta, now: int) -> bool:
    """Whether the holder has the role, or has it now since nobody else does."""
    adding = insert_into(connection, roles).values(
        role=role, holder=holder, until=now + lease // timedelta(microseconds=1)
    )
    taking = adding.on_conflict_do_update(
        index_elements=["role"],
        set_={"holder": adding.excluded.holder, "until": adding.excluded.until},
        where=or_(roles.c.holder == holder, roles.c.until <= now),
    )
    return connection.execute(taking.returning(roles.c.role)).first() is not None


def put_models(connection: Connection, sources: Sequence[Source]) -> None:
    latest = {(one.kind, one.name): one for one in sources}
    if not latest:
        return
    adding = insert_into(connection, models)
    replacing = adding.on_conflict_do_update(
        index_elements=["kind", "name"],
        set_={column: adding.excluded[column] for column in ("url", "sha256", "size", "base")},
    )
    connection.execute(replacing, [asdict(latest[key]) for key in sorted(latest)])


def read_models(connection: Connection) -> list[Source]:
    rows = connection.execute(select(models).order_by(models.c.kind, models.c.name))
    return [Source(row.kind, row.name, row.url, row.sha256, row.size, row.base) for row in rows]


def remove_model(connection: Connection, kind: str, name: str) -> bool:
    return connection.execute(delete(models).where(models.c.kind == kind, models.c.name == name)).rowcount > 0
