"""The registry for those who want none: the ledger alone knows the releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from intonaco.errors import NotFound
from intonaco.registry.entries import release_tags
from intonaco.types import Json, Release


class NullRegistry:
    """Publishes nothing. Answers from the memory of this process, and takes an alias for a release
    that an earlier process registered, since a restart is no reason to stop an update."""

    def __init__(self) -> None:
        self._tags: dict[str, dict[str, str]] = {}  # release id -> tags, oldest first
        self._aliases: dict[str, str] = {}

    def register(self, release: Release, folder: Path, tags: Mapping[str, str]) -> str:
        self._tags.setdefault(release.release_id, {}).update(release_tags(release, tags))
        return self._version(release.release_id)

    def get(self, release_id: str) -> Mapping[str, Json]:
        if release_id not in self._tags:
            raise NotFound(f"release {release_id} was not registered in this process")
        return {
            "version": self._version(release_id),
            "tags": dict(self._tags[release_id]),
            "aliases": sorted(a for a, rid in self._aliases.items() if rid == release_id),
            "source": "",
        }

    def set_alias(self, alias: str, release_id: str | None) -> None:
        if release_id is None:
            self._aliases.pop(alias, None)
        else:
            self._aliases[alias] = release_id

    def history(self) -> Sequence[Mapping[str, Json]]:
        return [self.get(release_id) for release_id in self._tags]

    def _version(self, release_id: str) -> str:
        return str(list(self._tags).index(release_id) + 1)
