"""What the groups of settings are made of."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ZERO = timedelta(0)


def var(name: str, default: Any, meaning: str, *, shown: str | None = None, **constraints: Any) -> Any:
    """A field read from the environment variable ``name``; ``shown`` is its default as the table prints it."""
    extra: dict[str, Any] = {"variable": name, "shown": shown}
    return Field(default, description=meaning, json_schema_extra=extra, validate_default=False, **constraints)


class Group(BaseModel):
    """Settings that belong together; each field is one variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
