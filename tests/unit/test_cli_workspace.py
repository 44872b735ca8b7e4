"""``intonaco workspace gc``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from tests.reviewed import START, a_review
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.codec import encode
from intonaco.environments import EnvironmentStore, capture
from intonaco.environments.build import MARKER
from intonaco.ledger import Ledger
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.review import desk
from intonaco.sources import fetch
from intonaco.types import Provenance
from intonaco.workspace import Workspace, write_atomic

INDEX = json.dumps({"_class_name": "DDPMPipeline"}).encode()
KEPT, OTHER = "memory://gc/kept", "memory://gc/other"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    fs = fsspec.filesystem("memory")
    for place in ("kept", "other"):
        fs.pipe(f"/gc/{place}/model_index.json", INDEX)
        fs.pipe(f"/gc/{place}/unet/model.safetensors", place.encode() * 1000)
    yield
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def gc(root: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["workspace", "gc", "-w", str(root), *options])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def aged(folder: Path) -> Path:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - 7200,) * 2)
    return folder


def test_what_no_release_needs_is_shown_and_then_removed(tmp_path: Path) -> None:
    (tmp_path / "intonaco.yaml").write_text("service: sample\n")
    workspace = Workspace(tmp_path)
    assert gc(tmp_path) == "nothing to remove\n"

    environments = EnvironmentStore(workspace)
    here = capture()
    named, spare = (
        environments.keep(here.replaced(replace(here, pins={"diffusers": v})))
        for v in ("0.1", "0.2")
    )
    builds = []
    for environment in (named, spare):
        folder = workspace.environments.resolve() / environment / environments.plan(environment).key
        folder.mkdir()
        (folder / MARKER).write_text(json.dumps({"kind": "layer", "built_at": 5.0}))
        builds.append(folder)

    releases = ReleaseStore(workspace, "sample")
    folder = fetch(KEPT, tmp_path / "scratch")
    spec = read_serving_spec(folder, generation={}, environment=named)
    release = releases.add(folder, spec, Provenance(created_at=0.0))
    at_url = replace(release, path=KEPT)
    write_atomic(workspace.releases / release.release_id / "release.json", encode(at_url))
    kept, other = aged(releases.folder(at_url)), aged(fetch(OTHER, workspace.models))
    in_use = fetch(KEPT, workspace.models)  # asked for just now, as an update would

    shown = json.loads(gc(tmp_path, "--json"))
    assert shown["removed"] is False
    assert {(f["what"], f["path"]) for f in shown["found"]} == {
        ("environment", str(builds[1])),
        ("model", str(other)),
    }
    assert shown["bytes"] == sum(f["bytes"] for f in shown["found"]) > 5000
    assert "nothing was removed; --yes removes it" in gc(tmp_path)
    assert all(p.is_dir() for p in (kept, other, in_use, *builds))

    removed = json.loads(gc(tmp_path, "--yes", "--json"))
    assert removed == shown | {"removed": True}
    assert [p.is_dir() for p in (kept, other, in_use, *builds)] == [True, False, True, True, False]
    assert environments.knows(spare), "a lock is no rubbish"
    assert gc(tmp_path, "--yes") == "nothing to remove\n"
    (tmp_path / "intonaco.yaml").write_text(f"service: sample\nmodel: {{path: '{KEPT}'}}\n")
    aged(in_use)
    assert gc(tmp_path) == "nothing to remove\n", "the configuration names it"


def test_what_evaluations_keep_too_long_goes(tmp_path: Path) -> None:
    (tmp_path / "intonaco.yaml").write_text(
        "service: sample\nevaluation: {cache_days: 2, cache_gb: 0.000003}\n"
    )
    kept = Workspace(tmp_path).evaluations
    ages = {"images/new": 0.0, "images/used": 0.2, "features/large": 0.3, "images/old": 3.0}
    for name, days in ages.items():
        file = kept / f"{name}.npz"
        write_atomic(file, b"x" * (4000 if name == "features/large" else 1000))
        os.utime(file, (time.time() - days * 86_400,) * 2)
    found = json.loads(gc(tmp_path, "--json"))["found"]
    # 3 kB hold the two that were used last; within the hour nothing is touched
    assert {Path(f["path"]).stem for f in found} == {"large", "old"}
    assert {f["what"] for f in found} == {"evaluation"}
    assert (kept / "features" / "large.npz").exists()
    gc(tmp_path, "--yes")
    assert {f.stem for f in kept.glob("*/*.npz")} == {"new", "used"}


def test_pictures_of_reviews_that_are_over_go(tmp_path: Path) -> None:
    (tmp_path / "intonaco.yaml").write_text("service: sample\n")
    workspace = Workspace(tmp_path)
    ledger = Ledger.open(workspace.ledger, "sample")
    over, open_ = (
        a_review(workspace, ledger, prompts=2, side=16, review_id=name * 12) for name in "ab"
    )
    desk.settle(ledger, over.review_id, START + 9e6)
    ledger.close()
    folders = [workspace.reviews / r.review_id for r in (over, open_)]
    (found,) = json.loads(gc(tmp_path, "--json"))["found"]
    assert (found["what"], found["path"]) == ("review", str(folders[0]))
    assert folders[0].exists()
    assert json.loads(gc(tmp_path, "--yes", "--json"))["bytes"] > 0
    assert [f.exists() for f in folders] == [False, True]
