"""DVC itself as the judge of the ids that we give, and as the other end of a remote.

The command is the one that INTONACO_DVC names, or `dvc` on PATH; without one these tests say that
they were skipped, and the golden vectors at the end stand for it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tests.unit.test_datasets_store import contents, write_csv, write_images, write_tar

from intonaco.clock import FakeClock
from intonaco.datasets.dvc import Dvc, dvc_file, find_dvc, read_dvc_file
from intonaco.datasets.identity import dvc_id, dvc_tree, hash_bytes, scan
from intonaco.datasets.store import LocalDatasetStore
from intonaco.errors import BackendError, ConfigError, NotFound

NAMED = os.environ.get("INTONACO_DVC") or shutil.which("dvc")
needs_dvc = pytest.mark.skipif(
    NAMED is None, reason="not verified against DVC: no dvc on PATH and none in INTONACO_DVC"
)


def dvc(folder: Path, *arguments: str) -> str:
    """Runs DVC in a repository of its own, without its caches outside of it."""
    settings = dict(os.environ, DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=str(folder / ".site"))
    done = subprocess.run(
        [str(NAMED), *arguments],
        cwd=folder,
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dvc(folder, "init", "--no-scm", "--quiet")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalDatasetStore:
    return LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))


def plain(folder: Path) -> Path:
    return folder


@needs_dvc
def test_dvc_names_the_same_data_by_the_same_id(store: LocalDatasetStore, tmp_path: Path) -> None:
    """Of the version's own folder, and of all that versions are made from."""
    root = repository(tmp_path / "repo")
    names = [
        "z.png",
        "a b.png",
        "sub/é.png",
        "sub/B.png",
        "sub/a/日本.png",
        "A.png",
        "10.png",
        "9.png",
    ]
    given: dict[str, str] = {}
    for n, form in enumerate((plain, write_csv, write_tar)):
        source = form(write_images(root / f"in{n}", names, seed=n))
        version = store.put(source, name="x")
        given[source.name] = next(iter(version.source_ids), version.dvc_md5)
        copy = shutil.copytree(store.open(version.version), root / f"tree{n}")
        given[copy.name] = version.dvc_md5
    dvc(root, "add", "--quiet", *given)
    for name, ours in given.items():
        (out,) = yaml.safe_load((root / f"{name}.dvc").read_text())["outs"]
        assert out["hash"] == "md5"
        assert out["md5"].removesuffix(".dir") == ours, name
        assert read_dvc_file(root / f"{name}.dvc").md5 == ours
        assert read_dvc_file(root / f"{name}.dvc").path == root / name
        if (root / name).is_dir():  # the .dir object too, to the byte
            kept = root / ".dvc/cache/files/md5" / ours[:2] / f"{ours[2:]}.dir"
            found = scan(root / name).files
            files = [hash_bytes(f.path, (root / name / f.path).read_bytes()) for f in found]
            assert kept.read_bytes() == dvc_tree(files)


@needs_dvc
def test_random_trees_get_dvcs_ids(tmp_path: Path) -> None:
    """Hidden files, odd names, equal contents, empty files, line ends, what DVC leaves out."""
    root = repository(tmp_path / "repo")
    rng = random.Random(7)
    letters = "ab.-_ éß🙂+=~"
    for tree in range(6):
        for _ in range(40):
            parts = ["".join(rng.choices(letters, k=3)).strip(" .") or "x" for _ in range(3)]
            path = root / f"t{tree}" / "/".join(parts[: rng.randint(1, 3)])
            if rng.random() < 0.2:
                path = path.with_name(f".{path.name}")
            if path.exists() or any(p.is_file() for p in path.parents):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.choice([b"", b"x\r\ny", b"same", rng.randbytes(50)]))
        (root / f"t{tree}" / ".git").mkdir()
        (root / f"t{tree}" / ".git" / "HEAD").touch()
    dvc(root, "add", "--quiet", *(f"t{tree}" for tree in range(6)))
    for tree in range(6):
        found = scan(root / f"t{tree}")
        files = [hash_bytes(f.path, (root / f"t{tree}" / f.path).read_bytes()) for f in found.files]
        assert read_dvc_file(root / f"t{tree}.dvc").md5 == dvc_id(files)
        assert found.whole


@needs_dvc
def test_a_pushed_version_is_pulled_by_dvc_and_by_another_workspace(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    version = store.put(
        write_images(tmp_path / "in", ["a.png", "sub/b.png", "back\\slash\n'é.png"]), name="x"
    )
    root = repository(tmp_path / "repo")
    remote = tmp_path / "remote"
    ours = Dvc(command=str(NAMED), store=store)
    ours.push(version.version, str(remote), file=root / "cats.dvc")
    dvc(root, "remote", "add", "--default", "there", str(remote))
    dvc(root, "pull", "--quiet", "cats.dvc")
    assert contents(root / "cats") == contents(store.open(version.version))
    assert dvc(root, "status").strip() == "Data and pipelines are up to date."

    other = Dvc(
        command=str(NAMED), store=LocalDatasetStore(tmp_path / "other", FakeClock(time.time() + 60))
    )
    by_file = other.pull(root / "cats.dvc", str(remote), name="theirs")
    assert by_file.version == version.version
    by_id = other.pull(version.dvc_md5, str(remote), name="again")
    assert by_id == by_file
    assert contents(other.store.open(by_id.version)) == contents(tmp_path / "in")
    assert not other.store.verify(by_id.version)
    assert not list((other.store.root / "incoming").iterdir())
    assert not store.verify(version.version)  # DVC left our objects as they were


@needs_dvc
@pytest.mark.parametrize("form", [plain, pytest.param(write_tar, marks=pytest.mark.slow)])
def test_what_a_dvc_user_pushed_is_pulled(
    form: Callable[[Path], Path], store: LocalDatasetStore, tmp_path: Path
) -> None:
    root = repository(tmp_path / "repo")
    source = form(write_images(root / "cats", ["a.png", "b.png"]))
    expected = store.put(source, name="x")
    dvc(root, "add", "--quiet", source.name)
    dvc(root, "remote", "add", "--quiet", "--default", "there", str(tmp_path / "remote"))
    dvc(root, "push", "--quiet")
    shutil.rmtree(root / "cats")
    if source.exists():
        source.unlink()
    shutil.rmtree(root / ".dvc" / "cache")
    named = root / f"{source.name}.dvc"
    for remote in (None, str(tmp_path / "remote")):
        other = LocalDatasetStore(tmp_path / f"other{remote is None}", FakeClock(time.time() + 60))
        pulled = Dvc(command=str(NAMED), store=other).pull(named, remote, name="y")
        assert pulled.version == expected.version
        assert read_dvc_file(named).md5 in (pulled.dvc_md5, *pulled.source_ids)


@needs_dvc
def test_what_a_remote_lacks_or_holds_wrongly_is_refused(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x")
    other = LocalDatasetStore(tmp_path / "other", FakeClock())
    ours = Dvc(command=str(NAMED), store=store)
    theirs = Dvc(command=str(NAMED), store=other)
    with pytest.raises(BackendError, match="has no list of files"):
        theirs.pull(version.dvc_md5, str(tmp_path / "nothing"), name="y")
    remote = tmp_path / "remote"
    ours.push(version.version, str(remote))
    (image,) = (f for f in store.files(version.version) if f.path == "a.png")
    wrong = remote / "files" / "md5" / image.md5[:2] / image.md5[2:]
    wrong.chmod(0o644)
    Image.new("RGB", (8, 8)).save(wrong, "PNG")
    with pytest.raises((BackendError, ConfigError)):
        theirs.pull(version.dvc_md5, str(remote), name="y")
    assert not other.list()
    assert not list((other.root / "incoming").iterdir())


# --------------------------------------------------------------------------- without DVC


def fake(tmp_path: Path, script: str) -> str:
    """A command that does as a shell script says, in DVC's place."""
    command = tmp_path / "dvc-twin"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return str(command)


def test_a_list_of_files_that_leads_elsewhere_is_refused(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    md5 = "0123456789abcdef0123456789abcdef"
    tree = json.dumps([{"md5": md5, "relpath": "../../../evil.png"}])
    (tmp_path / "tree").write_text(tree)
    cache = ".dvc/cache/files/md5/01"
    command = fake(
        tmp_path,
        f"mkdir -p {cache} && cp {tmp_path}/tree {cache}/{md5[2:]}.dir && echo > {cache}/{md5[2:]}",
    )
    with pytest.raises(ConfigError, match="not a plain path"):
        Dvc(command=command, store=store).pull(md5, "s3://x/y", name="x")
    (tmp_path / "tree").write_text(tree.replace("../../../", ""))
    with pytest.raises(BackendError, match="another one under its name"):
        Dvc(command=command, store=store).pull(md5, "s3://x/y", name="x")


def test_what_dvc_says_of_a_failure_is_told(store: LocalDatasetStore, tmp_path: Path) -> None:
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x")
    command = fake(tmp_path, "echo ERROR: no such bucket >&2; exit 255")
    target = tmp_path / "x.dvc"
    with pytest.raises(BackendError, match="dvc push failed: ERROR: no such bucket") as error:
        Dvc(command=command, store=store).push(version.version, "s3://x/y", file=target)
    assert (error.value.backend, error.value.retriable) == ("dvc", True)
    assert not target.exists()
    with pytest.raises(NotFound):
        Dvc(command=command, store=store).push("0" * 64, "s3://x/y")


def test_a_remote_by_name_is_left_to_dvcs_settings(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x")
    command = fake(tmp_path, f'echo "$@" > {tmp_path}/asked; cat .dvc/config >> {tmp_path}/asked')
    Dvc(command=command, store=store).push(version.version, "team")
    asked = (tmp_path / "asked").read_text()
    assert "--remote team items.dvc" in asked
    assert "url" not in asked
    Dvc(command=command, store=store).push(version.version, "s3://bucket/there")
    assert "url = s3://bucket/there" in (tmp_path / "asked").read_text()


def test_the_dvc_file_of_a_version(store: LocalDatasetStore, tmp_path: Path) -> None:
    version = store.put(write_images(tmp_path / "in", ["a.png"]), name="x")
    file = tmp_path / "cats.dvc"
    file.write_text(dvc_file(store.files(version.version), "cats"))
    (out,) = yaml.safe_load(file.read_text())["outs"]
    assert out == {
        "md5": f"{version.dvc_md5}.dir",
        "size": version.bytes,
        "nfiles": 2,
        "hash": "md5",
        "path": "cats",
    }
    tracked = read_dvc_file(file)
    assert (tracked.md5, tracked.directory, tracked.path) == (
        version.dvc_md5,
        True,
        tmp_path / "cats",
    )


@pytest.mark.parametrize(
    "text", ["", "outs: []", "outs:\n- path: x", "- 1", "outs:\n- {md5: ../x, path: x}", ":\n:"]
)
def test_what_is_no_dvc_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.dvc").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.dvc"):
        read_dvc_file(tmp_path / "x.dvc")


def test_the_command_is_named_or_found(tmp_path: Path) -> None:
    command = fake(tmp_path, "true")
    assert find_dvc({"INTONACO_DVC": command}) == command
    with pytest.raises(ConfigError, match="cannot be run"):
        find_dvc({"INTONACO_DVC": "/nowhere/dvc"})
    Path(command).rename(tmp_path / "dvc")
    assert Path(find_dvc({"PATH": str(tmp_path)})).name == "dvc"


# What DVC 3.67.1 put into the `md5` of a .dvc file for these trees (`dvc add`, hash: md5).
GOLDEN = (
    (
        {"foo": b"foo", "sub/b r": b"bar", "é.txt": "café".encode(), ".hidden": b"x\r\ny"},
        "20e33a1e899cd209522886c9e6fd03b5",
    ),
    (
        {
            **{"a.png": b"\x89PNG\r\n\x1a\n", "A.png": b"", "10.png": b"ten"},
            **{"9.png": b"nine", "sub/B": b"same", "sub/a": b"same"},
        },
        "64a99a63c3fb081ed749d8fdb74ff9fd",
    ),
    (
        {
            **{"日本/語.txt": b"1", "🙂.png": b"2", "z~.png": b"3", "a+b=c.png": b"4"},
            **{"a b/c d": b"5", "metadata.jsonl": b'{"file_name": "z~.png", "text": "x"}\n'},
        },
        "47a639b3e26c45552d7db4bc6d8f8611",
    ),
)


@pytest.mark.parametrize(("files", "md5"), GOLDEN)
def test_golden_ids(files: dict[str, bytes], md5: str, tmp_path: Path) -> None:
    for name, raw in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (tmp_path / "data" / ".git").mkdir()
    (tmp_path / "data" / ".git" / "x").touch()
    found = scan(tmp_path / "data").files
    read = [hash_bytes(f.path, (tmp_path / "data" / f.path).read_bytes()) for f in found]
    assert dvc_id(read) == md5
