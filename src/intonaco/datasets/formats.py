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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from intonaco.datasets.curation import METADATA
from intonaco.errors import ConfigError

Kind = Literal["imagefolder", "webdataset", "parquet"]
TABLE = "metadata.csv"
TEXT = "text"
TEXT_NAMES = (TEXT, "caption", "prompt")  # looked for in this order where none is named
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp"})  # of images; validation opens them
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
        return Source(path=path, kind="imagefolder", files=tuple(metadata))
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.is_symlink()]
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
        name = text_name(rows[0] if rows else {}, columns, file)
        return [_with_text(row, name) for row in rows]
    first = _first_object(file)
    if first is None or (columns.text is None and TEXT in first):
        return None
    if columns.text is None and not any(name in first for name in TEXT_NAMES):
        return None  # an item without a caption: validation says which
    name = text_name(first, columns, file)
    if name == TEXT:
        return None
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(_with_text(dict(json.loads(line)), name))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{file}, line {number}: no JSON object: {error}") from error
    return rows


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
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or not name:
        raise ConfigError(f"{source}: {name!r} is not a plain path", hint="write the shard again")
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
    """Rows of metadata.csv. ``consent`` is read as true or false; empty cells are left out."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{file}, line {reader.line_num}: not as many cells as the first line has"
                    )
                yield {key: _cell(key, cell) for key, cell in row.items() if cell != ""}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _cell(key: str, cell: str) -> object:
    if key == "consent":  # anything else stays text, which validation refuses
        return {"true": True, "1": True, "false": False, "0": False}.get(cell.strip().lower(), cell)
    return cell


def _first_object(file: Path) -> dict[str, Any] | None:
    try:
        with file.open(encoding="utf-8") as stream:
            line = next((line for line in stream if line.strip()), "")
        value = json.loads(line)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _with_text(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The caption's column becomes ``text``. A column of that name that is not the one asked for is
    not a caption, and goes."""
    rest = {key: value for key, value in row.items() if key not in (name, TEXT)}
    return {**rest, TEXT: row[name]} if name in row else rest
