"""The jobs, in SQL."""
