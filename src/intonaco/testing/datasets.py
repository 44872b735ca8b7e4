"""Twin and conformance checks of the DatasetStore seam."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from intonaco.codec import digest
from intonaco.errors import ConfigError, NotFound
from intonaco.protocols import DatasetStore
from intonaco.testing import require
from intonaco.types import DatasetDiff, DatasetVersion, ReplayMix

METADATA = "metadata.jsonl"


class MemoryDatasetStore:
    """A store in memory; ``open`` lays the files out under ``scratch``."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._files: dict[str, dict[str, bytes]] = {}
        self._versions: dict[str, DatasetVersion] = {}

    def put(
        self,
        folder: Path,
        *,
        name: str,
        parents: Sequence[str] = (),
        replay: float = 0.0,
        mix: ReplayMix | None = None,
    ) -> DatasetVersion:
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        items = _items(folder, files)
        version = digest([[p, hashlib.sha256(files[p]).hexdigest()] for p in sorted(files)])
        if version not in self._versions:
            self._files[version] = files
            self._versions[version] = DatasetVersion(
                version=version,
                dvc_md5=_dvc_md5(files),
                name=name,
                items=len(items),
                bytes=sum(map(len, files.values())),
                topics=Counter(str(i["topic"]) for i in items if "topic" in i),
                parents=tuple(parents),
                replay=replay,
                mix=mix,
                created_at=float(len(self._versions)),
            )
        return self._versions[version]

    def open(self, version: str) -> Path:
        folder = self._scratch / version
        for path, data in self._of(version).items():
            target = folder / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o444)
        return folder

    def diff(self, a: str, b: str) -> DatasetDiff:
        old, new = self._of(a), self._of(b)
        return DatasetDiff(
            added=tuple(sorted(new.keys() - old.keys())),
            removed=tuple(sorted(old.keys() - new.keys())),
            changed=tuple(sorted(p for p in new.keys() & old.keys() if new[p] != old[p])),
            new=tuple(sorted(p for p in new if new[p] not in old.values())),
        )

    def list(self) -> Sequence[DatasetVersion]:
        return tuple(self._versions.values())

    def _of(self, version: str) -> dict[str, bytes]:
        try:
            return self._files[version]
        except KeyError:
            raise NotFound(f"no dataset version {version}") from None


def _items(folder: Path, files: dict[str, bytes]) -> Sequence[dict[str, object]]:
    if METADATA not in files:
        raise ConfigError(f"{folder / METADATA} does not exist")
    items: list[dict[str, object]] = []
    for number, line in enumerate(files[METADATA].decode().splitlines(), 1):
        try:
            item = json.loads(line)
            named = item["file_name"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(f"{folder / METADATA}, line {number}: no JSON item") from None
        if named not in files:
            raise ConfigError(f"{folder / named} is in {METADATA} and does not exist")
        items.append(item)
    return items


def _dvc_md5(files: dict[str, bytes]) -> str:
    """The id that DVC gives the tree: md5 of the JSON list of its files, by path."""
    entries = [
        {"md5": hashlib.md5(files[p], usedforsecurity=False).hexdigest(), "relpath": p}
        for p in sorted(files)
    ]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def sample_dataset(folder: Path, *, items: int = 3, shade: int = 0) -> Path:
    """Writes a small folder of images with ``metadata.jsonl``; ``shade`` changes the first."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(items):
        name = f"{i:03d}.png"
        grey = (40 * i + (shade if i == 0 else 0)) % 256
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"shade {i}", "topic": str(i % 2)}))
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    return folder


def check_dataset_store(make: Callable[[], DatasetStore], folder: Path) -> None:
    """Runs an empty store through the protocol.

    ``make`` gives the store; called again, as after a restart, it gives one with the same contents.
    ``folder``: an empty folder for sample data sets. Raises AssertionError.
    """
    store = make()
    require(list(store.list()) == [], "an empty store lists versions")
    first = store.put(sample_dataset(folder / "first"), name="first")
    require(first.items == 3, f"three items were counted as {first.items}")
    require(dict(first.topics) == {"0": 2, "1": 1}, f"topics were counted as {first.topics}")
    copy = store.put(sample_dataset(folder / "copy"), name="again")
    require(copy.version == first.version, "the same content got two versions")
    require(len(store.list()) == 1, "the same content is listed twice")

    opened = store.open(first.version)
    found = {p.name: p.read_bytes() for p in opened.rglob("*") if p.is_file()}
    given = {p.name: p.read_bytes() for p in (folder / "first").iterdir()}
    require(found == given, f"open gives {sorted(found)}, put was given {sorted(given)}")

    changed = sample_dataset(folder / "changed", items=4, shade=9)
    mix = ReplayMix(share=0.5, sampling="topic", seed=3, new=2, replayed=2, topics={"0": 2})
    second = store.put(changed, name="second", parents=(first.version,), replay=0.5, mix=mix)
    require(second.version != first.version, "another content got the same version")
    require(second.dvc_md5 != first.dvc_md5, "another content got the same DVC id")
    require(second.parents == (first.version,), f"its parents came back as {second.parents}")
    require(second.replay == 0.5, f"its replay came back as {second.replay}")
    require(second.mix == mix, f"its mix came back as {second.mix}")
    require(
        store.diff(first.version, second.version)
        == DatasetDiff(
            added=("003.png",),
            removed=(),
            changed=("000.png", METADATA),
            new=("000.png", "003.png", METADATA),
        ),
        f"diff gives {store.diff(first.version, second.version)}",
    )
    back = store.diff(second.version, first.version)
    require(back.removed == ("003.png",) and back.added == (), f"diff the other way: {back}")

    (changed / "000.png").unlink()
    try:
        store.put(changed, name="broken")
    except ConfigError as error:
        require("000.png" in str(error), f"the error does not name the missing file: {error}")
    else:
        raise AssertionError("an item without its image was taken")
    listed = {v.version: v for v in make().list()}
    require(listed == {v.version: v for v in (first, second)}, "a restart lists other versions")

    unknown: dict[str, Callable[[], object]] = {
        "open": lambda: store.open("0" * 64),
        "diff": lambda: store.diff(first.version, "0" * 64),
    }
    for name, call in unknown.items():
        try:
            call()
        except NotFound:
            continue
        raise AssertionError(f"{name} of an unknown version does not raise NotFound")
