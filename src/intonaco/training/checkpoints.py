"""Checkpoints: all that a run needs to go on as if it had never stopped.

``FOLDER/step-00000500/`` holds ``state.safetensors`` and ``state.json`` (step, the run it belongs
to, what is no tensor, sha256 of the tensors and of all this). It is written beside its place,
synced and renamed, so that a folder of that name is whole unless the disk lost something; that is
what the digests are for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intonaco.training.trouble import storage
from intonaco.types import Json

log = logging.getLogger(__name__)

_TENSORS, _FACTS = "state.safetensors", "state.json"
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)  # JSON of another form too


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Of one run. ``run``: a digest of what it trains and how; those of another are not used."""

    folder: Path
    run: str
    kept: int = 2

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Json]) -> None:
        """Write one, then delete all but the newest ``kept`` up to it: those of later steps were
        passed over by this run. Raises StorageError if it cannot be written; those before it stay
        as they are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08}"
        temporary = self.folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # of this run, killed while it wrote
        try:
            with storage(
                f"checkpoint of step {step} in {self.folder}",
                "checkpoints_kept in the recipe",
                SafetensorError,
            ):
                temporary.mkdir()
                save_file(dict(tensors), temporary / _TENSORS)
                said = {"step": step, "run": self.run, "facts": dict(facts)}
                said["tensors"] = _digest(temporary / _TENSORS)
                (temporary / _FACTS).write_text(json.dumps({**said, "sha256": _digest_of(said)}))
                for file in (temporary / _TENSORS, temporary / _FACTS, temporary):
                    _sync(file)
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
                _sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        there = self._all()
        newest = there.index(target)
        for other in there[:newest] + there[newest + self.kept :]:
            shutil.rmtree(other, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; each newer one that is not is told of in the log."""
        for folder in self._all():
            try:
                said = json.loads((folder / _FACTS).read_text())
                if said.pop("sha256") != _digest_of(said):
                    raise ValueError("its facts are not those that were written")
                if said["run"] != self.run:
                    raise ValueError("it belongs to another run")
                if said["tensors"] != _digest(folder / _TENSORS):
                    raise ValueError("its bytes are not those that were written")
                tensors = load_file(folder / _TENSORS)
                # Mapped from the file, which will be deleted and must not be changed by training.
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
                return Checkpoint(step=int(said["step"]), tensors=tensors, facts=said["facts"])
            except (*_BROKEN, SafetensorError) as error:
                log.warning(
                    "checkpoint %s is not used: %s",
                    folder.name,
                    error,
                    extra={"action": "training.checkpoint.ignored"},
                )
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _digest_of(said: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
