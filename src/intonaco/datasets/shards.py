"""Samples out of webdataset shards and parquet files, one at a time.

A sample of a shard is the run of files that share a name up to the first dot
(https://github.com/webdataset/webdataset): one image, its caption in ``.txt``, facts in ``.json``.
"""

from __future__ import annotations

import importlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from intonaco.codec import parse_once
from intonaco.datasets.formats import (
    CONSENT,
    ENDINGS,
    TEXT,
    TEXT_NAMES,
    Columns,
    Sample,
    Source,
    plain_name,
    text_name,
)
from intonaco.datasets.identity import CHUNK
from intonaco.errors import ConfigError

ROWS = 64  # read of a parquet file at once: images are large
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def samples(source: Source, columns: Columns) -> Iterator[Sample]:
    """Everything in the shards or parquet files, in order. Raises ConfigError that names the file
    and sample."""
    for file in source.files:
        read = _of_shard if source.kind == "webdataset" else _of_parquet
        yield from read(file, columns)


# --------------------------------------------------------------------------------- webdataset


def _of_shard(shard: Path, columns: Columns) -> Iterator[Sample]:
    key, parts = "", dict[str, bytes]()
    seen: set[str] = set()
    for name, raw in _members(shard):
        file = name.rpartition("/")[2]
        stem, dot, ending = file.partition(".")
        if not stem or not dot:
            continue  # no part of a sample, by webdataset's rule
        this = name.removesuffix(file) + stem
        if this != key:
            if parts:
                yield from _sample(shard, key, parts, columns)
            if this in seen:
                raise ConfigError(
                    f"{shard}: the files of sample {this} do not lie together",
                    hint="webdataset wants the files of a sample one after the other",
                )
            key, parts = this, {}
            seen.add(key)
        if ending.lower() in parts:
            raise ConfigError(f"{shard}: {name} is there twice")
        parts[ending.lower()] = raw
    if parts:
        yield from _sample(shard, key, parts, columns)


def _sample(shard: Path, key: str, parts: dict[str, bytes], columns: Columns) -> Iterator[Sample]:
    """One or none: a sample without an image, such as a shard's own facts, is passed over."""
    images = [ending for ending in parts if f".{ending.rpartition('.')[2]}" in ENDINGS]
    if not images:
        return
    if len(images) > 1:
        raise ConfigError(f"{shard}: sample {key} has several images: {', '.join(images)}")
    entry: dict[str, Any] = {}
    try:
        if "json" in parts:
            value = parse_once(parts["json"])
            entry = value if isinstance(value, dict) else {TEXT: value}
            names = (columns.text,) if columns.text else TEXT_NAMES
            found = next((name for name in names if name in entry), None)
            text = None if found is None else entry[found]
            entry = {k: v for k, v in entry.items() if k not in (found, TEXT, "file_name")}
            if text is not None:
                entry[TEXT] = text
        if "txt" in parts:
            entry[TEXT] = parts["txt"].decode("utf-8-sig").strip()
    except ValueError as error:
        raise ConfigError(f"{shard}: sample {key}: {error}") from error
    name = plain_name(f"{key}.{images[0].rpartition('.')[2]}", shard)
    yield Sample(name=name, image=parts[images[0]], entry=entry)


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files. A shard that was cut off is refused, also where the
    cut falls between two files: then its closing block is missing."""
    try:
        with tarfile.open(shard, "r:*") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # it keeps them all otherwise
                if member.issym() or member.islnk():
                    raise ConfigError(f"{shard}: {member.name} is a link")
                if not member.isfile():
                    continue
                stream = archive.extractfile(member)
                raw = stream.read() if stream else b""
                if len(raw) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name.removeprefix("./"), raw
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(512) != bytes(512):
                raise tarfile.ReadError("the closing block is missing")
            while archive.fileobj.read(CHUNK):  # what is packed has its checksum at the very end
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ConfigError(
            f"{shard} cannot be read: {error}", hint="was it written, or fetched, to its end?"
        ) from error


# ------------------------------------------------------------------------------------ parquet


def _of_parquet(file: Path, columns: Columns) -> Iterator[Sample]:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{file} is a parquet file, and pyarrow is not installed",
            hint="pip install 'intonaco[parquet]'",
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            image = _image_column(arrow, schema, columns, file)
            text = text_name(dict.fromkeys(n for n in schema.names if n != image), columns, file)
            row = 0
            for batch in table.iter_batches(batch_size=ROWS):
                for entry in batch.to_pylist():
                    yield _row(file, row, entry, image, text)
                    row += 1
    except (OSError, arrow.ArrowException) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _image_column(arrow: Any, schema: Any, columns: Columns, file: Path) -> str:
    """The one column of structs with ``bytes``, as Hugging Face writes images, or of plain
    bytes."""
    if columns.image is not None:
        if columns.image not in schema.names:
            raise ConfigError(
                f"{file} has no column {columns.image}", hint=f"it has {', '.join(schema.names)}"
            )
        return columns.image
    found = [
        field.name
        for field in schema
        if arrow.types.is_binary(field.type)
        or arrow.types.is_large_binary(field.type)
        or (arrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{file} has {len(found)} columns of images: {', '.join(found) or 'none'}",
            hint=f"name one with --image-column; it has {', '.join(schema.names)}",
        )
    return str(found[0])


def _row(file: Path, row: int, entry: Mapping[str, Any], image: str, text: str) -> Sample:
    value = entry[image]
    raw = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(raw, bytes):
        raise ConfigError(
            f"{file}, row {row}: {image} holds no bytes",
            hint="the images must be inside the file, not beside it",
        )
    path = value.get("path") if isinstance(value, dict) else None
    if path and PurePosixPath(path).suffix.lower() in ENDINGS:
        name = PurePosixPath(path).name
    else:
        ending = next((e for magic, e in MAGIC.items() if raw.startswith(magic)), ".unknown")
        name = f"{file.stem}-{row:08d}{ending}"
    rest = {
        key: value
        for key, value in entry.items()
        if key not in (image, text, TEXT, "file_name")
        and (_is_json(value) or key == CONSENT)  # an absent consent is not left out: it is no yes
    }
    caption = {} if entry[text] is None else {TEXT: entry[text]}
    return Sample(name=plain_name(name, file), image=raw, entry={**rest, **caption})


def _is_json(value: object) -> bool:
    """Plain values and lists of them; the rest (bytes, times, absent ones) is left out."""
    if isinstance(value, list):
        return all(_is_json(v) for v in value)
    return isinstance(value, str | int | float | bool)
