"""Custom workflows."""
