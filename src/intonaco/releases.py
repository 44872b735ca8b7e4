"""Release manifests: what decides an image in service, digested. No torch here.

A release folder is ``releases/RELEASE_ID/`` with ``release.json`` beside ``pipeline/`` (the folder
that ``save_pretrained`` wrote) and ``lock.txt``, the packages that its worker needs. Weights are
safetensors only: a pickle in the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from intonaco.codec import decode, digest, encode
from intonaco.environments.lock import ENVIRONMENT_PACKAGES as ENVIRONMENT_PACKAGES
from intonaco.environments.lock import environment_lock as environment_lock
from intonaco.environments.lock import environment_versions as environment_versions
from intonaco.environments.store import EnvironmentStore
from intonaco.errors import ConfigError, NotFound
from intonaco.types import Json, Provenance, Release, ServingSpec
from intonaco.workspace import Workspace, write_atomic

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_folder(folder: Path) -> None:
    """Raises ConfigError unless the folder is a pipeline in safetensors."""
    if not folder.is_dir():
        raise ConfigError(
            f"model folder {folder} does not exist",
            hint="give the folder that `pipeline.save_pretrained` wrote",
        )
    pickles = [p for p in sorted(folder.rglob("*")) if p.suffix in PICKLES]
    if pickles:
        raise ConfigError(
            f"{pickles[0]} is a pickle checkpoint, which can run code when it is loaded",
            hint="save it again with `pipeline.save_pretrained(folder, safe_serialization=True)`",
        )
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline",
            hint="give the folder that `pipeline.save_pretrained` wrote",
        )


def read_serving_spec(
    folder: Path,
    *,
    generation: Mapping[str, Json],
    dtype: str = "float32",
    compile: bool = False,
    fused: bool = False,
    environment: str | None = None,
) -> ServingSpec:
    """The serving section of a pipeline folder, worked out from its bytes. ``environment``: the id
    of the one it is to run in; this interpreter's if none is given. Raises ConfigError."""
    check_folder(folder)
    index = json.loads((folder / "model_index.json").read_text())
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
        dtype=dtype,
        compile=compile,
        fused=fused,
        environment=environment or environment_lock(),
    )


def release_id(spec: ServingSpec) -> str:
    """sha256 of the canonical JSON of the serving section."""
    return digest(spec)


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
        return self.workspace.resolve(release.path)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
