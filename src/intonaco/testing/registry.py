"""Twin and conformance checks of the Registry seam."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from intonaco.codec import encode
from intonaco.errors import BackendError, NotFound
from intonaco.protocols import Registry
from intonaco.releases import read_serving_spec, release_id
from intonaco.testing import require
from intonaco.types import Json, Provenance, Release


class MemoryRegistry:
    """A registry in memory. ``down = True`` makes every call fail as a lost server does;
    ``published`` keeps the bytes of each release folder by relative path."""

    def __init__(self) -> None:
        self.down = False
        self.published: dict[str, dict[str, bytes]] = {}  # release id -> files, oldest first
        self.aliases: dict[str, str] = {}  # alias -> release id
        self._tags: dict[str, dict[str, str]] = {}

    def register(self, release: Release, folder: Path, tags: Mapping[str, str]) -> str:
        self._reach()
        rid = release.release_id
        if rid not in self.published:
            files = {
                p.relative_to(folder).as_posix(): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
            self.published[rid] = {**files, "release.json": encode(release).encode()}
            self._tags[rid] = {}
        self._tags[rid].update({**tags, "intonaco.release_id": rid})
        return self._version(rid)

    def get(self, release_id: str) -> Mapping[str, Json]:
        self._reach()
        if release_id not in self.published:
            raise NotFound(f"release {release_id} is not in the registry")
        return {
            "version": self._version(release_id),
            "tags": dict(self._tags[release_id]),
            "aliases": sorted(a for a, rid in self.aliases.items() if rid == release_id),
            "source": f"memory:{release_id}",
        }

    def set_alias(self, alias: str, release_id: str | None) -> None:
        self._reach()
        if release_id is None:
            self.aliases.pop(alias, None)
        elif release_id in self.published:
            self.aliases[alias] = release_id
        else:
            raise NotFound(f"release {release_id} is not in the registry")

    def history(self) -> Sequence[Mapping[str, Json]]:
        self._reach()
        return [self.get(rid) for rid in self.published]

    def _reach(self) -> None:
        if self.down:
            raise BackendError("the registry is down", backend="memory", retriable=True)

    def _version(self, release_id: str) -> str:
        return str(list(self.published).index(release_id) + 1)


def sample_release(folder: Path, *, service_id: str = "sample", steps: int = 4) -> Release:
    """Writes a small pipeline folder (no model in it, but every file that a manifest needs) and
    gives its release. ``steps`` makes it another release."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": "SamplePipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet").mkdir(exist_ok=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(range(64)))
    spec = read_serving_spec(folder, generation={"steps": steps})
    rid = release_id(spec)
    return Release(
        release_id=rid,
        service_id=service_id,
        serving=spec,
        provenance=Provenance(
            created_at=1_700_000_000.0 + steps, dataset_version="d" * 64, training_job="job-1"
        ),
        path=f"releases/{rid}/pipeline",
    )


def check_registry(registry: Registry, release: Release, folder: Path) -> None:
    """Runs an empty registry through the protocol with a release and its pipeline folder.

    Raises AssertionError. Leaves two versions of other releases than ``release`` behind as well.
    """
    require(list(registry.history()) == [], "an empty registry has a history")
    _raises_not_found(lambda: registry.get("0" * 64), "get of an unknown release")
    _raises_not_found(
        lambda: registry.set_alias("champion", "0" * 64), "set_alias to an unknown release"
    )
    registry.set_alias("previous", None)  # removing what is not there changes nothing

    first = registry.register(release, folder, {"verdict": "inconclusive"})
    require(isinstance(first, str) and first, f"register gives a str, not {first!r}")
    again = registry.register(release, folder, {"verdict": "pass"})
    require(again == first, f"the same release got two versions: {first} and {again}")

    entry = registry.get(release.release_id)
    require(entry["version"] == first, f"get says version {entry['version']!r}, not {first!r}")
    require(
        set(entry) >= {"version", "tags", "aliases", "source"}, f"get gives only {sorted(entry)}"
    )
    require(entry["tags"].get("verdict") == "pass", "the second register did not update the tags")
    require(
        entry["tags"].get("intonaco.release_id") == release.release_id,
        "the tag intonaco.release_id is missing",
    )
    require(list(entry["aliases"]) == [], f"a new version has aliases: {entry['aliases']}")

    others = [replace(release, release_id=digit * 64) for digit in "ab"]
    versions = [first, *(registry.register(other, folder, {}) for other in others)]
    require(len(set(versions)) == 3, f"three releases got the versions {versions}")
    require([v["version"] for v in registry.history()] == versions, "history is not oldest first")

    registry.set_alias("champion", release.release_id)
    registry.set_alias("challenger", others[0].release_id)
    registry.set_alias("previous", others[0].release_id)
    registry.set_alias("champion", others[1].release_id)  # an alias points at one release
    found = {v["tags"]["intonaco.release_id"]: set(v["aliases"]) for v in registry.history()}
    require(
        found
        == {
            release.release_id: set(),
            others[0].release_id: {"challenger", "previous"},
            others[1].release_id: {"champion"},
        },
        f"aliases in history: {found}",
    )
    registry.set_alias("challenger", None)
    require(
        list(registry.get(others[0].release_id)["aliases"]) == ["previous"],
        "a removed alias is still there, or took another with it",
    )


def _raises_not_found(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except NotFound:
        return
    raise AssertionError(f"{what} does not raise NotFound")
