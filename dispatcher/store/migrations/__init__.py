"""The steps by which a database comes to the present tables, run by alembic when a store is opened."""
