"""The worker's settings, read once from the environment."""

from worker.settings.groups import Settings as Settings
