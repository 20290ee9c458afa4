"""What one server offers: its models, styles, and the fields of its requests with their defaults. No I/O."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from worker.engines.fooocus.dialects import Dialect, dialect_of
from worker.errors import InvalidJob, ModelNotFound

ENDPOINTS: Mapping[str, str] = {
    "text-to-image": "/v1/generation/text-to-image",
    "text-to-image-with-ip": "/v2/generation/text-to-image-with-ip",
    "image-upscale-vary": "/v2/generation/image-upscale-vary",
    "image-inpaint-outpaint": "/v2/generation/image-inpaint-outpaint",
    "image-prompt": "/v2/generation/image-prompt",
    "image-enhance": "/v2/generation/image-enhance",
}
"""The names that its documentation gives them. Images go as base64 in JSON, so it is the second version where
there are two: the first takes forms, in which mistakes in the advanced parameters reset all of them silently."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """``models`` and ``loras`` by their path in the server's folders; ``api`` is its OpenAPI description."""

    dialect: Dialect
    models: tuple[str, ...]
    loras: tuple[str, ...]
    styles: tuple[str, ...]
    api: Mapping[str, Any]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(name for name, path in ENDPOINTS.items() if path in self.api["paths"])

    def default(self, name: str, *, of: str = "CommonRequest") -> Any:
        """What the server takes for a field that is left out; None where it does not say."""
        return _schemas(self.api).get(of, {}).get("properties", {}).get(name, {}).get("default")

    def check_fields(self, endpoint: str, body: Mapping[str, Any]) -> None:
        """Raises `InvalidJob` for fields that the server would drop without a word, at any depth."""
        content = self.api["paths"][ENDPOINTS[endpoint]]["post"]["requestBody"]["content"]
        self._check(body, content["application/json"]["schema"], "request")

    def _check(self, value: Any, node: Mapping[str, Any], field: str) -> None:
        alternatives = [self._resolved(n) for n in (node.get("anyOf") or node.get("allOf") or [node])]
        if isinstance(value, Mapping):
            known = {k: v for n in alternatives for k, v in n.get("properties", {}).items()}
            for key, inner in value.items():
                if known and key not in known:
                    raise InvalidJob(
                        f"{self.dialect.title} does not know this field{_like(key, known)}", field=f"{field}.{key}"
                    )
                self._check(inner, known.get(key, {}), f"{field}.{key}")
        elif isinstance(value, list):
            items: Mapping[str, Any] = next((n["items"] for n in alternatives if "items" in n), {})
            for i, inner in enumerate(value):
                self._check(inner, items, f"{field}.{i}")

    def _resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        found: Mapping[str, Any] = _schemas(self.api).get(reference.rpartition("/")[2], {})
        return found


def inventory_of(api: Any, listed: Any, styles: Any) -> Inventory | None:
    """From ``/openapi.json``, ``/v1/engines/all-models`` and ``/styles``; None where they are not Fooocus-API's."""
    if not isinstance(api, dict) or not isinstance(api.get("paths"), dict) or not isinstance(listed, dict):
        return None
    dialect = dialect_of(api["paths"])
    if dialect is None:
        return None
    models, loras = _names(listed.get("model_filenames")), _names(listed.get("lora_filenames"))
    return Inventory(dialect, models, loras, _names(styles), api)


def relisted(known: Inventory, listed: Any) -> Inventory:
    """The inventory with the files that a later body of ``/v1/engines/all-models`` lists."""
    body = listed if isinstance(listed, dict) else {}
    return replace(known, models=_names(body.get("model_filenames")), loras=_names(body.get("lora_filenames")))


def _schemas(api: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = api.get("components", {}).get("schemas", {})
    return found


def _names(value: Any) -> tuple[str, ...]:
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()


def find(known: Sequence[str], name: str, *, field: str, what: str) -> str:
    """The listed file that a name means, as `found`. Raises `ModelNotFound`, with the names that come close."""
    listed = found(known, name, field=field)
    if listed is None:
        raise ModelNotFound(f"{field}: the server has no {what} {name[:200]!r}{_like(name, known)}")
    return listed


def found(known: Sequence[str], name: str, *, field: str) -> str | None:
    """The listed file that a name means: as listed, else by its file name, else by its stem.

    Raises `InvalidJob` where several files have that name.
    """
    if name in known:
        return name
    paths = {k: PurePosixPath(k.replace("\\", "/")) for k in known}
    for fitting in ([k for k, p in paths.items() if p.name == name], [k for k, p in paths.items() if p.stem == name]):
        if len(fitting) > 1:
            raise InvalidJob(f"means any of {', '.join(fitting)}", field=field)
        if fitting:
            return fitting[0]
    return None


def one_of(known: Sequence[str], value: Any, *, field: str, what: str) -> None:
    """Raises `InvalidJob` for a name that the server would silently replace by its default."""
    if value not in known:
        said = _like(value, known) if isinstance(value, str) else ""
        raise InvalidJob(f"is no {what} of this server{said}", field=field)


def _like(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    lowered = {k.lower(): k for k in known}
    close = [lowered[k] for k in difflib.get_close_matches(name.lower(), lowered, n=3)]
    return f"; close to it: {', '.join(close)}" if close else ""
