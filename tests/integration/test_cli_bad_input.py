"""Bad input as a person gives it: one clear line, non-zero exit, the workspace still usable."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

GOOD = "service: svc\nserving: {gateway: {port: 0}}\nconsole: {port: 0}\n"


def intonaco(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "intonaco.cli.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that has the words (and at most a hint), no traceback, a non-zero exit."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("error: "), done.stderr
    assert len(lines) <= 2, done.stderr
    for word in words:
        assert word in lines[0], done.stderr


def still_usable(root: Path) -> None:
    (root / "intonaco.yaml").write_text(GOOD)
    done = intonaco("status", "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["service"] == "svc"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "intonaco.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize("command", ["check", "status", "up"])
def test_malformed_yaml(root: Path, command: str) -> None:
    (root / "intonaco.yaml").write_text("service: svc\nserving: {gateway: [\n")
    refused(intonaco(command, cwd=root), "line", "not valid YAML")
    still_usable(root)


def test_check_lists_all_mistakes(root: Path) -> None:
    (root / "intonaco.yaml").write_text("service: svc\na: 1\nserving: {replicas: 0, b: 2}\n")
    done = intonaco("check", cwd=root)
    refused(done, "serving.replicas", "(and 2 more)")
    for field in ("serving.replicas", "serving.b", "a: unknown"):
        assert f"- intonaco.yaml: {field}" in done.stdout
    done = intonaco("check", "--json", cwd=root)
    refused(done, "(and 2 more)")
    found = json.loads(done.stdout)
    assert (found["ok"], len(found["problems"])) == (False, 3)
    (root / "intonaco.yaml").write_text(
        "service: svc\nserving: {faults: {x: [boom]}}\ndata: {pool: p, reference: r}\n"
    )
    done = intonaco("check", cwd=root)
    refused(done, "serving.faults", "(and 2 more)")
    assert "- data.pool: folder" in done.stdout
    assert "- data.reference: folder" in done.stdout


def test_no_configuration(tmp_path: Path) -> None:
    refused(intonaco("status", cwd=tmp_path), "intonaco.yaml does not exist")


@pytest.mark.parametrize("command", ["check", "up"])
def test_unknown_detector(root: Path, command: str) -> None:
    signals = "monitoring: {signals: {prompts: {of: prompt_embedding, detector: adwinn}}}\n"
    (root / "intonaco.yaml").write_text(GOOD + signals)
    refused(intonaco(command, cwd=root), "adwinn", "monitoring.signals.prompts.detector")
    still_usable(root)


@pytest.mark.parametrize("command", ["check", "up"])
def test_missing_model_folder(root: Path, command: str) -> None:
    (root / "intonaco.yaml").write_text(GOOD + "model: {path: models/nowhere}\n")
    refused(intonaco(command, cwd=root), "models/nowhere", "does not exist")
    still_usable(root)


@pytest.mark.parametrize("command", ["check", "up"])
def test_pickle_in_place_of_safetensors(root: Path, command: str) -> None:
    folder = root / "model" / "unet"
    folder.mkdir(parents=True)
    (root / "model" / "model_index.json").write_text('{"_class_name": "X"}')
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (root / "intonaco.yaml").write_text(GOOD + "model: {path: model}\n")
    refused(intonaco(command, cwd=root), "diffusion_pytorch_model.bin", "pickle")
    still_usable(root)


def test_port_taken(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (root / "intonaco.yaml").write_text(
            GOOD.replace("gateway: {port: 0}", f"gateway: {{port: {port}}}")
        )
        refused(intonaco("up", cwd=root), "gateway", str(port))
    still_usable(root)


def test_dataset_with_a_broken_image(root: Path) -> None:
    data = root / "data"
    data.mkdir()
    Image.new("RGB", (16, 16)).save(data / "good.png")
    whole = (data / "good.png").read_bytes()
    (data / "cut.png").write_bytes(whole[: len(whole) // 2])
    lines = [{"file_name": f"{n}.png", "text": "a square"} for n in ("good", "cut")]
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    refused(intonaco("dataset", "add", "data", cwd=root), "cut.png")
    done = intonaco("dataset", "list", "--json", cwd=root)
    assert json.loads(done.stdout) == []
    still_usable(root)


def test_unknown_release_process_and_workspace_in_use(root: Path) -> None:
    refused(intonaco("release", "show", "abc", cwd=root), "no release abc")
    refused(intonaco("run", "gatewayy", cwd=root), "gatewayy", "gateway")
    refused(intonaco("rollback", cwd=root), "no earlier champion")
    refused(intonaco("update", "start", cwd=root), "no controller runs")
    refused(intonaco("demo", "--workspace", ".", cwd=root), "not empty")


def test_init_writes_a_configuration_that_checks(tmp_path: Path) -> None:
    assert intonaco("init", cwd=tmp_path).returncode == 0
    done = intonaco("check", cwd=tmp_path)
    assert done.returncode == 0
    assert "no mistakes" in done.stdout
    assert "note: nothing can be served yet: there is no release, model.path names" in done.stdout
    assert "note: extractor: none given" in done.stdout
    assert "all is well" not in done.stdout
    found = json.loads(intonaco("check", "--json", cwd=tmp_path).stdout)
    assert (found["ok"], found["problems"], len(found["notes"])) == (True, [], 2)
    refused(intonaco("init", cwd=tmp_path), "exists already")


def test_up_says_what_is_missing_before_it_can_serve(root: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "intonaco.cli.main", "up"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert child.stdout is not None
        said: list[str] = []
        for line in child.stdout:  # until it ends, or the last of these
            said.append(line)
            if line.startswith("note: extractor"):
                break
        text = "".join(said)
        assert "note: nothing can be served yet: there is no release" in text
        assert text.index("console ") < text.index("note: ")
    finally:
        child.terminate()
        child.communicate(timeout=60)
    assert child.returncode == 0


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_device_that_is_not_there(root: Path, command: str) -> None:
    for device in ("gpu", "cuda:99"):
        worker = f"worker: {{device: '{device}'}}"
        text = GOOD.replace("{gateway: {port: 0}}", f"{{gateway: {{port: 0}}, {worker}}}")
        (root / "intonaco.yaml").write_text(text)
        refused(intonaco(command, cwd=root), "serving.worker.device: ", device)
    still_usable(root)


def test_help_names_every_command(tmp_path: Path) -> None:
    done = intonaco("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("init", "check", "up", "demo", "status", "events", "rollback", "release"):
        assert name in done.stdout
