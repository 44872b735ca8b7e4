"""Any source as an image folder, which is what is checked and what a version holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intonaco.datasets.curation import METADATA
from intonaco.datasets.formats import Columns, Source, free_name, metadata_lines, rewritten
from intonaco.datasets.identity import Stored, hash_bytes, scan
from intonaco.datasets.objects import Objects, Progress
from intonaco.datasets.shards import samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """An image folder to be checked, with the hashes of its files. ``move``: it is ours."""

    folder: Path
    files: Mapping[str, Stored] = field(default_factory=dict)
    move: bool = False


def lay_out(
    source: Source,
    given: Mapping[str, Stored],
    columns: Columns,
    objects: Objects,
    ours: Path,
    progress: Progress,
) -> Laid:
    """The source itself if it is an image folder as a version holds it, else one made of it in
    ``ours``. ``given``: the files of the source. Raises ConfigError that names what cannot be
    read."""
    items = ours / "items"
    if source.kind != "imagefolder":
        return _unpack(source, columns, items, progress)
    entries = rewritten(source, columns)
    if entries is None:
        return Laid(folder=source.path, files=given)
    # Links to our own objects: a link to a person's file would count as a change of it.
    named = {str(entry.get("file_name")) for entry in entries} & given.keys()
    images = [given[name] for name in sorted(named)]
    objects.add(((f, source.path / f.path) for f in images), ours, progress=progress)
    items.mkdir()
    for path in given:
        if path == source.files[0].name:
            continue
        target = items / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in named:
            objects.link(given[path], target)
        else:
            target.touch()  # nobody's: validation goes by the name
    for path in scan(source.path).links:
        target = items / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(items / "link")  # to nothing: validation says that it is a link
    (items / METADATA).write_text(metadata_lines(entries))
    return Laid(folder=items, files=given)


def _unpack(source: Source, columns: Columns, items: Path, progress: Progress) -> Laid:
    items.mkdir()
    files: dict[str, Stored] = {}
    entries: list[dict[str, Any]] = []
    taken = {METADATA}
    for sample in samples(source, columns):
        name = free_name(sample.name, taken)
        target = items / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.image)
        files[name] = hash_bytes(name, sample.image)
        entries.append({"file_name": name, **sample.entry})
        progress("unpack", len(entries), 0)
    (items / METADATA).write_text(metadata_lines(entries))
    return Laid(folder=items, files=files, move=True)
