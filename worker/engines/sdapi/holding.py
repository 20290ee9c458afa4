"""What a server of this family holds or falls back to, and how it lets go of files that are to be deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from worker.engines.sdapi.inventory import Inventory, loaded_checkpoint
from worker.engines.sdapi.mentions import place
from worker.engines.sdapi.models import NO_VAE, SAME
from worker.engines.sdapi.names import LEVELS, ModelFile
from worker.engines.sdapi.server import Server
from worker.mentions import Place
from worker.tasks import gather_bare

log = structlog.get_logger(__name__)

MODULES = "forge_additional_modules"


class Holding:
    """``home`` is the label of the checkpoint that last made a picture: what the server is brought back to.

    Nothing here takes the engine's turn; what changes the server is to be called under it.
    """

    def __init__(self) -> None:
        self.home: str | None = None
        self.told: frozenset[Place] | None = None
        """The checkpoint that the server itself says is in its memory; None where it does not tell."""
        self._seen: frozenset[Place] = frozenset()
        self._let_go: frozenset[Place] = frozenset()

    def forget(self) -> None:
        """Another process: it holds what it is configured with."""
        self._seen = self._let_go = frozenset()
        self.told = None

    def heard(self, inventory: Inventory | None, current: Any) -> bool:
        """Take note of the body of ``/checkpoint``; whether it tells of a model."""
        loaded = loaded_checkpoint(inventory, current, {}) if inventory is not None else None
        if inventory is not None and inventory.dialect.reports_status:
            self.told = frozenset() if loaded is None else frozenset({place(inventory, "checkpoint", loaded)})
        return is_loaded(current)

    def used(self) -> None:
        """A generation begins: it may load anything again."""
        self._let_go = frozenset()

    async def looked_up(self, server: Server, inventory: Inventory) -> None:
        """Learn what the server holds and is configured with; it may be generating. Raises `EngineCrashed`."""
        current, options = await _readings(server)
        self._seen = held(inventory, current, options) | self._at_home(inventory)

    @property
    def places(self) -> frozenset[Place]:
        """As it was last seen, without what was let go since: an option may go on naming it."""
        return self._seen - self._let_go

    def _at_home(self, inventory: Inventory) -> frozenset[Place]:
        return frozenset(place(inventory, "checkpoint", c) for c in inventory.checkpoints if c.label == self.home)

    async def go_home(self, server: Server, inventory: Inventory, *, timeout: timedelta) -> None:
        """Select the model again that last made a picture: a failed job's own may be none, or too large.

        It would stay selected, and the canary and every job that names no model would fail with it.
        """
        for model in inventory.checkpoints:
            if model.label == self.home:
                await server.select(model.title, timeout=timeout)
                log.info("engine_model_restored", model=model.title)

    def chosen(self, inventory: Inventory, current: Any, options: Mapping[str, Any]) -> None:
        """Somebody who may has selected another model: from now on that is the one to come back to."""
        self.heard(inventory, current)
        loaded = loaded_checkpoint(inventory, current, options)
        self.home = loaded.label if loaded is not None else self.home

    async def let_go(
        self, server: Server, inventory: Inventory, places: Collection[Place], *, timeout: timedelta
    ) -> tuple[dict[str, Any], bool]:
        """Hold none of these files any more: the options that were changed, and whether no model is loaded now.

        Another checkpoint that is kept takes the place of the loaded one where there is one: the loaded one itself
        when only an option names the doomed, else that which last made a picture.
        """
        doomed = frozenset(places)
        current, options = await _readings(server)
        changed = without(inventory, options, doomed)
        if changed:
            await server.set_options(changed, timeout=timeout)
        loaded = loaded_checkpoint(inventory, current, options)
        named = [f for f in (loaded, *meant(inventory.checkpoints, options.get("sd_model_checkpoint"))) if f]
        emptied = False
        if any(place(inventory, "checkpoint", f) in doomed for f in named):
            emptied = not await self._replaced(server, inventory, loaded, doomed, timeout)
        if self._at_home(inventory) & doomed:
            self.home = None
        self._let_go |= doomed
        return changed, emptied

    async def _replaced(
        self,
        server: Server,
        inventory: Inventory,
        loaded: ModelFile | None,
        doomed: frozenset[Place],
        timeout: timedelta,
    ) -> bool:
        """Whether another checkpoint is selected; else the loaded one is unloaded."""
        candidates = [loaded, *(c for c in inventory.checkpoints if c.label == self.home)]
        kept = [c for c in candidates if c is not None and place(inventory, "checkpoint", c) not in doomed]
        if kept:
            await server.select(kept[0].title, timeout=timeout)
            log.info("engine_model_replaced", model=kept[0].title)
        else:
            await server.unload()
            log.info("engine_model_unloaded")
        return bool(kept)


def is_loaded(current: Any) -> bool:
    """Whether the body of ``/checkpoint`` tells of a model; its class is null until one is there."""
    return isinstance(current, dict) and current.get("class") is not None


async def _readings(server: Server) -> tuple[Any, dict[str, Any]]:
    current, options = await gather_bare([server.checkpoint(), server.configured()], name="engine-holding")
    return current, options


def held(inventory: Inventory, current: Any, options: Mapping[str, Any]) -> frozenset[Place]:
    """The listed files that the body of ``/checkpoint`` and the options name."""
    loaded = loaded_checkpoint(inventory, current, options)
    found = [(loaded, "checkpoint")] if loaded is not None else []
    for key in ("sd_model_checkpoint", "sd_model_refiner"):
        found += [(f, "checkpoint") for f in meant(inventory.checkpoints, options.get(key))]
    for name in (options.get("sd_vae"), *_modules(options)):
        found += [(f, "vae") for f in meant(inventory.vaes or (), name)]
    return frozenset(place(inventory, kind, f) for f, kind in found if f.filename)


def without(inventory: Inventory, options: Mapping[str, Any], doomed: frozenset[Place]) -> dict[str, Any]:
    """The options that name doomed files beside the checkpoint, with what they are to be instead."""
    changed: dict[str, Any] = {}
    if _is_doomed(inventory, meant(inventory.vaes or (), options.get("sd_vae")), "vae", doomed):
        changed["sd_vae"] = "Automatic"
    refiner = meant(inventory.checkpoints, options.get("sd_model_refiner"))
    if _is_doomed(inventory, refiner, "checkpoint", doomed):
        changed["sd_model_refiner"] = "None"
    modules = _modules(options)
    kept = [m for m in modules if not _is_doomed(inventory, meant(inventory.vaes or (), m), "vae", doomed)]
    if len(kept) != len(modules):
        changed[MODULES] = kept
    return changed


def _is_doomed(inventory: Inventory, files: Iterable[ModelFile], kind: str, doomed: frozenset[Place]) -> bool:
    return any(place(inventory, kind, f) in doomed for f in files)


def _modules(options: Mapping[str, Any]) -> list[Any]:
    found = options.get(MODULES)
    return found if isinstance(found, list) else []


def meant(files: Collection[ModelFile], name: Any) -> tuple[ModelFile, ...]:
    """All files that an option may mean: one that names several holds each of them."""
    if not isinstance(name, str) or name in SAME or name in NO_VAE:
        return ()
    found: tuple[ModelFile, ...] = ()
    for level in range(LEVELS):
        found = found or tuple(f for f in files if f.called(name, level))
    return found


def changed_in(inventory: Inventory, options: Mapping[str, Any]) -> Inventory:
    """The inventory after options were set."""
    return replace(inventory, options={**inventory.options, **options})
