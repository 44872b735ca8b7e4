"""The forms that a data set may come in, and how each becomes an image folder.

===========  ================================================================  ==================
imagefolder  a folder of images with ``metadata.jsonl`` or ``metadata.csv``    Hugging Face's
             that names them in ``file_name``                                  imagefolder
webdataset   a folder of ``.tar`` shards, or one: files that share a name up   webdataset,
             to the first dot are one sample, its caption in ``.txt`` or       img2dataset
             ``.json``
parquet      a folder of ``.parquet`` files, or one: a column of               Hugging Face's
             ``{bytes, path}``, a column of captions (extra ``parquet``)       datasets
===========  ================================================================  ==================

The image folder is what a version holds: images and ``metadata.jsonl``, one object a line. An image
folder with ``metadata.jsonl`` and captions in ``text`` is one already and is kept to the byte.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from intonaco.codec import parse_once
from intonaco.datasets.curation import METADATA
from intonaco.errors import ConfigError

Kind = Literal["imagefolder", "webdataset", "parquet"]
TABLE = "metadata.csv"
TEXT = "text"
CONSENT = "consent"
TEXT_NAMES = (TEXT, "caption", "prompt")  # looked for in this order where none is named
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp"})  # of images; validation opens them
LONGEST = 255  # bytes of a file's name
SHARDS = (".tar", ".tar.gz", ".tgz")
# Longer captions than csv's default of 128 KiB a field are no captions, but say so as such.
csv.field_size_limit(1 << 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names given by a person: of the captions, and of a parquet file's images."""

    text: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``files``: the file of metadata, the shards or the parquet files, in order of name."""

    path: Path
    kind: Kind
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a shard or a parquet file. ``name``: a plain relative path; ``entry``: its line
    of metadata without ``file_name``."""

    name: str
    image: bytes
    entry: Mapping[str, Any]


def recognise(path: Path) -> Source:
    """What is at a path. Raises ConfigError if it is nothing that can be added."""
    if path.is_file():
        kind = _kind_of(path)
        if kind is None:
            raise ConfigError(
                f"{path} is no data set", hint=f"give a folder, a shard ({SHARDS[0]}) or a .parquet"
            )
        return Source(path=path, kind=kind, files=(path,))
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist")
    metadata = [path / name for name in (METADATA, TABLE) if (path / name).is_file()]
    if len(metadata) > 1:
        raise ConfigError(
            f"{path} has both {METADATA} and {TABLE}", hint="which one counts? take the other out"
        )
    if metadata:
        if metadata[0].is_symlink():  # what it leads to changes unseen
            raise ConfigError(f"{metadata[0]} is a link", hint="put the file itself there")
        return Source(path=path, kind="imagefolder", files=tuple(metadata))
    # What is hidden is nobody's data: `._0.tar` of macOS, `.cache` of a download.
    shown = (p for p in sorted(path.rglob("*")) if not _hidden(p.relative_to(path)))
    found = [p for p in shown if p.is_file() and not p.is_symlink()]
    kinds: dict[Kind, list[Path]] = {}
    for file in found:
        if (kind := _kind_of(file)) is not None:
            kinds.setdefault(kind, []).append(file)
    # img2dataset writes a parquet file of facts, without images, beside each shard.
    for kind in ("webdataset", "parquet"):
        if kind in kinds:
            return Source(path=path, kind=kind, files=tuple(kinds[kind]))
    raise ConfigError(
        f"{path} has no {METADATA}, {TABLE}, .tar or .parquet",
        hint='one line for each image: {"file_name": "a.png", "text": "a caption"}',
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind_of(file: Path) -> Kind | None:
    if file.name.lower().endswith(SHARDS):
        return "webdataset"
    return "parquet" if file.suffix.lower() == ".parquet" else None


def rewritten(source: Source, columns: Columns) -> list[dict[str, Any]] | None:
    """The metadata of an image folder with the caption in ``text``; None if that is what its file
    says already, or if it is not well formed (validation tells of each line). Raises ConfigError
    for a table that cannot be read, or if no column of captions can be told."""
    file = source.files[0]
    if file.name == TABLE:
        rows = list(_table(file))
        name = text_name(_keys(rows), columns, file)
        return [_with_text(row, (name,)) for row in rows]
    if columns.text is None and not any(_elsewhere(row) for _, row in _objects(file)):
        return None  # also where an item has no caption at all: validation says which
    rows = []
    for number, row in _objects(file):
        if isinstance(row, str):
            raise ConfigError(f"{file}, line {number}: no JSON object: {row}")
        rows.append(row)
    if columns.text is None:
        return [_with_text(row, TEXT_NAMES) for row in rows]
    name = text_name(_keys(rows), columns, file)
    return None if name == TEXT else [_with_text(row, (name,)) for row in rows]


def text_name(entry: Mapping[str, Any], columns: Columns, source: Path | str) -> str:
    """The column that holds the captions. Raises ConfigError if it cannot be told."""
    if columns.text is not None:
        if columns.text not in entry:
            raise ConfigError(
                f"{source} has no column {columns.text}", hint=f"it has {', '.join(entry)}"
            )
        return columns.text
    for name in TEXT_NAMES:
        if name in entry:
            return name
    raise ConfigError(
        f"{source} has no column of captions ({', '.join(TEXT_NAMES)})",
        hint=f"name one with --text-column; it has {', '.join(entry) or 'none'}",
    )


def plain_name(name: str, source: Path) -> str:
    """Raises ConfigError unless it is a path inside a folder, without dots and doubled slashes."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or not name:
        raise ConfigError(f"{source}: {name!r} is not a plain path inside the folder")
    if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        raise ConfigError(f"{source}: {name[:40]!r}… is longer than a file's name may be")
    return name


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number where another sample has it; it is taken then."""
    path, free, n = PurePosixPath(name), name, 1
    while free in taken:
        n += 1
        free = str(path.with_name(f"{path.stem}-{n}{path.suffix}"))
    taken.add(free)
    return free


def metadata_lines(entries: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def _table(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of metadata.csv. ``consent`` is read as true or false; empty cells are left out, but
    for that of ``consent``: nobody said yes there."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = reader.fieldnames or ()
            if len(set(names)) != len(names):
                raise ConfigError(f"{file}: its first line names a column twice")
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{file}, line {reader.line_num}: not as many cells as the first line has"
                    )
                cells = ((key, _cell(key, cell)) for key, cell in row.items())
                yield {key: cell for key, cell in cells if cell != "" or key == CONSENT}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _cell(key: str, cell: str) -> object:
    if key == CONSENT:  # anything else stays text, which validation refuses
        return {"true": True, "1": True, "false": False, "0": False}.get(cell.strip().lower(), cell)
    return cell


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Of each line its number and the object, or what is wrong with it; none if the file is no
    text, as validation says."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = parse_once(line)
                yield number, value if isinstance(value, dict) else f"it is {line[:20]}"
            except (ValueError, RecursionError) as error:
                yield number, str(error)


def _elsewhere(row: dict[str, Any] | str) -> bool:
    """Whether the caption is there, and not in ``text``."""
    return isinstance(row, dict) and TEXT not in row and any(name in row for name in TEXT_NAMES)


def _keys(rows: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(key for row in rows for key in row)


def _with_text(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The caption, which is in the first of these columns that the row has, becomes ``text``. A
    column of that name that is not the one asked for is not a caption, and goes."""
    name = next((name for name in names if name in row), TEXT)
    rest = {key: value for key, value in row.items() if key not in (name, TEXT)}
    return {**rest, TEXT: row[name]} if name in row and name in names else rest
