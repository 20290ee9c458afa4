"""Options that jobs override, and the node's own values that the next job gets back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.sdapi.inventory import Inventory

_OURS = frozenset({"samples_format", "server_rate_limit", "keep_incomplete", "sd_checkpoint_autodownload"})


def is_ours(option: str) -> bool:
    """Whether an option is the operator's alone: what the server's answers rest on, and where its files lie."""
    return option in _OURS or option.endswith("_dir") or option.startswith("outdir")


class Overrides:
    """What was overridden so far. Nothing is restored by the server itself, since it would load the old model again."""

    def __init__(self) -> None:
        self._baseline: dict[str, Any] = {}
        self._dirty: set[str] = set()

    def completed(self, body: Mapping[str, Any], inventory: Inventory, *, fresh: bool) -> dict[str, Any]:
        """The job's overrides, and the node's own value of each option that an earlier job overrode."""
        own = dict(body.get("override_settings") or {})
        if fresh and "persistent_cond_cache" in inventory.options:
            own.setdefault("persistent_cond_cache", False)
        for key in own:
            if key != "sd_model_checkpoint" and key in inventory.options:
                self._baseline.setdefault(key, inventory.options[key])
        return {k: self._baseline[k] for k in sorted(self._dirty) if k in self._baseline and k not in own} | own

    def sent(self, body: Mapping[str, Any], *, ok: bool) -> None:
        """Note what the server may have kept of a body."""
        sent = dict(body.get("override_settings") or {})
        sent.pop("sd_model_checkpoint", None)
        changed = {k for k, v in sent.items() if k not in self._baseline or self._baseline[k] != v}
        self._dirty = changed if ok else self._dirty | set(sent)

    def settled(self, options: Mapping[str, Any]) -> None:
        """The node's own values from now on, as they were just set."""
        self._baseline |= {k: v for k, v in options.items() if k in self._baseline}
        self._dirty -= set(options)
