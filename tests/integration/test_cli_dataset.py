"""`intonaco dataset`: add, list, show, diff, verify, push, pull, as a person uses them."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.test_datasets_store import overwrite, write_images, write_tar
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.errors import BackendError, ConfigError, NotFound, StorageError
from intonaco.ledger import Ledger
from intonaco.types import DatasetVersion

CONFIG = "service: svc\nmodel: {path: model, generation: {width: 16, height: 16}}\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "intonaco.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    """What it prints. Raises what it ends with."""
    done = CliRunner().invoke(app, ["dataset", *arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def facts(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def two_versions(root: Path) -> tuple[str, str]:
    first = facts("add", str(write_images(root / "one", ["a.png", "b.png", "c.png"])))
    two = write_images(root / "two", ["a.png", "b.png", "c.png", "d.png"])
    lines = [json.loads(line) for line in (two / "metadata.jsonl").read_text().splitlines()]
    lines[0]["text"] = "another caption"
    lines[3]["topic"] = "new"
    (two / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Image.new("RGB", (16, 16), (9, 9, 9)).save(two / "b.png")
    (two / "c.png").rename(two / "moved.png")
    text = (two / "metadata.jsonl").read_text().replace('"c.png"', '"moved.png"')
    (two / "metadata.jsonl").write_text(text)
    second = facts("add", str(two), "--name", "two")
    return first["version"], second["version"]


def test_add_list_show(root: Path) -> None:
    version, _ = two_versions(root)
    shards = facts("add", str(write_tar(write_images(root / "three", ["x.png"], seed=3))))
    listed = facts("list")
    assert [v["name"] for v in listed] == ["data", "two", "data"]
    shown = facts("show", version[:8], "--files")
    assert shown["version"] == version
    assert [f["path"] for f in shown["files"]] == ["a.png", "b.png", "c.png", "metadata.jsonl"]
    text = run("show", shards["version"][:8])
    assert shards["source_ids"][0] in text
    assert shards["dvc_md5"] in text
    assert "a.png" in run("show", version, "--files")
    assert f"{listed[0]['bytes'] / 1e6:.1f}" in run("list")
    ledger = Ledger.open(root / "state" / "ledger.db", "svc")
    assert {v.version for v in ledger.all(DatasetVersion)} == {v["version"] for v in facts("list")}


def test_show_tells_how_replay_was_drawn(root: Path) -> None:
    from intonaco.clock import FakeClock
    from intonaco.datasets.store import LocalDatasetStore
    from intonaco.types import ReplayMix

    run("list")  # makes the workspace
    mix = ReplayMix(share=0.3, sampling="topic", seed=11, new=7, replayed=3, topics={"cats": 3})
    store = LocalDatasetStore(root / "datasets", FakeClock())
    folder = write_images(root / "one", ["a.png"])
    version = store.put(folder, name="x", parents=("p" * 64,), replay=0.3, mix=mix)
    text = run("show", version.version[:6])
    for part in ("3 of old data beside 7 new", "cats 3", "30%, by topic, seed 11", "pppppppppp"):
        assert part in text
    assert facts("show", version.version)["mix"]["seed"] == 11


def test_diff_for_people_and_programs(root: Path) -> None:
    first, second = two_versions(root)
    found = facts("diff", first[:8], second[:8])
    assert found["added"] == ["d.png"]
    assert found["moved"] == [["c.png", "moved.png"]]
    assert found["images"] == ["b.png"]
    assert found["captions"] == ["a.png"]
    assert found["removed"] == found["facts"] == []
    assert found["topics"] == {
        "a": {"added": 0, "removed": 0, "changed": 2, "items": 3},
        "new": {"added": 1, "removed": 0, "changed": 0, "items": 1},
    }
    text = run("diff", first, second)
    for line in ("+ added  d.png", "> moved  c.png -> moved.png", "~ caption changed  a.png"):
        assert line in text
    assert "added 1, moved 1, image changed 1, caption changed 1" in text
    assert "no difference" in run("diff", first, first)


def test_a_long_diff_is_cut_for_people(root: Path) -> None:
    first = facts("add", str(write_images(root / "one", ["a.png"])))["version"]
    names = ["a.png", *(f"n{i:02d}.png" for i in range(25))]
    second = facts("add", str(write_images(root / "two", names)))["version"]
    assert "and 5 more (--all)" in run("diff", first, second)
    assert "n24.png" in run("diff", first, second, "--all")
    assert len(facts("diff", first, second)["added"]) == 25


def test_verify_tells_what_was_changed(root: Path) -> None:
    version, _ = two_versions(root)
    assert "as it was added" in run("verify", version)
    assert facts("verify", version) == {"contents": [], "tree": []}
    (sha,) = (f["sha256"] for f in facts("show", version, "--files")["files"][:1])
    overwrite(root / "datasets" / "objects" / sha[:2] / sha[2:])
    with pytest.raises(StorageError, match=r"1 contents changed .* the first a\.png"):
        run("verify", version)
    done = CliRunner().invoke(app, ["dataset", "verify", version, "--json"])
    assert done.exit_code == 4
    assert json.loads(done.stdout)["contents"] == ["a.png"]


def test_push_and_pull_ask_dvc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in DVC's place that copies its cache to the remote and back."""
    twin = root / "dvc-twin"
    twin.write_text(
        "#!/bin/sh\n"
        f"case $1 in push) cp -r .dvc/cache {root}/far;;"
        f" fetch) cp -r {root}/far .dvc/cache;; pull) touch {root}/pulled;; esac\n"
    )
    twin.chmod(0o755)
    monkeypatch.setenv("INTONACO_DVC", str(twin))
    version = facts("add", str(write_images(root / "one", ["a.png"])))
    file = root / "one.dvc"
    assert "one.dvc" in run(
        "push", version["version"][:8], "--remote", "s3://there", "--dvc-file", str(file)
    )
    assert version["dvc_md5"] in file.read_text()
    for wanted in (str(file), version["dvc_md5"]):
        assert facts("pull", wanted, "--remote", "s3://there")["version"] == version["version"]
    assert facts("pull", str(file))["version"] == version["version"]  # where it lies
    assert (root / "pulled").exists()
    Image.new("RGB", (16, 16)).save(root / "one" / "a.png")
    with pytest.raises(ConfigError, match="is not what"):
        run("pull", str(file))
    with pytest.raises(ConfigError, match="an md5 alone"):
        run("pull", version["dvc_md5"])
    with pytest.raises(ConfigError, match="is no md5"):
        run("pull", "HEAD", "--remote", "s3://there")
    twin.write_text("#!/bin/sh\necho no credentials; exit 1\n")
    with pytest.raises(BackendError, match="no credentials"):
        run("push", version["version"], "--remote", "s3://there")


def test_what_is_wrong_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no dataset version abc"):
        run("show", "abc")
    with pytest.raises(ConfigError, match="does not exist"):
        run("add", "nowhere")
    version, _ = two_versions(root)
    monkeypatch.setenv("INTONACO_DVC", os.devnull)
    with pytest.raises(ConfigError, match="cannot be run"):
        run("push", version, "--remote", "s3://there")


def test_the_check_takes_what_add_takes_and_says_what_add_would(root: Path) -> None:
    def check(*words: str) -> Any:
        return CliRunner().invoke(app, ["dataset", "check", *words])

    folder = write_images(root / "one", ["a.png", "b.png"])
    shard = write_tar(folder)
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"text"', '"alt"'))
    assert check(str(folder)).exit_code == 1
    assert check(str(folder), "--text-column", "alt").exit_code == 0
    done = check(str(shard), "--json", "--report", str(root / "out"))
    assert (done.exit_code, json.loads(done.stdout)["kept"]) == (0, 2)
    assert json.loads((root / "out" / "report.json").read_text())["kept"] == 2
    (root / "none").mkdir()
    (root / "none" / "metadata.jsonl").touch()
    assert check(str(root / "none")).exit_code == 1  # nothing to learn is no pass
    with pytest.raises(ConfigError, match="no usable items"):
        run("add", str(root / "none"))
    (root / "bare").mkdir()
    tar = write_tar(write_images(root / "bare" / "in", ["a.png"], seed=5))
    with tarfile.open(tar, "w") as archive:
        archive.add(root / "bare" / "in" / "a.png", "a.png")
    with pytest.raises(ConfigError, match=rf"{tar}/a\.png: has no caption"):
        run("add", str(tar))


def test_the_same_data_keep_the_name_they_have(root: Path) -> None:
    """A trigger that watches the new name would wait for ever: that is said."""
    folder = str(write_images(root / "one", ["a.png"]))
    assert facts("add", folder, "--name", "cats")["name"] == "cats"
    for words, said in ((["--name", "dogs"], True), ([], False), (["--name", "cats"], False)):
        done = CliRunner().invoke(app, ["dataset", "add", folder, *words, "--json"])
        assert json.loads(done.stdout)["name"] == "cats"
        assert ("as 'cats' and keep that name" in done.stderr) is said
