"""What SaladCloud's API takes when a container group is created: the schema of its specification, as far as we use it.

``additionalProperties`` is ours: a misspelt field must not pass for one that may be left out. Where the specification
and the platform's pages differ (memory, processors, disk), the narrower limit stands here.
"""

from __future__ import annotations

from typing import Any

_NAME = "^[a-z][a-z0-9-]{0,61}[a-z0-9]$"


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _text(most: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most, "pattern": "^.*$", **more}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_PORT = _integer(1, 65535)
_HEADER = _object("name value", name=_text(256), value=_text(1024))
_HTTP = _object(
    "headers path port scheme",
    headers={"type": "array", "items": _HEADER, "minItems": 1, "maxItems": 50},
    path=_text(2048),
    port=_PORT,
    scheme={"enum": ["http", "https"]},
)
_EXEC = _object("command", command={"type": "array", "items": _text(2048), "minItems": 1, "maxItems": 100})
_PROBE = {
    **_object(
        "failure_threshold initial_delay_seconds period_seconds success_threshold timeout_seconds",
        http=_HTTP,
        exec=_EXEC,
        initial_delay_seconds=_integer(0, 1200),
        period_seconds=_integer(1, 120),
        timeout_seconds=_integer(1, 60),
        success_threshold=_integer(1, 10),
        failure_threshold=_integer(1, 20),
    ),
    "oneOf": [{"required": ["http"]}, {"required": ["exec"]}],
}
_CONTAINER = _object(
    "image resources",
    image=_text(2048),
    resources=_object(
        "cpu memory",
        cpu=_integer(1, 16),
        memory=_integer(1024, 61_440),
        gpu_classes={"type": "array", "items": {"type": "string"}, "maxItems": 100},
        storage_amount=_integer(1_073_741_824, 268_435_456_000),
    ),
    environment_variables={"type": "object", "additionalProperties": _text(1000)},
)
_NETWORKING = _object(
    "auth port protocol",
    auth={"type": "boolean"},
    port=_PORT,
    protocol={"enum": ["http"]},
    load_balancer={"enum": ["round_robin", "least_number_of_connections"]},
    single_connection_limit={"type": "boolean"},
    client_request_timeout=_integer(1, 100_000),
    server_response_timeout=_integer(1, 100_000),
)

CONTAINER_GROUP: dict[str, Any] = _object(
    "autostart_policy container name replicas restart_policy",
    name={"type": "string", "minLength": 2, "maxLength": 63, "pattern": _NAME},
    container=_CONTAINER,
    autostart_policy={"type": "boolean"},
    restart_policy={"enum": ["always", "on_failure", "never"]},
    replicas=_integer(0, 500),
    networking=_NETWORKING,
    queue_connection=_object(
        "path port queue_name",
        path=_text(1024),
        port=_PORT,
        queue_name={"type": "string", "minLength": 2, "maxLength": 63, "pattern": _NAME},
    ),
    startup_probe=_PROBE,
    liveness_probe=_PROBE,
    readiness_probe=_PROBE,
)
