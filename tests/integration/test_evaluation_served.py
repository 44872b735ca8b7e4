"""An evaluation that times its arms in serving workers, and the report that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from intonaco.codec import encode
from intonaco.config import Evaluation, Extractor
from intonaco.demo.data import PHRASINGS, WORDS, write_demo_data
from intonaco.demo.extractor import build, save
from intonaco.demo.model import build_pipeline, build_tokenizer
from intonaco.errors import BackendError, ConfigError
from intonaco.evaluation import job as evaluation
from intonaco.evaluation.features import ClipExtractor
from intonaco.evaluation.folders import compare_folders
from intonaco.evaluation.prompts import Prompt, hidden, read_prompts
from intonaco.evaluation.served import ServedArm
from intonaco.jobs import JobFolder
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.types import JobSpec, Provenance, Release, Verdict
from intonaco.workspace import Workspace

# of diffusers' schedulers with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SLICES = ("one", "two")
PER_SLICE = 6
WORKER = {"device": "cpu", "threads": 1, "batch_sizes": [1, 2], "ready_timeout_s": 240.0}
GENERATION = {"steps": 6, "guidance_scale": 1.5, "width": 32, "height": 32}


def add(workspace: Workspace, pipeline: Any, generation: Mapping[str, Any], tmp: Path) -> Release:
    pipeline.save_pretrained(tmp, safe_serialization=True)
    store = ReleaseStore(workspace, "digits")
    return store.add(tmp, read_serving_spec(tmp, generation=generation), Provenance(created_at=0.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    sizes = {"generator": 40, "extractor": 20, "judge": 20, "reference": 120}
    write_demo_data(root / "data", 0, sizes)
    lines = [
        {
            "prompt_id": f"{s}-{i}",
            "prompt": f"{PHRASINGS[i].format(s)} number{s}{i}",
            "slice": s,
            "kind": "edge" if i == 5 else "representative",
        }
        for s in SLICES
        for i in range(PER_SLICE)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    words = build_tokenizer(WORDS, 12)
    save(build(words).eval(), words, root / "extractor")
    return root


@pytest.fixture(scope="module")
def releases(root: Path) -> dict[str, Release]:
    workspace = Workspace(root / "w")
    slow = build_pipeline(0)
    return {
        "champion": add(workspace, slow, GENERATION, root / "a"),
        "fewer": add(workspace, slow, GENERATION | {"steps": 2}, root / "b"),
    }


@pytest.fixture(scope="module")
def done(root: Path, releases: dict[str, Release]) -> tuple[JobFolder, dict[str, Any]]:
    workspace = Workspace(root / "w")
    store = ReleaseStore(workspace, "digits")
    prompts = read_prompts(root / "prompts.jsonl")

    def arm(name: str) -> dict[str, Any]:
        release = releases[name]
        return {
            "name": name,
            "release_id": release.release_id,
            "path": str(store.folder(release)),
            "generation": dict(release.serving.generation),
            "training": ["v1"],
        }

    payload = {
        "champion": arm("champion"),
        "candidates": [arm("fewer")],
        "prompts": str(root / "prompts.jsonl"),
        "reference": str(root / "data" / "reference"),
        "extractor": {"type": "clip", "path": str(root / "extractor"), "digest": None},
        "seeds_per_prompt": 2,
        "batch_size": 8,
        "latency_rounds": 5,
        "keep": list(SLICES),
        "hidden": sorted(hidden(prompts, share=0.2, period="p", key=b"k")),
        "hidden_period": "p",
        # the reference stands for a training set that holds all of it
        "training": {"v1": str(root / "data" / "reference")},
        "heads": {"sharp": {"type": "sharpness"}},
        "unsafe": {"score": "sharp", "above": 1e9},
        "benchmark": {
            "workspace": str(workspace.root),
            "worker": WORKER,
            "concurrency": 2,
            "waves": 5,
            "hourly_price": 3.6,
            "currency": "EUR",
        },
        "cache": str(root / "cache"),
        "context": {"service": "digits"},
    }
    folder = root / "job"
    folder.mkdir()
    spec = JobSpec(key="k", entrypoint="intonaco.evaluation.job", payload=payload)
    (folder / "spec.json").write_text(encode(spec))
    job = JobFolder(folder)
    result = evaluation.run(job)
    return job, json.loads((folder / str(result["report"])).read_text())


def test_arms_are_timed_in_workers_of_their_own(done: tuple[JobFolder, dict[str, Any]]) -> None:
    report = done[1]
    assert report["errors"] == {}
    assert report["latency_kind"] == "CPU seconds of the worker"
    figures = report["benchmark"]["fewer"]
    assert figures["device"].startswith("cpu")
    # 2 steps against 6, in CPU time: far outside any noise
    assert figures["log_ratio"]["value"] < 0
    arms = figures["arms"]
    for arm in arms.values():
        memory = arm["memory"]
        assert memory["peak"] > memory["idle"] > 0
        assert memory["own"] >= memory["weights"] > 0
        assert arm["p50"]["value"] > 0
        assert arm["p95"]["high"] is None  # 10 images bound no 95th percentile
        # 3.6 an hour is a thousandth a second
        assert arm["cost_per_image"] == pytest.approx(0.001 / arm["images_per_second"])
    assert arms["champion"]["memory"]["weights"] == arms["candidate"]["memory"]["weights"]
    assert "59 are needed" in figures["p95_text"]
    found = {m["metric"]: m for m in report["comparisons"]["fewer"] if m["slice"] is None}
    assert found["latency"]["difference"] < 0
    assert found["memory"]["difference"] == 1.0
    assert found["peak_memory"]["difference"] == pytest.approx(1.0, abs=0.5)
    assert found["throughput"]["difference"] > 0


def test_no_worker_is_left(root: Path, done: tuple[JobFolder, dict[str, Any]]) -> None:
    assert list((root / "w" / "run").glob("benchmark-*")) == []
    mine = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert not [line for line in mine if str(root / "w") in line and "worker.main" in line]


def test_all_that_a_comparison_can_take_was_measured(
    done: tuple[JobFolder, dict[str, Any]],
) -> None:
    report = done[1]
    names = {m["metric"] for m in report["comparisons"]["fewer"]}
    assert {"hits", "detail", "copies", "unsafe", "score:sharp", "coverage"} <= names
    assert report["skipped"] == {}
    assert any("reference images are in a training set" in note for note in report["notes"])


def test_hidden_prompts_are_judged_and_shown_nowhere(
    root: Path, done: tuple[JobFolder, dict[str, Any]]
) -> None:
    job, report = done
    secret = set(job.payload["hidden"])
    assert len(secret) == len(SLICES)
    split = report["splits"]["fewer"]["hidden"]
    assert split["hidden"]["prompts"] == len(secret)
    assert split["shown"]["prompts"] == len(SLICES) * PER_SLICE - len(secret)
    assert set(report["splits"]["fewer"]["kinds"]) == {"representative", "edge"}
    words = {p.prompt_id: p.prompt.split()[-1] for p in read_prompts(root / "prompts.jsonl")}
    page, rows = (job.out / "report.html").read_text(), (job.out / "prompts.jsonl").read_text()
    for prompt_id, word in words.items():
        assert (word in rows) is (prompt_id not in secret)
        assert prompt_id not in secret or word not in page
    assert any(word in page for word in words.values())
    assert not any(word in (job.out / "report.json").read_text() for word in words.values())


def test_the_page_needs_nothing_else(done: tuple[JobFolder, dict[str, Any]]) -> None:
    page = (done[0].out / "report.html").read_text()
    for outside in ("<script", "http://", "https://", "<link", "@import", "url("):
        assert outside not in page
    assert page.count("data:image/webp;base64,") >= 2 * len(SLICES)
    assert "prefers-color-scheme: dark" in page
    made = done[1]["reproduce"]
    assert {"packages", "hardware", "releases", "settings", "extractor", "environment"} <= set(made)
    assert str(done[0].root) not in page  # a report may be passed on: no paths of this machine


def test_features_of_one_set_of_images_are_kept_once(root: Path) -> None:
    # two arms, and the reference, which is the training set too
    assert len(list((root / "cache" / "features").iterdir())) == 3
    assert len(list((root / "cache" / "images").iterdir())) == 2


def test_a_worker_that_cannot_load_says_why(
    root: Path, releases: dict[str, Release], tmp_path: Path
) -> None:
    workspace = Workspace(root / "w")
    with pytest.raises(BackendError, match=r"(?s)ended: .*device: 'abacus' is unknown"):
        ServedArm.start(
            workspace,
            releases["fewer"].release_id,
            name="benchmark-broken",
            generation=GENERATION,
            worker=WORKER | {"device": "abacus"},
            log_file=tmp_path / "log",
        )
    assert not list(workspace.run.glob("benchmark-broken*"))


def test_a_benchmarks_worker_ends_with_who_started_it(
    root: Path, releases: dict[str, Release]
) -> None:
    release = releases["fewer"].release_id
    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [
        *(sys.executable, "-m", "intonaco.serving.worker.main", "--release", release),
        *("--workspace", str(root / "w"), "--name", "benchmark-orphan", "--device", "cpu"),
        *("--while-pid", str(starter.pid), "--no-warm-up"),
    ]
    worker = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    try:
        starter.kill()
        starter.wait(30)
        assert worker.wait(120) == 0
    finally:
        worker.kill()
        worker.wait()
        if starter.stdin is not None:
            starter.stdin.close()


def test_pictures_are_those_of_the_shots(done: tuple[JobFolder, dict[str, Any]]) -> None:
    job = done[0]
    rows = [json.loads(line) for line in (job.out / "prompts.jsonl").read_text().splitlines()]
    kept = np.load(job.out / "images" / "champion.npz")
    for row in rows:
        for index, seed in zip(row["rows"], row["seeds"], strict=True):
            assert kept["prompt_ids"][index] == row["prompt_id"]
            assert kept["seeds"][index] == seed


def write_drawn(job: JobFolder, arm: str, target: Path, prompts: Mapping[str, Prompt]) -> Path:
    kept = np.load(job.out / "images" / f"{arm}.npz")
    target.mkdir()
    lines = []
    for i, prompt_id in enumerate(kept["prompt_ids"]):
        Image.fromarray(kept["images"][i]).save(target / f"{i}.png")
        lines.append(
            {
                "file_name": f"{i}.png",
                "prompt": prompts[str(prompt_id)].prompt,
                "slice": prompts[str(prompt_id)].slice,
                "seed": int(kept["seeds"][i]),
            }
        )
    (target / "metadata.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    return target


def test_folders_of_the_same_pictures_say_the_same(
    root: Path, done: tuple[JobFolder, dict[str, Any]], tmp_path: Path
) -> None:
    job, report = done
    prompts = {p.prompt_id: p for p in read_prompts(root / "prompts.jsonl")}
    before = write_drawn(job, "champion", tmp_path / "before", prompts)
    after = write_drawn(job, "fewer", tmp_path / "after", prompts)
    settings: dict[str, Any] = {
        "reference": root / "data" / "reference",
        "extractor": Extractor(path="extractor"),
        "root": root,
        "settings": Evaluation(),
        "improve": (),
        "cache": root / "cache",
        "target": tmp_path / "out",
    }
    features = set((root / "cache" / "features").iterdir())
    facts, decision = compare_folders(before, after, **settings)
    # the same pictures: nothing has to be looked at again
    assert set((root / "cache" / "features").iterdir()) == features
    whole = {(m["metric"], m["slice"]): m for m in report["comparisons"]["fewer"]}
    parts = {(m["metric"], m["slice"]): m for m in facts["comparisons"]["after"]}
    for key in (("adherence", None), ("adherence", "one"), ("recall", None), ("distance", None)):
        assert parts[key]["difference"] == pytest.approx(whole[key]["difference"], abs=1e-12)
    assert ("latency", None) not in parts
    assert decision.verdict is not Verdict.ERROR
    assert "data:image/webp" in (tmp_path / "out" / "report.html").read_text()

    lines = (after / "metadata.jsonl").read_text().splitlines()
    (after / "metadata.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match=r"after lacks prompt .* with seed"):
        compare_folders(before, after, **settings)
    (after / "metadata.jsonl").write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        compare_folders(before, after, **settings)


@pytest.mark.slow
def test_a_run_from_the_command_line(root: Path, releases: dict[str, Release]) -> None:
    """A release against itself: neither better nor worse, and no worker or job is left."""
    from typer.testing import CliRunner

    from intonaco.cli.main import app

    workspace = Workspace(root / "w")
    extractor = ClipExtractor(root / "extractor")
    workspace.config_file.write_text(
        "service: digits\n"
        "serving: {worker: {device: cpu}}\n"
        "tracker: {type: none}\n"
        "registry: {type: none}\n"
        f"data: {{reference: {root / 'data' / 'reference'}}}\n"
        f"extractor: {{path: {root / 'extractor'}, digest: {extractor.digest}}}\n"
        f"evaluation: {{prompts: {root / 'prompts.jsonl'}, seeds_per_prompt: 2, latency_rounds: 5,"
        " benchmark: {waves: 0},"
        " margins: {adherence: 2, slice_adherence: 2, distance: 2, recall: 2, latency: 9}}\n"
    )
    release = releases["champion"].release_id
    done = CliRunner().invoke(
        app,
        [
            *("eval", "run", "--release", release[:8], "--against", release[:8]),
            *("--kind", "assemble", "--json", "-w", str(workspace.root)),
        ],
    )
    assert done.exit_code == 0, done.stdout + str(done.exception)
    facts = json.loads(done.stdout)
    (name,) = facts["candidates"]
    found = {m["metric"]: m for m in facts["comparisons"][name] if m["slice"] is None}
    for metric in ("adherence", "distance", "recall"):
        assert found[metric]["difference"] == 0.0
    assert facts["verdicts"][name]["verdict"] == "pass"
    assert Path(facts["page"]).is_file()
    assert facts["hidden"]["period"].startswith("digits:eval:")
