"""Model files: what a job needs, brought to the node's disk and kept there under a cap."""
