"""What a node said of its models, by the keys that jobs know them by. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dispatcher.needs import Catalogue
from dispatcher.words import Key, Measured
from worker.mentions import place_of
from worker.wire import Availability, HeldModel, NodeInfo, Rates

MEMORY = frozenset({"checkpoint", "unet"})
"""Kinds that take the memory: at their turn everything else goes with them."""

File = tuple[str, str, str | None, int | None, str]
"""Kind, name, digest, bytes and tier of a file that a node has."""

_REMEMBERED = 50_000


def files_of(models: Iterable[HeldModel]) -> tuple[File, ...]:
    return tuple((one.kind, one.name, one.sha256, one.size, one.tier) for one in models)


@dataclass(frozen=True, slots=True)
class Stock:
    """A node's files. ``held`` and ``loaded`` have every key of each; ``same`` leads from the others to the first.

    ``main`` are the first keys of what takes the memory now.
    """

    held: frozenset[Key] = frozenset()
    loaded: frozenset[Key] = frozenset()
    same: Mapping[Key, Key] = field(default_factory=dict)
    sizes: Mapping[Key, int] = field(default_factory=dict)
    main: frozenset[Key] = frozenset()

    def first(self, key: Key) -> Key:
        """The key that the file of this key goes by first."""
        return self.same.get(key, key)


class Labels:
    """The keys of files, remembered: the same files are reported again and again."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known: dict[tuple[str, str, str | None], tuple[Key, ...]] = {}

    def of(self, kind: str, name: str, sha256: str | None) -> tuple[Key, ...]:
        file = (kind, name, sha256)
        keys = self._known.get(file)
        if keys is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            keys = self._known[file] = self._catalogue.keys_of(*file)
        return keys

    def stock(self, files: Iterable[File]) -> Stock:
        """What a node has, as it tells it."""
        held: list[Key] = []
        loaded: list[Key] = []
        main: list[Key] = []
        same: dict[Key, Key] = {}
        sizes: dict[Key, int] = {}
        for kind, name, sha256, size, tier in files:
            keys = self.of(kind, name, sha256)
            held += keys
            same.update(dict.fromkeys(keys[1:], keys[0]))
            if size is not None:
                sizes[keys[0]] = size
            if tier == "vram":
                loaded += keys
                if place_of(kind, "").kind in MEMORY:
                    main.append(keys[0])
        return Stock(frozenset(held), frozenset(loaded), same, sizes, frozenset(main))


def measured(rates: Rates | None) -> Measured:
    """What a node measured of itself, and what is assumed of what it did not, or of what cannot be."""
    if rates is None:
        return Measured()
    told = {"disk": rates.disk, "network": rates.network, "load": rates.load, "step": rates.step}
    return replace(Measured(), **{name: value for name, value in told.items() if value})


def speaks_ours(asked: Availability) -> bool:
    """Whether the node says more than the published example does, so that it understands more too."""
    return asked.models is not None or asked.wait is not None or asked.node.instance is not None


def merged(before: NodeInfo, now: NodeInfo) -> NodeInfo:
    """The node as it was told last, a later word before an earlier one; a heartbeat may say less than a poll."""
    told = {name: value for name in NodeInfo.model_fields if (value := getattr(now, name)) is not None}
    return before.model_copy(update=told)
