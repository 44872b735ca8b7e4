"""Options of the configuration reach the worker, or are refused before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from intonaco import config
from intonaco.app import check, notes
from intonaco.config import Recipe, Serving, Worker
from intonaco.environments.store import Choice, Way
from intonaco.errors import ConfigError
from intonaco.executor.training import Base, base_of, base_of_release, beside
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.serving import device_check, worker_processes
from intonaco.serving.worker.devices import resolve_device
from intonaco.serving.worker.main import arguments
from intonaco.types import Provenance, Release
from intonaco.workspace import Workspace


def model(root: Path, *adapters: str) -> Path:
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    for name in adapters:
        (root / "adapters" / name).mkdir(parents=True)
        (root / "adapters" / name / "pytorch_lora_weights.safetensors").write_bytes(b"")
    return root


def release(root: Path, *adapters: str) -> Release:
    folder = model(root / "p", *adapters)
    spec = read_serving_spec(folder, generation={}, adapters=adapters)
    return ReleaseStore(Workspace(root), "s").add(folder, spec, Provenance(created_at=1.0))


def test_a_workers_settings_reach_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def spawn(workspace: Workspace, entry: str, argv: list[str], **more: Any) -> int:
        started.append(argv)
        return os.getpid()

    monkeypatch.setattr(worker_processes, "spawn", spawn)
    processes = worker_processes.WorkerProcesses(
        Workspace(tmp_path), Serving(worker=Worker(device="cuda:1", offload="model")), 1.0
    )
    processes.start(release(tmp_path), "worker-1", "", Choice(way=Way.HERE))
    args = arguments(started[0])
    assert (args.device, args.offload) == ("cuda:1", "model")
    defaults = arguments(["--workspace", ".", "--release", "r"])
    assert (defaults.device, defaults.offload) == (Worker().device, Worker().offload)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path: hf://somebody/model", "does not pin a model of the hub"),
        ("path: nosuch://bucket/model", "nosuch://bucket/model cannot be reached"),
        ("path: mine", "adapters/style is there and not named"),
        ("{path: mine, adapters: ['style:much']}", "no number after the colon"),
        ("{path: mine, adapters: [style, other]}", "'other' has no file"),
    ],
)
def test_a_model_that_cannot_be_had_is_found_by_the_check(
    tmp_path: Path, text: str, told: str
) -> None:
    model(tmp_path / "mine", "style")
    text = text if text.startswith("{") else f"{{{text}}}"
    parsed = config.parse(f"service: s\nmodel: {text}\n")
    assert any(told in problem for problem in check(parsed, Workspace(tmp_path)))


def test_a_model_that_is_there_passes_the_check(tmp_path: Path) -> None:
    model(tmp_path / "mine", "style")
    for text in ("{path: mine, adapters: ['style:0.5']}", f"{{path: 'hf://a/b@{'0' * 40}'}}"):
        parsed = config.parse(f"service: s\nmodel: {text}\n")
        assert not [p for p in check(parsed, Workspace(tmp_path)) if "model" in p or "hf:" in p]


def test_what_a_start_would_stumble_over_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = config.parse(
        "service: s\n"
        "serving: {faults: {fine_tune: ['boom']}, gateway: {api_keys: ['env:NO_SUCH_KEY']}}\n"
    )
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert [p for p in check(parsed, Workspace(tmp_path)) if p.startswith("serving.")] == [
        "serving.gateway.api_keys: NO_SUCH_KEY is not set in the environment",
        "serving.faults: fault 'boom': unknown kind 'boom'; known: errors, slow",
    ]
    monkeypatch.setenv("NO_SUCH_KEY", "a key")
    assert len([p for p in check(parsed, Workspace(tmp_path)) if p.startswith("serving.")]) == 1


def test_an_unknown_option_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.0"):
        config.parse("service: s\nmodel: {options: [fast]}\n")
    with pytest.raises(ConfigError, match=r"serving\.worker\.offload"):
        config.parse("service: s\nserving: {worker: {offload: disk}}\n")


def test_a_training_is_told_of_the_champions_adapters(tmp_path: Path) -> None:
    """It would start from the base without them."""
    champion = release(tmp_path, "style")
    store: Any = SimpleNamespace(releases=ReleaseStore(Workspace(tmp_path), "s"))
    assert beside(base_of_release(store, champion)) == {"adapters": ["style"], "fused": False}
    store.workspace = Workspace(tmp_path)
    assert base_of(store, Recipe(), champion) == base_of_release(store, champion)
    assert base_of(store, Recipe(init="module:callable"), champion) == Base(folder=None)
    assert beside(base_of(store, Recipe(init="a folder"), champion)) == {}


@pytest.mark.parametrize(("device", "wrong"), [("cuda", True), ("mps", True), ("auto", False)])
def test_without_torch_a_device_is_not_checked_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, wrong: bool
) -> None:
    monkeypatch.setattr(device_check, "find_spec", lambda name: None)
    workspace = Workspace(tmp_path)
    parsed = config.parse(f"service: s\nserving: {{worker: {{device: {device}}}}}\n")
    assert check(parsed, workspace) == []
    unchecked = [n for n in notes(parsed, workspace) if n.startswith("serving.worker.device")]
    assert bool(unchecked) is wrong
    assert all(f"{device} is there was not checked" in note for note in unchecked)
    parsed = config.parse("service: s\nserving: {worker: {device: abacus}}\n")
    assert check(parsed, workspace) == ["serving.worker.device: 'abacus' is unknown"]


def test_a_number_of_a_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for there in ("cuda", "cuda:0", "cuda:1"):
        assert resolve_device(there) == there
    for missing in ("cuda:2", "cuda:-1", "cuda:one"):
        with pytest.raises(ConfigError, match=f"{missing} is not available here; of cuda there"):
            resolve_device(missing)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "model.path names no pipeline to take into care, and data.train no images"),
        ("data: {train: t}", "no recipe of training.recipes says in init what pipeline"),
        (
            "data: {train: t}\ndecision: {fine_tune: [full]}\n"
            "training: {recipes: {full: {method: full, init: models/x}}}",
            "until `intonaco update start` has trained the first release",
        ),
        ("model: {path: models/x}", ""),
    ],
)
def test_what_is_missing_before_anything_is_served(tmp_path: Path, more: str, said: str) -> None:
    workspace = Workspace(tmp_path)
    parsed = config.parse(f"service: s\nextractor: {{type: clip, path: x}}\n{more}\n")
    found = notes(parsed, workspace)
    assert len(found) == bool(said)
    assert all(said in note for note in found)
    release = workspace.releases / "r" / "release.json"
    release.parent.mkdir(parents=True)
    release.touch()
    assert notes(parsed, workspace) == []
