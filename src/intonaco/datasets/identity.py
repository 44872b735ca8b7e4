"""What a dataset version is named by: the sha256 of its files, and the id that DVC gives them.

DVC names a directory by the md5 of its ``.dir`` object: the JSON list of ``{"md5", "relpath"}`` of
all files in it, sorted by path (https://doc.dvc.org/user-guide/project-structure/internal-files).
A single file it names by its plain md5.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from intonaco.errors import ConfigError

CHUNK = 1 << 20
NOT_DATA = frozenset({".git", ".hg", ".dvc"})  # what DVC leaves out of every directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One file of a version. ``path``: POSIX, relative."""

    path: str
    sha256: str
    md5: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file on disk, not read yet. ``path``: POSIX, relative to the folder looked through."""

    path: str
    stat: os.stat_result


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The regular files of a folder by path, and the links in it."""

    files: tuple[Found, ...]
    links: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the files are all that DVC would see too."""
        return not self.links and all(Path(f.path).name != ".dvcignore" for f in self.files)


class Hasher:
    """sha256 and md5 of the same bytes in one pass."""

    MD5_BYTES = 16

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)  # DVC's name for it, nothing relies on it
        self._size = 0

    def update(self, raw: bytes) -> None:
        self._sha256.update(raw)
        self._md5.update(raw)
        self._size += len(raw)

    def stored(self, path: str) -> Stored:
        return Stored(
            path=path, sha256=self._sha256.hexdigest(), md5=self._md5.hexdigest(), size=self._size
        )


def hash_bytes(path: str, raw: bytes) -> Stored:
    hasher = Hasher()
    hasher.update(raw)
    return hasher.stored(path)


def hash_file(file: Path, path: str) -> Stored:
    """Reads the file in pieces. Raises ConfigError that names it if it cannot be read."""
    hasher = Hasher()
    try:
        with file.open("rb", buffering=0) as stream:
            while raw := stream.read(CHUNK):
                hasher.update(raw)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    return hasher.stored(path)


def version_id(files: Iterable[Stored]) -> str:
    """sha256 of the canonical JSON of the sorted (path, sha256) pairs, as ``codec.digest`` of them,
    which takes seconds for 100,000."""
    pairs = sorted([file.path, file.sha256] for file in files)
    text = json.dumps(pairs, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dvc_tree(files: Iterable[Stored]) -> bytes:
    """DVC's ``.dir`` object of a directory with these files."""
    entries = [{"md5": file.md5, "relpath": file.path} for file in files]
    return json.dumps(sorted(entries, key=lambda e: e["relpath"]), sort_keys=True).encode()


def dvc_id(files: Iterable[Stored]) -> str:
    """The md5 that DVC names a directory by, without its ``.dir`` ending."""
    return hashlib.md5(dvc_tree(files), usedforsecurity=False).hexdigest()


def scan(source: Path) -> Scan:
    """The files of a folder, or the one file. Raises ConfigError if there is neither."""
    try:
        if source.is_dir():
            links: list[str] = []
            files = sorted(_walk(str(source), "", links), key=lambda found: found.path)
            return Scan(files=tuple(files), links=tuple(sorted(links)))
        return Scan(files=(Found(path=source.name, stat=source.stat()),))
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def _walk(folder: str, prefix: str, links: list[str]) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    f"{folder} has a file whose name is not UTF-8: {entry.name!a}"
                ) from None
            if entry.is_symlink():
                links.append(prefix + entry.name)
            elif entry.is_dir():
                if entry.name not in NOT_DATA:
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", links)
            elif entry.is_file():
                yield Found(path=prefix + entry.name, stat=entry.stat())
