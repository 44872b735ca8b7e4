import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intonaco.clock import FakeClock
from intonaco.datasets import objects
from intonaco.datasets.identity import Stored, dvc_id, hash_file
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.validation import Report, validate
from intonaco.errors import ConfigError, NotFound, StorageError
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
        Stored(path=path, sha256="", md5=hashlib.md5(raw).hexdigest(), size=len(raw))
        for path, raw in contents.items()
    ]
    assert dvc_id(files) == "6a575f0b9f5543aec2c9b1e36ed053a2"


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
    assert difference.new == ("metadata.jsonl", "y.png", "z.png")
    moved = write_images(tmp_path / "c", ["sub/x.png", "sub/y.png", "new.png"])
    c = store.put(moved, name="c")  # the first two are those of a
    assert store.diff(a.version, c.version).new == ("metadata.jsonl", "new.png")


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


CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.utime"}


def killed_at(n: int, root: Path, run: Callable[[], object]) -> bool:
    """Runs it in a process of its own, which is killed (SIGKILL: no handler, no cleaning up) just
    before the n-th time that it changes the disk under a folder. Whether that came to be."""
    pid = os.fork()
    if pid == 0:
        left = n

        def before(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event not in CHANGES or not any(str(root) in str(a) for a in args[:2]):
                return
            if event == "open" and not int(str(args[2])) & (os.O_WRONLY | os.O_RDWR):
                return
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def write_csv(folder: Path) -> Path:
    """The images with their captions in a table instead."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [f"{line['file_name']},{line['text']},{line['topic']}" for line in lines]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text,topic", *rows]) + "\n")
    (folder / "metadata.jsonl").unlink()
    return folder


def write_tar(folder: Path) -> Path:
    shard = folder.parent / f"{folder.name}.tar"
    with tarfile.open(shard, "w") as archive:
        for line in (folder / "metadata.jsonl").read_text().splitlines():
            entry = json.loads(line)
            caption = entry["text"].encode()
            info = tarfile.TarInfo(str(Path(entry["file_name"]).with_suffix(".txt")))
            info.size = len(caption)
            archive.addfile(info, io.BytesIO(caption))
            archive.add(folder / entry["file_name"], entry["file_name"])
    return shard


def as_it_is(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize(
    ("form", "step"),
    [
        (as_it_is, 3),
        (write_csv, 11),
        (write_tar, 11),
        *(
            pytest.param(form, 1, marks=pytest.mark.slow)
            for form in (as_it_is, write_csv, write_tar)
        ),
    ],
)
def test_a_killed_put_leaves_nothing_half_made(
    form: Callable[[Path], Path], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step-th change of the disk, by put and by open; then the same is put again."""
    monkeypatch.setattr(objects, "BATCH_FILES", 2)  # so that batches end in the middle too
    source = form(write_images(tmp_path / "in", ["a.png", "b.png", "sub/c.png"]))
    clock = FakeClock(time.time() + 60)
    whole = LocalDatasetStore(tmp_path / "whole", clock)
    version = whole.put(source, name="x")
    expected = contents(whole.open(version.version))
    before = contents(tmp_path / "in")
    n = 1 - step
    while True:
        n += step
        store = LocalDatasetStore(tmp_path / f"store{n}", clock)

        def run(store: LocalDatasetStore = store) -> None:
            store.open(store.put(source, name="x").version)

        store.root.mkdir()
        if not killed_at(n, store.root, run):
            break
        for listed in store.list():  # it is there: then it is whole
            assert contents(store.open(listed.version)) == expected
        assert store.put(source, name="x").version == version.version
        assert contents(store.open(version.version)) == expected
        assert not store.verify(version.version)
        with objects.staging(store.root):  # as the next put does, if it has anything to do
            pass
        assert not list((store.root / "incoming").iterdir())
        shutil.rmtree(store.root)
    assert n > 30
    assert contents(tmp_path / "in") == before


def test_a_put_goes_on_where_a_killed_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "BATCH_FILES", 4)
    source = write_images(tmp_path / "in", [f"{i:02d}.png" for i in range(20)])
    store = LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))
    store.root.mkdir()

    def die(what: str, done: int, total: int) -> None:
        if (what, done) == ("store", 14):
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(10**9, store.root, partial(store.put, source, name="x", progress=die))
    assert not store.list()
    kept = sum(p.is_file() for p in (store.root / "objects").rglob("*"))
    assert kept == 12  # three batches
    read = counted(monkeypatch)
    store.put(source, name="x")
    assert read == []  # hashed before it died
    assert len(store.list()) == 1


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are hashed from now on, by name."""
    read: list[str] = []

    def counting(file: Path, path: str) -> Stored:
        read.append(file.name)
        return hash_file(file, path)

    monkeypatch.setattr("intonaco.datasets.store.hash_file", counting)
    return read


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_images(tmp_path / "in", ["a.png", "b.png", "c.png"])
    store = LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))
    first = store.put(source, name="x")
    read = counted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(store, "check", None)  # what passed is not looked at again either
        assert store.put(source, name="x") == first
    assert read == []
    # An edit that keeps the size and puts the time back.
    stat = (source / "b.png").stat()
    raw = bytearray((source / "b.png").read_bytes())
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source / "b.png")
    new = (source / "b.png").read_bytes()
    (source / "b.png").write_bytes(new + bytes(max(0, len(raw) - len(new))))
    os.utime(source / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = store.put(source, name="x")
    assert read == ["b.png"]
    assert store.diff(first.version, second.version).changed == ("b.png",)
    (source / "c.png").unlink()
    lines = (source / "metadata.jsonl").read_text().splitlines()
    (source / "metadata.jsonl").write_text("\n".join(lines[:2]) + "\n")
    store.put(source, name="x")
    assert read == ["b.png", "metadata.jsonl"]


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change once more within the same tick of the disk's clock."""
    source = write_images(tmp_path / "in", ["a.png"])
    clock = FakeClock(max(p.stat().st_ctime for p in source.iterdir()) + 1.0)
    store = LocalDatasetStore(tmp_path / "store", clock)
    store.put(source, name="x")
    read = counted(monkeypatch)
    store.put(source, name="x")
    assert sorted(read) == ["a.png", "metadata.jsonl"]
    clock.advance(60)
    store.put(source, name="x")
    read.clear()
    store.put(source, name="x")
    assert read == []


def test_other_rules_check_again(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", ["a.png"])
    looked: list[Path] = []

    def check(folder: Path) -> Report:
        looked.append(folder)
        return validate(folder)

    clock = FakeClock(time.time() + 60)
    for rules in ("one", "one", "two"):
        LocalDatasetStore(tmp_path / "store", clock, check=check, checked_as=rules).put(
            source, name="x"
        )
    assert len(looked) == 2


def test_a_state_that_is_no_database_is_made_anew(store: LocalDatasetStore, tmp_path: Path) -> None:
    store.root.mkdir()
    (store.root / "state.db").write_text("not a database, and long enough to be one" * 50)
    assert store.put(write_images(tmp_path / "in", ["a.png"]), name="x").items == 1


def test_a_name_that_is_not_utf_8_is_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", ["a.png"])
    Path(os.fsdecode(bytes(source) + b"/\xff.png")).touch()
    with pytest.raises(ConfigError, match="not UTF-8"):
        store.put(source, name="x")


def test_two_processes_put_the_same_at_once(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", [f"{i}.png" for i in range(30)])
    store = LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))
    pids = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                store.open(store.put(source, name="x").version)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    (version,) = store.list()
    assert not store.verify(version.version)
    assert contents(store.open(version.version)) == contents(source)


def overwrite(path: Path) -> None:
    """In place, as a program that asks for no permission does; same size, time put back or not."""
    path.chmod(0o644)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_a_changed_object_is_noticed_and_put_right_by_adding_again(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", ["a.png", "b.png"])
    store = LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))
    version = store.put(source, name="x").version
    overwrite(store.open(version) / "a.png")  # a hard link: the object itself
    with pytest.raises(StorageError, match=r"a\.png was changed"):
        store.open(version)
    assert store.verify(version).contents == ("a.png",)
    store.put(source, name="x")
    assert contents(store.open(version)) == contents(source)
    assert not store.verify(version)


def test_verify_reads_what_the_seal_hides(tmp_path: Path) -> None:
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x").version
    path = store.open(version) / "a.png"
    overwrite(path)
    os.utime(path, ns=(objects.SEAL_NS, objects.SEAL_NS))
    store.open(version)
    assert store.verify(version).contents == ("a.png",)


def test_a_changed_tree_is_put_back(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", ["a.png", "b.png", "sub/c.png"])
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    version = store.put(source, name="x").version
    tree = store.open(version)
    (tree / "a.png").unlink()
    (tree / "a.png").write_bytes(b"other")
    shutil.rmtree(tree / "sub")
    (tree / "stray.txt").touch()
    assert store.verify(version).tree == ("a.png", "sub/c.png", "stray.txt")
    assert contents(store.open(version)) == {**contents(source), "stray.txt": b""}


def test_a_touched_object_is_read_once_and_sealed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a store that was copied, or made before there were seals."""
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x").version
    path = store.open(version) / "a.png"
    os.utime(path)
    read: list[Path] = []

    def counting(file: Path, name: str) -> Stored:
        read.append(file)
        return hash_file(file, name)

    monkeypatch.setattr("intonaco.datasets.objects.hash_file", counting)
    store.open(version)
    store.open(version)
    assert read == [path]


def test_a_changed_list_of_files_is_refused(tmp_path: Path) -> None:
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    version = store.put(write_images(tmp_path / "in", ["a.png", "b.png"]), name="x").version
    file = store.root / "files" / f"{version}.jsonl"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    with pytest.raises(StorageError, match="list of files"):
        store.open(version)


def test_versions_of_the_first_kind_are_read(tmp_path: Path) -> None:
    """Until now the list of files lay in the version's own file, and objects had no seal."""
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    source = write_images(tmp_path / "in", ["a.png", "b.png"])
    made = store.put(source, name="x")
    files = [
        {"path": f.path, "sha256": f.sha256, "md5": f.md5, "size": f.size}
        for f in store.files(made.version)
    ]
    for file in store.files(made.version):
        os.utime(store.objects.path(file.sha256))
    header = store.root / "versions" / f"{made.version}.json"
    old = json.loads(header.read_text())["version"]
    del old["mix"], old["source_ids"]
    header.write_text(json.dumps({"version": old, "files": files}))
    (store.root / "files" / f"{made.version}.jsonl").unlink()
    assert store.list() == [made]
    assert contents(store.open(made.version)) == contents(source)
    assert store.put(source, name="y") == made


def test_a_version_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    store = LocalDatasetStore(tmp_path / "store", FakeClock())
    made = store.put(write_images(tmp_path / "in", ["a.png"]), name="x")
    assert store.get(made.version[:6]) == made
    for wrong in ("", "zz", "../../etc"):
        with pytest.raises(NotFound):
            store.get(wrong)


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
