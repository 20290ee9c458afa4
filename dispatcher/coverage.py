"""Which nodes fetch and drop which models: a pure decision."""
