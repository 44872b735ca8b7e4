"""The demo as a newcomer runs it, judged by its summary; and once with the controller killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intonaco.demo.data import NAMES
from intonaco.demo.strategies import TELLINGS
from intonaco.demo.summary import accuracy_targets
from intonaco.ledger import Ledger
from intonaco.types import Phase, Update
from intonaco.workspace import Workspace

pytestmark = pytest.mark.timeout(1700)

SEEDS = (0, 1)


def demo(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "intonaco.cli.main",
            "demo",
            "--quick",
            "--no-browser",
            "--workspace",
            str(root),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole quick demo: its workspace and what it printed.

    A quick run may honestly fail for one seed in twenty (a training that turned out badly, a busy
    machine), and then says so. Two seeds in a row fail by chance once in four hundred times."""
    told = []
    for seed in SEEDS:
        root = tmp_path_factory.mktemp("demo") / "workspace"
        process = demo(root, "--seed", str(seed))
        printed, _ = process.communicate(timeout=800)
        if process.returncode == 0:
            return root, printed
        told.append(printed[-4000:])
    raise AssertionError("\n".join(told))


def summary_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "summary.json").read_text())
    return found


def test_the_summary_has_the_whole_story(finished: tuple[Path, str]) -> None:
    root, _ = finished
    s = summary_of(root)
    assert s["missing"] == []
    assert len(s["releases"]) >= 4
    assert s["drift"]["requests_to_detect"] <= 150
    assert s["drift"]["false_alarms_before"] == 0
    assert s["drift"]["quiet_requests_armed"] >= 300
    assert {"signal", "armed_at"} <= set(s["drift"])
    assert s["diagnosis"]["cause"] == "concept_drift"
    assert {"action", "estimated_cost", "budget_left"} <= set(s["plan"])
    assert {c["name"]: c["verdict"] for c in s["candidates"]} == {
        "with-replay": "pass",
        "without-replay": "fail",
    }
    assert all(c["reasons"] and c["metrics"] for c in s["candidates"])
    for when in ("before", "after"):
        assert set(s["accuracy"][when]) == set("0123456789")
    for when, topics, low, high in accuracy_targets(quick=True):
        digits = [str(NAMES.index(topic)) for topic in topics]
        assert low <= np.mean([s["accuracy"][when][d] for d in digits]) <= high
    steps = [(x["kind"], x["weight"]) for x in s["rollout"]["steps"]]
    assert [w for kind, w in steps if kind == "canary"] == [0.05, 0.25, 0.5, 1.0]
    assert [kind for kind, _ in steps[-2:]] == ["promote", "bake"]
    assert "breaker" in s["rollback"]["reason"]
    assert s["rollback"]["seconds"] < 60
    assert s["rollback"]["last_attempt_after_trip_seconds"] <= 1.0
    slowness = s["rollbacks"][1]["reason"]  # on a busy machine the time-out is reached first
    assert "slow" in slowness or "no answer within" in slowness
    assert s["requests"]["total"] > 1000
    assert (s["requests"]["failed"], s["requests"]["lost"]) == (0, 0)
    assert s["seconds"]["total"] > 0


def test_the_report_stands_alone(finished: tuple[Path, str]) -> None:
    root, _ = finished
    report = (root / "report.html").read_text()
    assert "<svg" in report
    assert "data:image/png;base64," in report
    assert 'src="http' not in report


# diffusers' scheduler still calls numpy in a way that numpy 2 warns of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_any_release_is_a_plain_diffusers_folder(finished: tuple[Path, str]) -> None:
    """Loaded without a line of ours, it draws the digit that is asked for."""
    import torch
    from diffusers import StableDiffusionPipeline

    from intonaco.demo.judge import Judge

    root, _ = finished
    judge = Judge.fit(root / "data" / "judge.npz")
    champion = next(r for r in summary_of(root)["releases"] if r["role"] == "champion")
    folder = root / champion["path"]
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    names = ("two", "seven")
    prompts = [f"a handwritten {name}" for name in names for _ in range(10)]
    images = pipeline(
        prompts,
        num_inference_steps=10,
        guidance_scale=1.5,
        width=32,
        height=32,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
    ).images
    drawn = np.stack([np.asarray(image) for image in images])
    accuracy = judge.accuracy(drawn, [2] * 10 + [7] * 10)
    assert min(accuracy.values()) >= 0.7


def run(root: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "intonaco.cli.main", *arguments, "--json", "-w", str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_commands_work_on_the_workspace_and_up_serves_it(
    finished: tuple[Path, str],
) -> None:
    import httpx
    from openai import OpenAI

    root, _ = finished
    status = run(root, "status")
    assert status["releases"]["champion"] is not None
    assert run(root, "events")
    releases = run(root, "release", "list")
    champion = next(r for r in releases if r["role"] == "champion")
    previous = next(r for r in releases if r["role"] == "previous")
    lineage = run(root, "release", "lineage", champion["release_id"][:12])
    assert champion["release_id"] in json.dumps(lineage)
    assert champion["provenance"]["dataset_version"] in json.dumps(lineage)
    assert run(root, "rollback")["ok"]
    releases = run(root, "release", "list")
    assert (
        next(r for r in releases if r["role"] == "champion")["release_id"]
        == (previous["release_id"])
    )
    up = subprocess.Popen(
        [sys.executable, "-m", "intonaco.cli.main", "up", "-w", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        workspace = Workspace(root)
        url = wait_for_gateway(workspace, up)
        client = OpenAI(base_url=f"{url}/v1", api_key="x")
        answer = client.images.generate(prompt="a handwritten three", user="ann")
        assert answer.data
        assert answer.data[0].b64_json
        console = workspace.process("console")
        assert console is not None
        assert console.url is not None
        assert httpx.get(f"{console.url}/api/snapshot").json()["service"] == "digits"
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=60)


def wait_for_gateway(workspace: Workspace, up: subprocess.Popen[str]) -> str:
    import httpx

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert up.poll() is None, up.communicate()[0]
        gateway = workspace.process("gateway")
        if gateway is not None and gateway.url is not None:
            try:
                if httpx.get(f"{gateway.url}/readyz").status_code == 200:
                    return gateway.url
            except httpx.HTTPError:
                pass
        time.sleep(0.2)  # waiting for another process
    raise AssertionError("the gateway was not ready in time")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [s for s in TELLINGS if s != "canary"])
def test_the_same_story_with_every_strategy(tmp_path: Path, strategy: str) -> None:
    told = []
    for seed in SEEDS:
        root = tmp_path / f"{strategy}-{seed}"
        process = demo(root, "--seed", str(seed), "--strategy", strategy)
        printed, _ = process.communicate(timeout=800)
        s = summary_of(root)
        assert s["strategy"] == strategy
        if process.returncode == 0:
            assert s["missing"] == []
            telling = TELLINGS[strategy]
            assert s["rollout"]["status"] == ("promoted" if telling.promotes else "observed")
            assert len(s["rollbacks"]) == telling.drills
            assert s["requests"]["lost"] == 0
            return
        told.append(printed[-4000:])
    raise AssertionError("\n".join(told))


@pytest.mark.slow
def test_a_controller_killed_in_the_middle_of_an_update_changes_nothing(tmp_path: Path) -> None:
    """Whether or not this seed's story ends well (see ``finished``): one champion, and each
    candidate trained once."""
    told = []
    for seed in SEEDS:
        root = tmp_path / str(seed)
        process = demo(root, "--seed", str(seed))
        workspace = Workspace(root)
        killed = kill_controller_while_training(workspace, process)
        printed, _ = process.communicate(timeout=800)
        s = summary_of(root)
        assert "controller died and was started again" in printed
        assert len([t for t in s["tenures"] if t["until"] is None]) == 1
        starts = [p for p in workspace.jobs.glob("*/spec.json") if killed in p.read_text()]
        trained = [p for p in starts if "intonaco.training.job" in p.read_text()]
        assert len(trained) == 2  # one each for the two candidates
        assert (s["requests"]["failed"], s["requests"]["lost"]) == (0, 0)
        if process.returncode == 0:
            assert s["missing"] == []
            return
        told.append(printed[-4000:])
    raise AssertionError("\n".join(told))


def kill_controller_while_training(workspace: Workspace, process: subprocess.Popen[str]) -> str:
    """Kill -9 the controller once the fine-tune trains; the update's id."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.5)  # waiting for another process
        if not workspace.ledger.exists():
            continue
        ledger = Ledger.open(workspace.ledger, "digits")
        try:
            training = [
                u for u in ledger.all(Update) if u.plan.diagnosis_id and u.phase is Phase.TRAIN
            ]
        finally:
            ledger.close()
        if training and any(workspace.jobs.glob("*/progress.json")):
            controller = workspace.process("controller")
            assert controller is not None
            os.kill(controller.pid, signal.SIGKILL)
            return training[0].update_id
    raise AssertionError("no training was seen")
