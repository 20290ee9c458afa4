"""Which waiting job a node gets: a pure decision."""
