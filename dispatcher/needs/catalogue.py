"""The operator's models: found by what jobs and nodes call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dispatcher.words import Key, Source, key_of
from worker.mentions import place_of


class Catalogue:
    """Where each model is to be had. Of two entries of one name the later counts.

    A model is found by its digest, else by its path below the folder of its kind, else by its file's name alone where
    only one entry has that; with or without the extension.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._by_name: dict[Key, Source] = {}
        self._by_digest: dict[tuple[str, str], Source] = {}
        self._by_base: dict[Key, Source | None] = {}
        for source in sources:
            self._by_name[key_of(source.kind, source.name)] = source
        for source in self._by_name.values():
            if source.sha256:
                self._by_digest[place_of(source.kind, "").kind, source.sha256] = source
            base = _base_key(source.kind, source.name)
            self._by_base[base] = None if base in self._by_base else source
        self._by_key = {source.key: source for source in self._by_name.values()}

    @property
    def by_key(self) -> Mapping[Key, Source]:
        return MappingProxyType(self._by_key)

    def find(self, kind: str, name: str, sha256: str | None = None) -> Source | None:
        """The entry that is meant; never one whose digest is known to be another."""
        if sha256 is not None and (found := self._by_digest.get((place_of(kind, "").kind, sha256))) is not None:
            return found
        found = self._by_name.get(key_of(kind, name)) or self._by_base.get(key_of(kind, name))
        return found if found is None or sha256 is None or found.sha256 is None else None

    def keys_of(self, kind: str, name: str, sha256: str | None = None) -> tuple[Key, ...]:
        """All keys of a file that a node has, the one that it goes by first.

        A node may tell no digest where jobs have one from the catalogue, or its file may lie in a folder of which a job
        says nothing.
        """
        source = self.find(kind, name, sha256)
        keys = [key_of(kind, name, sha256)]
        if source is not None:
            keys = [source.key, *keys, key_of(source.kind, source.name)]
        keys += [key_of(kind, name), _base_key(kind, name)]
        return tuple(dict.fromkeys(keys))


def _base_key(kind: str, name: str) -> Key:
    return key_of(kind, name.replace("\\", "/").rpartition("/")[2])
