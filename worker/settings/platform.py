"""Which platform the variables tell of, and the defaults that differ there."""

from __future__ import annotations

from collections.abc import Mapping

SALAD_VARIABLES = (
    *("SALAD_MACHINE_ID", "SALAD_INSTANCE_ID", "SALAD_CONTAINER_GROUP_ID", "SALAD_CONTAINER_GROUP_NAME"),
    *("SALAD_ORGANIZATION_ID", "SALAD_ORGANIZATION_NAME", "SALAD_PROJECT_ID", "SALAD_PROJECT_NAME"),
    *("SALAD_METADATA_URI", "SALAD_STORAGE_URI", "SALAD_SERVICE_ENDPOINT", "SALAD_SERVICE_USE_TLS"),
)
"""What is read of the variables of SaladCloud, which sets them all but the last line's."""

SALAD_DEFAULTS: Mapping[str, str] = {
    "WORKER_HTTP_TIMEOUT": "95s",
    "WORKER_MODELS_START_TIMEOUT": "50m",
    "WORKER_STORAGE_KEEP": "1h",
}
"""Its gateway cuts an answer off after 100 s, its longest startup probe ends after an hour, its disk is small."""


def is_salad(environ: Mapping[str, str]) -> bool:
    """Whether these variables mean SaladCloud, however wrong the rest of them may be.

    A misspelt ``WORKER_PLATFORM`` counts as unset: the node is where it is.
    """
    told = environ.get("WORKER_PLATFORM", "").strip()
    if told in ("plain", "salad"):
        return told == "salad"
    return all(environ.get(name, "").strip() for name in ("SALAD_MACHINE_ID", "SALAD_CONTAINER_GROUP_ID"))


def with_defaults(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The variables, with the platform's own defaults for what is not set or empty."""
    if not is_salad(environ):
        return environ
    unset = {name: value for name, value in SALAD_DEFAULTS.items() if not environ.get(name, "").strip()}
    return {**environ, **unset}
