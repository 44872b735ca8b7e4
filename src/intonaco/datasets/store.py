"""Content-addressed dataset versions in a local folder.

::

    objects/ab/cdef...        one file for each distinct content, read-only, by its sha256
    trees/VERSION/            hard links to objects: what ``open`` gives
    versions/VERSION.json     written last: a version exists when this file does
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from intonaco.clock import Clock
from intonaco.codec import decode, digest, encode
from intonaco.datasets.curation import METADATA
from intonaco.datasets.validation import Report, validate
from intonaco.errors import ConfigError, NotFound
from intonaco.types import DatasetDiff, DatasetVersion
from intonaco.workspace import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One file of a version."""

    path: str  # POSIX, relative
    sha256: str
    md5: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``versions/VERSION.json`` holds. ``files`` are sorted by path."""

    version: DatasetVersion
    files: tuple[Stored, ...]


class LocalDatasetStore:
    """Datasets under ``root``. ``on_invalid``: refuse a folder with a bad item, or leave the item
    out. ``check``: what looks at an image folder. Safe to use from several processes."""

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        on_invalid: Literal["fail", "drop"] = "fail",
        check: Callable[[Path], Report] = validate,
    ) -> None:
        self.root = root
        self.clock = clock
        self.on_invalid = on_invalid
        self.check = check

    def put(
        self,
        folder: Path,
        *,
        name: str,
        parents: Sequence[str] = (),
        replay: float = 0.0,
    ) -> DatasetVersion:
        """Add a folder of images with ``metadata.jsonl``; the same content gives the same version,
        with the name and parents it was first put with. Raises ConfigError that names the first
        offending file and how many more there are, or if no item is left."""
        report = self.check(folder)
        if self.on_invalid == "fail":
            report.raise_if_invalid()
        elif report.problems:
            log.warning(
                "%d problems in %s left out: %s",
                len(report.problems),
                folder,
                dict(report.counts),
                extra={"action": "dataset.drop"},
            )
        if not report.entries:
            raise ConfigError(f"{folder} has no usable items", hint=str(dict(report.counts)))
        files = sorted(self._store_all(report), key=lambda f: f.path)
        version = version_id(files)
        if (found := self._manifest(version)) is not None:
            return found.version
        made = DatasetVersion(
            version=version,
            dvc_md5=dvc_id(files),
            name=name,
            items=len(report.entries),
            bytes=sum(file.size for file in files),
            topics=dict(sorted(Counter(str(e.get("topic", "")) for e in report.entries).items())),
            parents=tuple(parents),
            replay=replay,
            created_at=self.clock.now(),
        )
        self._build_tree(version, files)
        write_atomic(self._file(version), encode(Manifest(version=made, files=tuple(files))))
        return made

    def open(self, version: str) -> Path:
        """The folder of a version: read-only files, shared with other versions. Raises NotFound."""
        manifest = self._require(version)
        tree = self.root / "trees" / version
        if not tree.is_dir():  # trees can be rebuilt, so they may be deleted to save room
            self._build_tree(version, manifest.files)
        return tree

    def diff(self, a: str, b: str) -> DatasetDiff:
        """Paths added, removed and changed from ``a`` to ``b``. Raises NotFound."""
        old = {file.path: file.sha256 for file in self._require(a).files}
        new = {file.path: file.sha256 for file in self._require(b).files}
        return DatasetDiff(
            added=tuple(sorted(set(new) - set(old))),
            removed=tuple(sorted(set(old) - set(new))),
            changed=tuple(sorted(p for p in set(old) & set(new) if old[p] != new[p])),
        )

    def list(self) -> Sequence[DatasetVersion]:
        """All versions, oldest first."""
        files = self.root.glob("versions/*.json")
        found = [decode(Manifest, file.read_bytes()).version for file in files]
        return sorted(found, key=lambda v: (v.created_at, v.version))

    def _store_all(self, report: Report) -> Iterable[Stored]:
        if report.problems:
            raw = "".join(f"{json.dumps(entry)}\n" for entry in report.entries).encode()
        else:
            raw = (report.folder / METADATA).read_bytes()
        yield self._store(METADATA, raw)
        for entry in report.entries:
            name = str(entry["file_name"])
            yield self._store(name, (report.folder / name).read_bytes())

    def _store(self, path: str, raw: bytes) -> Stored:
        stored = Stored(
            path=path,
            sha256=hashlib.sha256(raw).hexdigest(),
            md5=hashlib.md5(raw, usedforsecurity=False).hexdigest(),
            size=len(raw),
        )
        target = self._object(stored.sha256)
        if not target.exists():
            write_atomic(target, raw)
        target.chmod(0o444)  # every time: a kill may have come between
        return stored

    def _build_tree(self, version: str, files: Iterable[Stored]) -> None:
        """Build aside, then rename: a tree is whole or not there."""
        trees = self.root / "trees"
        trees.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=trees, prefix=".building-"))
        try:
            for file in files:
                target = temporary / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._object(file.sha256), target)
            temporary.chmod(0o755)
            temporary.rename(trees / version)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (trees / version).is_dir():  # else somebody else built the same tree just now
                raise

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256[2:]

    def _file(self, version: str) -> Path:
        return self.root / "versions" / f"{version}.json"

    def _manifest(self, version: str) -> Manifest | None:
        try:
            return decode(Manifest, self._file(version).read_bytes())
        except FileNotFoundError:
            return None

    def _require(self, version: str) -> Manifest:
        manifest = self._manifest(version)
        if manifest is None:
            raise NotFound(
                f"no dataset version {version}",
                hint="`intonaco dataset list` shows those there are",
            )
        return manifest


def version_id(files: Iterable[Stored]) -> str:
    """sha256 of the canonical JSON of the sorted (path, sha256) pairs."""
    return digest(sorted([file.path, file.sha256] for file in files))


def dvc_id(files: Iterable[Stored]) -> str:
    """The md5 that DVC names a directory by, without its ``.dir`` ending."""
    entries = [{"md5": file.md5, "relpath": file.path} for file in files]
    text = json.dumps(sorted(entries, key=lambda e: e["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
