"""The evaluation job with arms that other people's servers draw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fixtures_upstreams import GENERATION, WEBUI, WebUI, add_release, in_threads

from intonaco.codec import encode
from intonaco.config import Evaluation
from intonaco.demo.data import WORDS, write_demo_data
from intonaco.demo.extractor import build, save
from intonaco.demo.model import build_tokenizer
from intonaco.errors import BackendError
from intonaco.evaluation import job as evaluation
from intonaco.evaluation.elsewhere import ServerSampler
from intonaco.evaluation.gate import decide
from intonaco.evaluation.prompts import Prompt, Shot
from intonaco.jobs import JobFolder
from intonaco.types import JobSpec, Verdict
from intonaco.workspace import Workspace

SHOT = Shot(prompt=Prompt(prompt_id="1", prompt="one", slice="one"), seed=5)


def test_both_arms_are_drawn_over_their_api(tmp_path: Path) -> None:
    sizes = {"generator": 20, "extractor": 20, "judge": 20, "reference": 150}
    write_demo_data(tmp_path / "data", 0, sizes)
    prompts = [
        {"prompt_id": f"{s}-{i}", "prompt": s, "slice": s}
        for s in ("one", "two")
        for i in (1, 2, 3, 4)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    torch.manual_seed(0)
    words = build_tokenizer(WORDS, 12)
    save(build(words).eval(), words, tmp_path / "extractor")
    workspace = Workspace(tmp_path / "w")
    servers = (WebUI(noise=True), WebUI(noise=True))
    with in_threads(*(s.app() for s in servers)) as urls:
        arms = []
        for name, url in zip(("champion", "other"), urls, strict=True):
            release = add_release(workspace, name, {"url": url, **WEBUI})
            arms.append(
                {
                    "name": name,
                    "release_id": release.release_id,
                    "path": str(workspace.resolve(release.path)),
                    "generation": GENERATION,
                    "upstream": {"timeout_s": 30, "health": None, "fetch_own_urls": False},
                }
            )
        folder = tmp_path / "job"
        folder.mkdir()
        payload = {
            "champion": arms[0],
            "candidates": arms[1:],
            "prompts": str(tmp_path / "prompts.jsonl"),
            "reference": str(tmp_path / "data" / "reference"),
            "extractor": {"type": "clip", "path": str(tmp_path / "extractor"), "digest": None},
            "seeds_per_prompt": 3,
            "batch_size": 8,
            "latency_rounds": 5,
            "keep": ["one", "two"],
            "improve": [],
            "cache": str(tmp_path / "cache"),
        }
        spec = JobSpec(key="k", entrypoint="intonaco.evaluation.job", payload=payload)
        (folder / "spec.json").write_text(encode(spec))
        job = JobFolder(folder)
        result = evaluation.run(job)
    report = json.loads((folder / str(result["report"])).read_text())
    assert report["errors"] == {}
    assert report["not_ours"] is True
    assert report["latency_kind"] == "wall seconds of a server's answer"
    first, second = (
        np.load(job.out / "images" / f"{n}.npz")["images"] for n in ("champion", "other")
    )
    assert first.shape == (24, 64, 64, 3)
    np.testing.assert_array_equal(first, second)  # the same seeds, honoured by both
    assert len({image.tobytes() for image in first}) == 24
    assert not (tmp_path / "cache" / "images").exists()  # tomorrow they may draw otherwise
    metrics = {m["metric"]: m for m in report["comparisons"]["other"] if m["slice"] is None}
    assert metrics["adherence"]["difference"] == 0.0
    assert metrics["latency"]["difference"] is not None
    assert metrics["memory"]["difference"] is None
    decision = decide(report, Evaluation())["other"]
    assert decision.verdict is not Verdict.ERROR
    assert "memory is not judged: both arms are other people's servers" in decision.reasons
    # Without that statement missing figures are an error, as ever.
    assert decide(report | {"not_ours": False}, Evaluation())["other"].verdict is Verdict.ERROR


def test_a_server_that_is_full_is_asked_again_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = WebUI(failing=429)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        server.failing = None if len(waits) == 2 else server.failing

    monkeypatch.setattr("intonaco.evaluation.elsewhere.time.sleep", wait)
    workspace = Workspace(tmp_path)
    with in_threads(server.app()) as urls:
        release = add_release(workspace, "webui", {"url": urls[0], **WEBUI})
        folder = workspace.resolve(release.path)
        sampler = ServerSampler.start(folder, GENERATION, {"timeout_s": 5.0})
        assert sampler([SHOT]).shape == (1, 64, 64, 3)
        assert waits == [2.0, 4.0]
        assert sampler.seconds([SHOT]) > 0
        server.failing = 500
        asked = len(server.asked)
        with pytest.raises(BackendError, match="drew no picture: 500"):
            sampler([SHOT])
        assert len(server.asked) == asked + 1
        sampler.close()
