"""HTTP in: probes, metrics and status, served by our own event loop."""
