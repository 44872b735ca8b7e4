import hashlib
import json
import os
import random
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intonaco.clock import FakeClock
from intonaco.datasets import store as store_module
from intonaco.datasets.store import LocalDatasetStore
from intonaco.errors import ConfigError, NotFound
from intonaco.protocols import DatasetStore


def write_images(folder: Path, names: list[str], *, seed: int = 0, topic: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for name in names:
        pixels = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"image {name}", "topic": topic}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalDatasetStore:
    return LocalDatasetStore(tmp_path / "datasets", FakeClock())


def test_put_and_open(store: LocalDatasetStore, tmp_path: Path) -> None:
    assert isinstance(store, DatasetStore)
    source = write_images(tmp_path / "in", ["b.png", "a.png", "sub/c.png"])
    version = store.put(source, name="digits", parents=("p",), replay=0.3)
    assert (version.items, version.topics, version.parents) == (3, {"a": 3}, ("p",))
    files = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    tree = store.open(version.version)
    assert files == {p.relative_to(tree): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    assert version.bytes == sum(map(len, files.values()))
    for path in (p for p in tree.rglob("*") if p.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE((source / "a.png").stat().st_mode) & stat.S_IWUSR
    assert store.list() == [version]


def test_ids_are_those_that_their_definitions_give(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", ["z.png", "a b.png", "sub/é.png"])
    version = store.put(source, name="digits")
    files = sorted(p for p in source.rglob("*") if p.is_file())
    names = [p.relative_to(source).as_posix() for p in files]
    # Written out by hand, not with the store's own helpers: what `dvc add` puts into a .dir file.
    entries = ", ".join(
        f'{{"md5": "{hashlib.md5(p.read_bytes()).hexdigest()}", "relpath": {json.dumps(n)}}}'
        for n, p in sorted(zip(names, files, strict=True))
    )
    assert version.dvc_md5 == hashlib.md5(f"[{entries}]".encode()).hexdigest()
    pairs = sorted(
        [n, hashlib.sha256(p.read_bytes()).hexdigest()] for n, p in zip(names, files, strict=True)
    )
    text = json.dumps(pairs, separators=(",", ":"), ensure_ascii=False)
    assert version.version == hashlib.sha256(text.encode()).hexdigest()


def test_dvc_id_of_a_known_tree() -> None:
    """The id that dvc-data 3.18 gave a folder of these three files."""
    contents = {"foo": b"foo", "sub/b r": b"bar", "é.txt": "café".encode()}
    files = [
        store_module.Stored(path=path, sha256="", md5=hashlib.md5(raw).hexdigest(), size=len(raw))
        for path, raw in contents.items()
    ]
    assert store_module.dvc_id(files) == "6a575f0b9f5543aec2c9b1e36ed053a2"


def test_the_same_content_is_the_same_version_stored_once(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", ["a.png", "b.png"])
    first = store.put(source, name="one")
    objects = {p: p.stat().st_ino for p in (store.root / "objects").rglob("*") if p.is_file()}
    copy = write_images(tmp_path / "copy", ["a.png", "b.png"])
    assert store.put(copy, name="two") == first
    bigger = write_images(tmp_path / "bigger", ["a.png", "b.png", "c.png"])
    second = store.put(bigger, name="three")
    assert second.version != first.version
    assert len(store.list()) == 2
    for path, inode in objects.items():
        assert path.stat().st_ino == inode
    shared = store.open(first.version) / "a.png"
    assert shared.samefile(store.open(second.version) / "a.png")


def test_diff(store: LocalDatasetStore, tmp_path: Path) -> None:
    a = store.put(write_images(tmp_path / "a", ["x.png", "y.png"]), name="a")
    changed = write_images(tmp_path / "b", ["x.png", "y.png", "z.png"])
    write_images(tmp_path / "other", ["y.png"], seed=9)
    (changed / "y.png").write_bytes((tmp_path / "other" / "y.png").read_bytes())
    (changed / "x.png").unlink()
    lines = (changed / "metadata.jsonl").read_text().splitlines()
    (changed / "metadata.jsonl").write_text("\n".join(lines[1:]) + "\n")
    b = store.put(changed, name="b")
    difference = store.diff(a.version, b.version)
    assert difference.added == ("z.png",)
    assert difference.removed == ("x.png",)
    assert difference.changed == ("metadata.jsonl", "y.png")


def test_unknown_versions_are_not_found(store: LocalDatasetStore) -> None:
    with pytest.raises(NotFound):
        store.open("0" * 64)
    with pytest.raises(NotFound):
        store.diff("0" * 64, "1" * 64)


def test_a_deleted_tree_is_built_again(store: LocalDatasetStore, tmp_path: Path) -> None:
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="a")
    tree = store.open(version.version)
    for path in tree.iterdir():
        path.unlink()
    tree.rmdir()
    assert (store.open(version.version) / "a.png").is_file()


def test_invalid_items_stop_the_put_or_are_dropped(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", ["a.png", "b.png", "c.png"])
    (source / "b.png").write_bytes((source / "b.png").read_bytes()[:60])
    strict = LocalDatasetStore(tmp_path / "strict", FakeClock())
    with pytest.raises(ConfigError, match=r"b\.png"):
        strict.put(source, name="x")
    assert not strict.list()
    lenient = LocalDatasetStore(tmp_path / "lenient", FakeClock(), on_invalid="drop")
    version = lenient.put(source, name="x")
    tree = lenient.open(version.version)
    assert version.items == 2
    assert {p.name for p in tree.iterdir()} == {"a.png", "c.png", "metadata.jsonl"}
    assert "b.png" not in (tree / "metadata.jsonl").read_text()
    (source / "a.png").write_bytes(b"")
    (source / "c.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="no usable items"):
        lenient.put(source, name="x")


def in_child(run: Callable[[], object]) -> int:
    """Exit status of a forked process that runs it: 0 if it got to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("call", ["write_atomic", "link", "rename"])
def test_a_killed_put_leaves_nothing_half_made(
    call: str, store: LocalDatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed (no handler, no cleaning up) at each call that changes the disk, then put again."""
    source = write_images(tmp_path / "in", ["a.png", "b.png", "c.png"])
    whole = LocalDatasetStore(tmp_path / "whole", FakeClock()).put(source, name="x")
    place, name = {
        "write_atomic": (store_module, "write_atomic"),
        "link": (os, "link"),
        "rename": (Path, "rename"),
    }[call]
    deaths = 0
    for n in range(1, 10):
        root = tmp_path / f"{call}-{n}"
        target = LocalDatasetStore(root, FakeClock())
        real, calls = getattr(place, name), 0

        def dying(*args: object, real: object = real, n: int = n) -> object:
            nonlocal calls
            calls += 1
            if calls == n:
                os._exit(9)
            assert callable(real)
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, dying)
            status = in_child(partial(target.put, source, name="x"))
        if status == 0:
            break
        assert status == 9
        deaths += 1
        assert target.list() == []
        with pytest.raises(NotFound):
            target.open(whole.version)
        assert target.put(source, name="x").version == whole.version
        tree = target.open(whole.version)
        assert {p.name for p in tree.iterdir()} == {"a.png", "b.png", "c.png", "metadata.jsonl"}
    assert deaths >= 1


def test_random_folders_agree_with_a_fresh_store(tmp_path: Path) -> None:
    """The version depends on the content alone: not on what else is stored, nor on the order."""
    rng = random.Random(5)
    shared = LocalDatasetStore(tmp_path / "shared", FakeClock())
    for trial in range(5):
        names = rng.sample([f"{c}.png" for c in "abcdefgh"], k=4)
        source = write_images(tmp_path / f"in{trial}", names, seed=trial % 2)
        fresh = LocalDatasetStore(tmp_path / f"fresh{trial}", FakeClock())
        a, b = shared.put(source, name="x"), fresh.put(source, name="y")
        assert (a.version, a.dvc_md5, a.bytes) == (b.version, b.dvc_md5, b.bytes)
