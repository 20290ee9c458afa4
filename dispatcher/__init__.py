"""The scheduling service: gives each node the job whose model it already has."""
