"""Pipeline folders fetched from elsewhere, and compared with what the release says."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

from intonaco.errors import ConfigError, StorageError
from intonaco.releases import ReleaseStore, read_serving_spec, release_id
from intonaco.sources import Cache, check_path, fetch, local_folder
from intonaco.types import Provenance
from intonaco.workspace import Workspace, write_atomic

FILES = {
    "model_index.json": json.dumps(
        {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    ).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
URL = "memory://bucket/model"
COMMIT = "0123456789" * 4
HUB = f"hf://somebody/tiny@{COMMIT}"


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    for name, data in FILES.items():
        fs.pipe(f"/bucket/model/{name}", data)
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_a_url_is_fetched_once_and_again_when_it_changed(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    folder = fetch(URL, tmp_path)
    assert contents(folder) == FILES
    assert fetch(URL, tmp_path) == folder
    bucket.pipe("/bucket/model/unet/config.json", b'{"another": 1}')
    again = fetch(URL, tmp_path)
    assert again != folder
    assert contents(again)["unet/config.json"] == b'{"another": 1}'
    assert contents(folder) == FILES
    assert not list(tmp_path.glob(".fetching-*"))


def test_what_a_release_names_is_verified(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    bucket.pipe("/bucket/model/other.safetensors", b"of no release")
    assert contents(fetch(URL, tmp_path, weights=DIGESTS)) == FILES
    bucket.pipe("/bucket/model/unet/diffusion_pytorch_model.safetensors", b"weightz")
    with pytest.raises(StorageError, match=r"model\.safetensors has the sha256"):
        fetch(URL, tmp_path / "new", weights=DIGESTS)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [".lock"]
    with pytest.raises(StorageError, match=r"lacks vae/gone\.json"):
        fetch(URL, tmp_path, weights={**DIGESTS, "vae/gone.json": "0"})


def test_pickles_and_code_are_refused_before_they_are_fetched(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    bucket.pipe("/bucket/model/unet/model.bin", b"x")
    with pytest.raises(ConfigError, match=r"unet/model\.bin is a pickle"):
        fetch(URL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, StorageError), match="bucket/nothing"):
        fetch("memory://bucket/nothing", tmp_path)
    with pytest.raises(ConfigError, match="nosuch://x"):
        check_path("nosuch://x")
    for wrong in ("hf://somebody/tiny", "hf://somebody/tiny@main", f"hf://tiny@{COMMIT}"):
        with pytest.raises(ConfigError, match="does not pin"):
            check_path(wrong)
    check_path(HUB)
    check_path("some/folder")


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """As huggingface_hub lays it out: links into blobs. HF_HUB_OFFLINE is on in these tests."""
    root = tmp_path / "hub" / "models--somebody--tiny"
    more = {
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "tiny.safetensors": b"all in one file",
        "convert.py": b"code",
        "README.md": b"card",
    }
    for number, (name, data) in enumerate((FILES | more).items()):
        blob = root / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        file = root / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(blob)
    return tmp_path / "hub"


def test_of_a_hub_repository_the_pipelines_own_files_are_taken(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = fetch(HUB, tmp_path / "cache", hub_cache=hub_cache)
    assert contents(folder) == FILES
    assert not any(p.is_symlink() for p in folder.rglob("*"))
    with pytest.raises(StorageError, match="sha256"):
        fetch(
            HUB,
            tmp_path / "cache",
            hub_cache=hub_cache,
            weights={**DIGESTS, "unet/config.json": "0"},
        )
    other = HUB.replace("0123456789", "9876543210")
    with pytest.raises(StorageError, match="cannot be had from the hub"):
        fetch(other, tmp_path / "cache", hub_cache=hub_cache)


def test_a_release_at_a_url_is_served_from_the_workspaces_cache(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "w")
    folder = local_folder(URL, workspace)
    assert folder.is_relative_to(workspace.models)
    assert local_folder("some/folder", workspace) == tmp_path / "w" / "some" / "folder"
    store = ReleaseStore(workspace, "tiny")
    spec = read_serving_spec(folder, generation={})
    release = replace(store.add(folder, spec, Provenance(created_at=1.0)), path=URL)
    assert release_id(read_serving_spec(store.folder(release), generation={})) == release.release_id
    bucket.pipe("/bucket/model/unet/config.json", b'{"changed": 1}')
    for cached in sorted(p for p in workspace.models.iterdir() if p.is_dir()):
        (cached / "unet" / "config.json").unlink()
        cached.rename(cached.with_name("old" + cached.name))
    with pytest.raises(StorageError, match="sha256"):
        store.folder(release)


def aged(folder: Path, seconds: float) -> None:
    """As if it had been asked for so long ago."""
    at = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (at, at))


def test_what_nobody_needs_is_spare(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    cache, now = Cache(tmp_path / "cache"), time.time()
    assert cache.spare([], configured=None, now=now) == []
    of_release = fetch(URL, cache.root, weights=DIGESTS)
    assert of_release == cache.folder(URL, DIGESTS)
    first = fetch(URL, cache.root)
    bucket.pipe("/bucket/model/unet/config.json", b'{"another": 1}')
    second = fetch(URL, cache.root)
    killed, under_way = cache.root / ".fetching-a", cache.root / ".fetching-b"
    for folder in (killed, under_way):
        (folder / "unet").mkdir(parents=True)
    for age, folder in ((9000, first), (8000, second), (9000, of_release), (9000, killed)):
        aged(folder, age)
    aged(under_way, 9000)
    (under_way / "unet" / "just now").write_bytes(b"x")
    assert cache.spare([of_release], configured=URL, now=now) == sorted([first, killed])
    assert cache.spare([], configured=None, now=now) == sorted([first, second, of_release, killed])
    assert cache.spare([], configured=None, now=now - 6000) == []
    fetch(URL, cache.root)  # asked for again: the second is in use
    assert cache.spare([of_release], configured=None, now=now) == sorted([first, killed])
    assert cache.remove(second, now=now) is None
    assert cache.remove(first, now=now) == sum(len(data) for data in FILES.values())
    assert cache.remove(first, now=now) is None
    assert contents(second)
    assert sorted(p.name for p in cache.root.iterdir() if p.is_dir()) == sorted(
        p.name for p in (killed, under_way, second, of_release)
    )


def test_one_that_is_looked_up_while_it_is_removed_is_fetched_again(
    tmp_path: Path,
) -> None:
    """Either the look-up comes first, and it stays, or it is whole again afterwards."""
    for name, data in FILES.items():
        write_atomic(tmp_path / "source" / name, data)
    url, cache = (tmp_path / "source").as_uri(), Cache(tmp_path / "cache")
    folder = fetch(url, cache.root)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(50):
            aged(folder, 9000)
            begun = Barrier(4)

            def look(begun: Barrier = begun) -> None:
                begun.wait()
                assert contents(fetch(url, cache.root)) == FILES

            def sweep(begun: Barrier = begun) -> None:
                begun.wait()
                cache.remove(folder, now=time.time())

            for done in [threads.submit(what) for what in (look, sweep, look, sweep)]:
                done.result()
            assert contents(fetch(url, cache.root)) == FILES
    assert not list(cache.root.glob(".fetching-*"))


def test_links_of_a_cache_become_files_of_the_store(hub_cache: Path, tmp_path: Path) -> None:
    snapshot = hub_cache / "models--somebody--tiny" / "snapshots" / COMMIT
    for file in ("unet/diffusion_pytorch_model.bin", "convert.py"):
        (snapshot / file).unlink()
    store = ReleaseStore(Workspace(tmp_path / "w"), "tiny")
    spec = read_serving_spec(snapshot, generation={})
    made = store.folder(store.add(snapshot, spec, Provenance(created_at=1.0)))
    assert not any(p.is_symlink() for p in made.rglob("*"))
    assert (made / "unet" / "config.json").read_bytes() == b"{}"
