"""Content-addressed dataset versions in a local folder.

::

    objects/ab/cdef...     one file for each distinct content, read-only, by its sha256
    files/VERSION.jsonl    the files of a version: [path, sha256, md5, size], one a line, by path
    versions/VERSION.json  written last: a version exists when this file does
    trees/VERSION/         hard links to objects: what ``open`` gives, made when first asked for
    incoming/              what is being made by processes that live
    state.db               what is known of files on disk, so that adding again is cheap

A put that is killed leaves no version, and the contents it had taken in are not read again by the
next one.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from intonaco import __version__
from intonaco.clock import Clock
from intonaco.codec import decode, digest, encode, lines_of
from intonaco.datasets.curation import METADATA
from intonaco.datasets.difference import ItemDiff, compare
from intonaco.datasets.formats import Columns, Source, metadata_lines, recognise
from intonaco.datasets.identity import (
    Found,
    Scan,
    Stored,
    dvc_id,
    hash_bytes,
    hash_file,
    scan,
    version_id,
)
from intonaco.datasets.layout import Laid, lay_out
from intonaco.datasets.objects import (
    Objects,
    Progress,
    has_content,
    intact,
    locked,
    silent,
    staging,
)
from intonaco.datasets.state import State, facts, opened
from intonaco.datasets.validation import Report, validate
from intonaco.errors import ConfigError, NotFound, StorageError
from intonaco.types import DatasetDiff, DatasetVersion, ReplayMix
from intonaco.workspace import write_atomic

log = logging.getLogger(__name__)

REMEMBER = 2048  # files hashed between two writes of the state


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``versions/VERSION.json`` holds. ``files``: only those of versions made before there
    was ``files/VERSION.jsonl``."""

    version: DatasetVersion
    files: tuple[Stored, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Paths of a version that are not what was put in. ``contents``: the object is gone or another;
    ``tree``: the folder that ``open`` gives has files that are gone, others, or not of it."""

    contents: tuple[str, ...] = ()
    tree: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.contents or self.tree)


class LocalDatasetStore:
    """Datasets under ``root``. ``on_invalid``: refuse a folder with a bad item, or leave the item
    out. ``check``: what looks at an image folder, and ``checked_as`` a word for the rules that it
    goes by: a source that passed is not checked again while the word is the same. Safe to use from
    several processes."""

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        on_invalid: Literal["fail", "drop"] = "fail",
        check: Callable[[Path], Report] = validate,
        checked_as: str = "",
    ) -> None:
        self.root = root
        self.clock = clock
        self.on_invalid = on_invalid
        self.check = check
        self.checked_as = checked_as
        self.objects = Objects(root)
        self._state = root / "state.db"

    # -------------------------------------------------------------------------------------- put

    def put(
        self,
        folder: Path,
        *,
        name: str,
        parents: Sequence[str] = (),
        replay: float = 0.0,
        mix: ReplayMix | None = None,
        columns: Columns | None = None,
        progress: Progress = silent,
    ) -> DatasetVersion:
        """Add an image folder, webdataset shards or parquet files (``formats``); the same content
        gives the same version, with the name and parents it was first put with.

        Raises ConfigError that names the first offending file and how many more there are, or if no
        item is left; StorageError if the disk is full."""
        columns = columns or Columns()
        source = recognise(folder)
        try:
            with opened(self._state) as state:
                return self._put(
                    state, source, columns, progress, name, tuple(parents), replay, mix
                )
        except sqlite3.Error as error:
            raise StorageError(f"{self._state}: {error}") from error
        except OSError as error:
            raise StorageError(f"{error.filename or self.root}: {error.strerror}") from error

    def _put(
        self,
        state: State,
        source: Source,
        columns: Columns,
        progress: Progress,
        name: str,
        parents: tuple[str, ...],
        replay: float,
        mix: ReplayMix | None,
    ) -> DatasetVersion:
        looked = scan(source.path)
        given = self._identify(state, source.path, looked, progress)
        source_id = _dvc_id_of(source.path, looked, given)
        options = [columns.text, columns.image, self.on_invalid, self.checked_as, __version__]
        key = digest([version_id(given.values()), looked.links, *options])
        if (before := state.made(key)) and self._whole(before):
            return self._also_from(before, source_id)
        with staging(self.root) as ours:
            laid = lay_out(source, given, columns, self.objects, ours, progress)
            report = self._checked(laid, source, progress)
            self._heed(report)
            metadata = self._metadata(laid.folder, report)
            _raise_if_changed(source, looked)
            files = [hash_bytes(METADATA, metadata)]
            files += [laid.files[str(entry["file_name"])] for entry in report.entries]
            contents: dict[str, Path | bytes] = {f.path: laid.folder / f.path for f in files}
            contents[METADATA] = metadata
            self.objects.add(
                ((file, contents[file.path]) for file in files),
                ours,
                move=laid.move,
                progress=progress,
            )
        files.sort(key=lambda file: file.path)
        made = DatasetVersion(
            version=version_id(files),
            dvc_md5=dvc_id(files),
            name=name,
            items=len(report.entries),
            bytes=sum(file.size for file in files),
            topics=dict(sorted(Counter(str(e.get("topic", "")) for e in report.entries).items())),
            parents=parents,
            replay=replay,
            mix=mix,
            created_at=self.clock.now(),
        )
        version = self._write(made, files, source_id)
        state.remember_made(key, version.version)
        return version

    def examine(
        self, folder: Path, *, columns: Columns | None = None, progress: Progress = silent
    ) -> Report:
        """What the ``check`` says of anything that ``put`` takes; no version is made of it. Raises
        ConfigError if it cannot be read, StorageError if the disk is full."""
        columns = columns or Columns()
        source = recognise(folder)
        try:
            with opened(self._state) as state, staging(self.root) as ours:
                looked = scan(source.path)
                given = self._identify(state, source.path, looked, progress)
                laid = lay_out(source, given, columns, self.objects, ours, progress)
                return self._checked(laid, source, progress)
        except sqlite3.Error as error:
            raise StorageError(f"{self._state}: {error}") from error
        except OSError as error:
            raise StorageError(f"{error.filename or self.root}: {error.strerror}") from error

    def _checked(self, laid: Laid, source: Source, progress: Progress) -> Report:
        progress("check", 0, 0)
        report = replace(self.check(laid.folder), folder=source.path)
        progress("check", 1, 1)
        return report

    def _identify(
        self, state: State, path: Path, looked: Scan, progress: Progress
    ) -> dict[str, Stored]:
        """Hashes of all files at a path, read only where they are not known."""
        folder = path.resolve()
        known = state.known(folder, looked.files)
        batch: list[tuple[Found, Stored]] = []
        read_at = self.clock.now()
        for done, found in enumerate(looked.files, start=1):
            if found.path not in known:
                file = path / found.path if path.is_dir() else path
                known[found.path] = hash_file(file, found.path)
                batch.append((found, known[found.path]))
            if len(batch) == REMEMBER:
                state.remember(folder, batch, read_at)
                batch, read_at = [], self.clock.now()
            progress("read", done, len(looked.files))
        state.remember(folder, batch, read_at)
        state.keep_only(folder, known.keys())
        return known

    def _heed(self, report: Report) -> None:
        if self.on_invalid == "fail":
            report.raise_if_invalid()
        elif report.problems:
            log.warning(
                "%d problems in %s left out: %s",
                len(report.problems),
                report.folder,
                dict(report.counts),
                extra={"action": "dataset.drop"},
            )
        if not report.entries:
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(report.counts.items()))
            raise ConfigError(
                f"{report.folder} has no usable items", hint=f"found: {counts or 'none at all'}"
            )

    def _metadata(self, folder: Path, report: Report) -> bytes:
        """To the byte what was given, unless items are left out."""
        if report.problems:
            return metadata_lines([dict(entry) for entry in report.entries]).encode()
        return (folder / METADATA).read_bytes()

    def _write(
        self, made: DatasetVersion, files: Sequence[Stored], source_id: str | None
    ) -> DatasetVersion:
        if self._manifest(made.version) is None:
            lines = (json.dumps([f.path, f.sha256, f.md5, f.size]) for f in files)
            write_atomic(self._files_file(made.version), "".join(f"{line}\n" for line in lines))
            with locked(self.root / ".lock"):
                if self._manifest(made.version) is None:
                    write_atomic(self._file(made.version), encode(Manifest(version=made)))
        return self._also_from(made.version, source_id)

    def _also_from(self, version: str, source_id: str | None) -> DatasetVersion:
        """The version, with one more source that gave it."""
        found = self._require(version)
        known = (found.version.dvc_md5, *found.version.source_ids)
        if source_id is None or source_id in known:
            return found.version
        with locked(self.root / ".lock"):
            found = self._require(version)
            ids = tuple(dict.fromkeys((*found.version.source_ids, source_id)))
            after = replace(found, version=replace(found.version, source_ids=ids))
            write_atomic(self._file(version), encode(after))
        return after.version

    # ------------------------------------------------------------------------------------- open

    def open(self, version: str) -> Path:
        """The folder of a version: read-only files, shared with other versions. A file in it that
        was changed, or is gone, is put back. Raises NotFound; StorageError if a content itself was
        changed."""
        files = self.files(version)
        tree = self._tree(version)
        if not tree.is_dir():  # trees can be built again, so they may be deleted to save room
            self._build_tree(version, files)
        for file in files:
            if intact(f"{tree}/{file.path}", file):
                continue
            if not self.objects.has(file):
                raise StorageError(
                    f"dataset version {version[:10]}: the content of {file.path} was changed or is"
                    " gone",
                    hint="add the same data again, or pull it: what is there is kept, the rest is"
                    " put back",
                )
            (tree / file.path).parent.mkdir(parents=True, exist_ok=True)
            self.objects.link(file, tree / file.path)
        return tree

    def verify(self, version: str, progress: Progress = silent) -> Damage:
        """Read every file of a version again. Changes nothing. Raises NotFound."""
        files = self.files(version)
        tree = self._tree(version)
        contents, wrong = [], []
        for done, file in enumerate(files, start=1):
            theirs = self.objects.path(file.sha256)
            if not has_content(theirs, file):
                contents.append(file.path)
            here = tree / file.path
            if tree.is_dir() and not (_same(here, theirs) or has_content(here, file)):
                wrong.append(file.path)
            progress("verify", done, len(files))
        there = {found.path for found in scan(tree).files} if tree.is_dir() else set()
        wrong += sorted(there - {file.path for file in files})
        return Damage(contents=tuple(contents), tree=tuple(wrong))

    def get(self, version: str) -> DatasetVersion:
        """By its id, or the beginning of it. Raises NotFound, also if several begin so."""
        if (exact := self._manifest(version)) is not None:
            return exact.version
        ids = sorted(p.stem for p in self.root.glob("versions/*.json"))
        fitting = [i for i in ids if version and i.startswith(version)]
        if len(fitting) > 1:
            short = ", ".join(i[: len(version) + 4] for i in fitting[:3])
            raise NotFound(f"several dataset versions begin with {version}: {short}")
        return self._require(fitting[0] if fitting else version).version

    def files(self, version: str) -> tuple[Stored, ...]:
        """The files of a version, by path. Raises NotFound; StorageError if the list of them is not
        the one that the version is named by."""
        manifest = self._require(version)
        files = manifest.files
        if not files:
            try:
                rows = map(json.loads, self._files_file(version).read_text().splitlines())
                files = tuple(Stored(path=p, sha256=s, md5=m, size=n) for p, s, m, n in rows)
            except (OSError, ValueError) as error:
                raise StorageError(f"{self._files_file(version)} cannot be read") from error
        if version_id(files) != version:
            raise StorageError(f"the list of files of dataset version {version} was changed")
        return files

    def diff(self, a: str, b: str) -> DatasetDiff:
        """Paths added, removed, changed and new from ``a`` to ``b``. Raises NotFound."""
        old = {file.path: file.sha256 for file in self.files(a)}
        new = {file.path: file.sha256 for file in self.files(b)}
        held = set(old.values())
        return DatasetDiff(
            added=tuple(sorted(set(new) - set(old))),
            removed=tuple(sorted(set(old) - set(new))),
            changed=tuple(sorted(p for p in set(old) & set(new) if old[p] != new[p])),
            new=tuple(sorted(p for p in new if new[p] not in held)),
        )

    def diff_items(self, a: str, b: str) -> ItemDiff:
        """The same by images, captions and topics. Raises NotFound, StorageError."""
        return compare(self._items(a), self._items(b))

    def list(self) -> Sequence[DatasetVersion]:
        """All versions, oldest first."""
        found = [
            decode(Manifest, file.read_bytes()).version
            for file in self.root.glob("versions/*.json")
        ]
        return sorted(found, key=lambda v: (v.created_at, v.version))

    # ------------------------------------------------------------------------------------ parts

    def _items(self, version: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """Of each image its sha256 and its line of metadata."""
        files = {file.path: file for file in self.files(version)}
        metadata = files.pop(METADATA)
        path = self.objects.path(metadata.sha256)
        if not self.objects.has(metadata):
            raise StorageError(f"the metadata of dataset version {version[:10]} was changed")
        entries = map(json.loads, lines_of(path.read_text(encoding="utf-8")))
        return {e["file_name"]: (files[e["file_name"]].sha256, e) for e in entries}

    def _whole(self, version: str) -> bool:
        try:
            return all(self.objects.has(file) for file in self.files(version))
        except (NotFound, StorageError):
            return False

    def _build_tree(self, version: str, files: Iterable[Stored]) -> None:
        """Build aside, then rename: a tree is whole or not there."""
        tree = self._tree(version)
        tree.parent.mkdir(parents=True, exist_ok=True)
        with staging(self.root) as ours:
            made = ours / "tree"
            made.mkdir()
            for folder in sorted({os.path.dirname(file.path) for file in files}):  # noqa: PTH120
                (made / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                try:
                    os.link(self.objects.path(file.sha256), made / file.path)
                except FileNotFoundError:
                    continue  # `open` says what is missing
                except OSError:
                    self.objects.link(file, made / file.path)
            try:
                made.rename(tree)
            except OSError:
                if not tree.is_dir():  # else somebody else built the same tree just now
                    raise

    def _tree(self, version: str) -> Path:
        return self.root / "trees" / version

    def _file(self, version: str) -> Path:
        if not version.isalnum():
            raise NotFound(f"{version!r} is no id of a dataset version")
        return self.root / "versions" / f"{version}.json"

    def _files_file(self, version: str) -> Path:
        return self.root / "files" / f"{version}.jsonl"

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


def _dvc_id_of(path: Path, looked: Scan, files: Mapping[str, Stored]) -> str | None:
    """The id that DVC gives a source; none if DVC would see other files in it than we do."""
    if not looked.whole:
        return None
    return dvc_id(files.values()) if path.is_dir() else files[path.name].md5


def _raise_if_changed(source: Source, looked: Scan) -> None:
    """The metadata, shards or parquet files are read after they were hashed; images are hashed
    again when they are taken in."""
    before = {found.path: facts(found.stat) for found in looked.files}
    for file in source.files:
        path = file.relative_to(source.path).as_posix() if file != source.path else file.name
        if not file.is_file() or before.get(path) != facts(file.stat()):
            raise ConfigError(f"{file} changed while it was added", hint="add it again")


def _same(a: Path, b: Path) -> bool:
    """One file under two names, so reading it once is enough."""
    try:
        return a.samefile(b)
    except OSError:
        return False
