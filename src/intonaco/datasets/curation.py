"""Choosing what to learn from: the moved part of the new data, mixed with real old data.

An image folder holds images and ``metadata.jsonl``, one JSON object a line: ``file_name``, ``text``
(a caption or a list of captions of the same image), ``topic``, ``origin``, ``consent``; of images
that a model made ``generated``, and of those from live traffic ``provenance``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.codec import parse_once
from intonaco.errors import ConfigError
from intonaco.types import ClusterMove, Json

METADATA = "metadata.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image with its captions. ``origin`` says where it comes from, ``consent`` whether it may
    be trained on, ``generated`` whether a model made it. ``provenance``, of what was served:
    "request", "release", "finding", "at", "unit" (an opaque digest)."""

    file: Path
    texts: tuple[str, ...]
    topic: str = ""
    origin: str = ""
    consent: bool = True
    generated: bool = False
    provenance: Mapping[str, Json] = field(default_factory=dict, hash=False)


def read_folder(folder: Path) -> list[Item]:
    """The items of an image folder in the order of its metadata. Raises ConfigError that names the
    file and line."""
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {METADATA}",
            hint='one line for each image: {"file_name": "a.png", "text": "a caption"}',
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                items.append(_item(folder, parse_once(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: {type(error).__name__}: {error}"
                ) from error
    return items


def select_moved(
    items: Sequence[Item],
    vectors: NDArray[np.floating[Any]],
    clusters: Sequence[ClusterMove],
) -> list[Item]:
    """The items whose caption vector lies nearest to the centroid of a cluster that moved.

    ``vectors`` [n, d]: caption embeddings of the items, by the extractor that gave the centroids.
    Distances are Euclidean. Raises ValueError if shapes do not agree.
    """
    if len(items) != len(vectors):
        raise ValueError(f"{len(items)} items, {len(vectors)} vectors")
    if not items or not any(cluster.moved for cluster in clusters):
        return []
    centroids = np.array([cluster.centroid for cluster in clusters], dtype=np.float64)
    if centroids.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"centroids of {centroids.shape[1]} numbers, vectors of {vectors.shape[1]}"
        )
    # |v - c|^2 without |v|^2, which is the same for all centroids
    distances = (centroids**2).sum(axis=1) - 2 * np.asarray(vectors, np.float64) @ centroids.T
    nearest = distances.argmin(axis=1)
    return [item for item, n in zip(items, nearest, strict=True) if clusters[n].moved]


def write_folder(items: Sequence[Item], target: Path) -> int:
    """Write an image folder of the items that have consent, replacing ``target``; returns how many.

    An image that is there already under another name is left out. Images are hard links where the
    disk allows. The folder appears at once; the same items in any order give the same bytes. Raises
    ConfigError that names an image that cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        lines = []
        taken: set[str] = set()
        seen: set[str] = set()
        for item in sorted((i for i in items if i.consent), key=lambda i: (i.file.name, i.file)):
            content = _digest(item.file)
            if content in seen:
                continue
            seen.add(content)
            name = _free_name(item.file, taken)
            link(item.file, temporary / name)
            lines.append(json.dumps({"file_name": name, **_metadata(item)}))
        (temporary / METADATA).write_text("".join(f"{line}\n" for line in lines))
        if target.exists():
            shutil.rmtree(target)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(lines)


def _item(folder: Path, entry: Mapping[str, Any]) -> Item:
    text = entry["text"]
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not all(isinstance(t, str) for t in texts):
        raise TypeError("text is neither a string nor a list of strings")
    consent = entry.get("consent", True)
    if not isinstance(consent, bool):
        raise TypeError("consent is neither true nor false")
    return Item(
        file=folder / entry["file_name"],
        texts=texts,
        topic=str(entry.get("topic", "")),
        origin=str(entry.get("origin", "")),
        consent=consent,
        generated=entry.get("generated", False) is True,
        provenance=dict(entry.get("provenance") or {}),
    )


def _metadata(item: Item) -> dict[str, Any]:
    text = item.texts[0] if len(item.texts) == 1 else list(item.texts)
    told = {"text": text, "topic": item.topic, "origin": item.origin, "consent": item.consent}
    # Only where there is something to say: the bytes of a folder of real images stay what they are.
    generated = {"generated": True} if item.generated else {}
    return told | generated | ({"provenance": item.provenance} if item.provenance else {})


def _free_name(file: Path, taken: set[str]) -> str:
    name, n = file.name, 1
    while name in taken:
        n += 1
        name = f"{file.stem}-{n}{file.suffix}"
    taken.add(name)
    return name


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)
