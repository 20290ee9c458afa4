"""SaladCloud: who the node is there, and what its instance metadata service can be asked for."""

from worker.platforms.salad.metadata import Metadata, MetadataFailed
from worker.platforms.salad.platform import SaladPlatform

__all__ = ["Metadata", "MetadataFailed", "SaladPlatform"]
