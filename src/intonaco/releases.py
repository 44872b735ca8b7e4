"""Release manifests: what decides an image in service, digested. No torch here.

A release folder is ``releases/RELEASE_ID/`` with ``release.json`` beside ``pipeline/`` (the folder
that ``save_pretrained`` wrote, LoRA adapters under ``adapters/NAME/`` in it) and ``lock.txt``, the
packages that its worker needs. What such a folder may hold is in ``folders.py``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from intonaco.codec import decode, digest, encode
from intonaco.environments.lock import (
    ENVIRONMENT_PACKAGES,
    environment_lock,
    environment_versions,
)
from intonaco.environments.store import EnvironmentStore
from intonaco.errors import ConfigError, NotFound
from intonaco.folders import ADAPTERS, PICKLES, check_adapters, check_folder, read_index
from intonaco.messages import GenerateRequest
from intonaco.sources import fetch, file_digest, is_remote
from intonaco.types import Json, Provenance, Release, ServingSpec
from intonaco.workspace import Workspace, write_atomic

__all__ = [
    "ENVIRONMENT_PACKAGES",
    "PICKLES",
    "ReleaseStore",
    "base_id",
    "base_spec",
    "check_folder",
    "environment_lock",
    "environment_versions",
    "file_digest",
    "link_base",
    "read_serving_spec",
    "release_id",
    "smoke_request",
]

OPTIONS = ("channels_last", "vae_slicing", "vae_tiling")


def read_serving_spec(
    folder: Path,
    *,
    generation: Mapping[str, Json],
    dtype: str = "float32",
    attention: str = "default",
    compile: bool = False,
    options: Iterable[str] = (),
    adapters: Iterable[str] = (),
    fused: bool = False,
    environment: str | None = None,
    safety_filter: str = "none",
) -> ServingSpec:
    """The serving section of a pipeline folder, worked out from its bytes. ``environment``: the id
    of the one it is to run in; this interpreter's if none is given. Raises ConfigError."""
    check_folder(folder)
    check_adapters(folder, adapters)
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ConfigError(
            f"options: {unknown[0]!r} is unknown", hint=f"known are {', '.join(OPTIONS)}"
        )
    index = read_index(folder)
    weights = {
        p.relative_to(folder).as_posix(): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    return ServingSpec(
        pipeline_class=index["_class_name"],
        weights=weights,
        scheduler=(index.get("scheduler") or [None, "none"])[1],
        generation=dict(generation),
        adapters=tuple(adapters),
        fused=fused,
        dtype=dtype,
        attention=attention,
        compile=compile,
        options=tuple(sorted(set(options))),
        safety_filter=safety_filter,
        environment=environment or environment_lock(),
    )


def release_id(spec: ServingSpec) -> str:
    """sha256 of the canonical JSON of the serving section."""
    return digest(spec)


def base_spec(spec: ServingSpec) -> ServingSpec:
    """The serving section without its adapters: of the base that it stands on."""
    weights = {f: d for f, d in spec.weights.items() if not f.startswith(f"{ADAPTERS}/")}
    return replace(spec, weights=weights, adapters=(), fused=False)


def base_id(spec: ServingSpec) -> str | None:
    """Digest of what releases must agree in to share one loaded base: all but their adapters and
    the defaults that a request may change anyway. None for one that cannot share: its adapters are
    added to the weights on loading, or it is compiled, and every switch would compile again."""
    if spec.compile or (spec.fused and spec.adapters):
        return None
    return digest(replace(base_spec(spec), generation={}))


def link_base(folder: Path, target: Path) -> None:
    """A pipeline folder again, without its adapters; hard links where the disk allows."""

    def adapters(at: str, names: list[str]) -> set[str]:
        return {ADAPTERS} & set(names) if Path(at) == folder else set()

    shutil.copytree(folder, target, copy_function=_link_or_copy, ignore=adapters)


def smoke_request(release: Release) -> GenerateRequest:
    """One picture with the release's own defaults, to see that it draws at all."""
    generation = release.serving.generation
    return GenerateRequest(
        request_id="smoke",
        prompt="smoke test",
        seed=1,
        steps=int(generation["steps"]),
        guidance_scale=float(generation["guidance_scale"]),
        width=int(generation["width"]),
        height=int(generation["height"]),
        release=release.release_id,
    )


class ReleaseStore:
    """Release folders of a workspace. Immutable: the same id is written once."""

    def __init__(self, workspace: Workspace, service_id: str) -> None:
        self.workspace = workspace
        self.service_id = service_id

    def add(self, folder: Path, spec: ServingSpec, provenance: Provenance) -> Release:
        """Copy a pipeline folder in (hard links where the disk allows) and write its manifest."""
        rid = release_id(spec)
        target = self.workspace.releases / rid
        if (target / "release.json").exists():
            return self.get(rid)
        release = Release(
            release_id=rid,
            service_id=self.service_id,
            serving=spec,
            provenance=provenance,
            path=f"releases/{rid}/pipeline",
        )
        self.workspace.releases.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.workspace.releases, prefix=".adding-"))
        shutil.copytree(folder, temporary / "pipeline", copy_function=_link_or_copy)
        environments = EnvironmentStore(self.workspace)
        if environments.knows(spec.environment):
            lock = environments.lock(spec.environment)
            environments.keep(lock)  # so that it can be built when this interpreter is another
            write_atomic(temporary / "lock.txt", lock.text())
        write_atomic(temporary / "release.json", encode(release))
        try:
            temporary.rename(target)
        except OSError:  # somebody else added the same release just now
            shutil.rmtree(temporary)
        return self.get(rid)

    def get(self, rid: str) -> Release:
        """Raises NotFound."""
        try:
            return decode(Release, (self.workspace.releases / rid / "release.json").read_bytes())
        except FileNotFoundError:
            raise NotFound(
                f"no release {rid}", hint="`intonaco release list` shows those there are"
            ) from None

    def list(self) -> list[Release]:
        files = self.workspace.releases.glob("*/release.json")
        found = [decode(Release, f.read_bytes()) for f in files]
        return sorted(found, key=lambda r: r.provenance.created_at)

    def folder(self, release: Release) -> Path:
        """The release's pipeline folder. One that lies at a URL is fetched into the workspace's
        cache, its bytes compared with the release's digests. Raises ConfigError, StorageError."""
        if is_remote(release.path):
            return fetch(release.path, self.workspace.models, weights=release.serving.weights)
        return self.workspace.resolve(release.path)


def _link_or_copy(source: str, target: str) -> None:
    try:
        # A hub's cache holds symbolic links, and a link to one would lead nowhere from here.
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
