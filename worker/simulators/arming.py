"""What the knobs of all simulated servers have in common: faults that are armed, and turning by a JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any, ClassVar, cast

from pydantic import TypeAdapter, ValidationError


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def spent(faults: Iterable[Any], kinds: Iterable[str], prompt: str) -> Any | None:
    """The first armed fault of these kinds that strikes this prompt; one use of it is spent."""
    wanted = set(kinds)
    for fault in faults:
        if fault.kind in wanted and fault.prompt in prompt and fault.times != 0:
            if fault.times is not None:
                fault.times -= 1
            return fault
    return None


class Turnable:
    """Base of a dataclass of knobs. ``fault_type`` is the dataclass of its faults."""

    fault_type: ClassVar[Any]
    faults: list[Any]

    def disarm(self, *kinds: str) -> None:
        """Take back the faults of these kinds, or all."""
        self.faults = [fault for fault in self.faults if kinds and fault.kind not in kinds]

    def turn(self, changes: object) -> None:
        """Apply a JSON document: fields of this class, and ``arm``, a fault or a list of them to add.

        Raises `ValueError` and changes nothing when a name or a type is wrong.
        """
        if not isinstance(changes, Mapping):
            raise ValueError("knobs are a JSON object")
        document = dict(changes)
        added = document.pop("arm", [])
        known = {f.name for f in fields(cast("Any", self))}
        if unknown := sorted(set(document) - known):
            raise ValueError(f"unknown knobs: {', '.join(unknown)}")
        try:
            turned = _adapter(cast("Any", type(self))).validate_python(asdict(cast("Any", self)) | document)
            armed = _adapter(list[self.fault_type]).validate_python(  # type: ignore[name-defined]
                added if isinstance(added, list) else [added]
            )
        except ValidationError as error:
            raise ValueError(str(error)) from error
        for name in document:
            setattr(self, name, getattr(turned, name))
        self.faults.extend(armed)

    def document(self) -> dict[str, Any]:
        """All knobs as JSON."""
        return cast("dict[str, Any]", _adapter(cast("Any", type(self))).dump_python(self, mode="json"))
