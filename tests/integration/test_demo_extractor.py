"""The demo's extractor, trained for real: does it see digits it never saw?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intonaco.codec import encode
from intonaco.demo import extractor
from intonaco.demo.data import NAMES, PARTS, split, write_demo_data
from intonaco.demo.judge import Judge
from intonaco.errors import ConfigError
from intonaco.evaluation.features import ClipExtractor, ClipScorer
from intonaco.jobs import JobFolder
from intonaco.types import JobSpec

SEED = 5


def job_folder(root: Path, payload: Mapping[str, Any]) -> JobFolder:
    root.mkdir(parents=True, exist_ok=True)
    spec = JobSpec(key="k", entrypoint="intonaco.demo.extractor", payload=payload)
    (root / "spec.json").write_text(encode(spec))
    return JobFolder(root)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_demo_data(root, SEED)
    return root


@pytest.fixture(scope="module")
def trained(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobFolder, Mapping[str, Any]]:
    payload = {"data": str(data / "extractor.npz"), "heldout": str(data / "judge.npz"), "seed": 0}
    job = job_folder(tmp_path_factory.mktemp("job"), payload)
    return job, extractor.run(job)


def test_it_reads_digits_that_it_never_saw(
    trained: tuple[JobFolder, Mapping[str, Any]],
) -> None:
    result = trained[1]
    assert result["heldout_images"] > 290
    assert result["accuracy_heldout"] >= 0.95
    assert result["cosine_matched"] > 0.75
    assert abs(result["cosine_mismatched"]) < 0.05


def test_what_it_saved_is_what_it_measured(
    trained: tuple[JobFolder, Mapping[str, Any]],
) -> None:
    job, result = trained
    loaded = ClipExtractor(job.root / result["path"], result["digest"])
    assert loaded.name == "digits-clip32"
    part = split(SEED, PARTS)["reference"]
    right = [f"show me the number {NAMES[k]}" for k in part.labels]
    wrong = [f"show me the number {NAMES[(k + 3) % 10]}" for k in part.labels]
    scorer = ClipScorer(loaded)
    images = list(part.images)
    assert scorer.score(images, right).mean() > 0.75
    assert abs(scorer.score(images, wrong).mean()) < 0.1
    assert (scorer.score(images, right) > scorer.score(images, wrong)).mean() > 0.95


def test_what_is_no_digit_scores_low(trained: tuple[JobFolder, Mapping[str, Any]]) -> None:
    job, result = trained
    scorer = ClipScorer(ClipExtractor(job.root / result["path"]))
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    prompts = [f"a handwritten {NAMES[i % 10]}" for i in range(64)]
    assert scorer.score(list(noise), prompts).mean() < 0.5


def test_it_says_how_far_it_is(trained: tuple[JobFolder, Mapping[str, Any]]) -> None:
    progress = trained[0].read("progress")
    assert (progress["phase"], progress["step"]) == ("train", progress["total"])


def test_the_judge_agrees_without_having_seen_them(data: Path) -> None:
    judge = Judge.fit(data / "judge.npz")
    part = split(SEED, PARTS)["reference"]
    accuracy = judge.accuracy(part.images, part.labels)
    assert set(accuracy) == set(range(10))
    assert np.mean(list(accuracy.values())) > 0.93
    shuffled = np.random.default_rng(0).permutation(part.labels)
    assert np.mean(list(judge.accuracy(part.images, shuffled).values())) < 0.25


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("no archive")
    job = job_folder(tmp_path / "job", {"data": str(tmp_path / "x.npz"), "seed": 0})
    with pytest.raises(ConfigError, match=r"x\.npz"):
        extractor.run(job)
    np.savez(tmp_path / "y.npz", images=np.zeros((4, 8, 8)), labels=np.zeros(4))
    job = job_folder(tmp_path / "job2", {"data": str(tmp_path / "y.npz"), "seed": 0})
    with pytest.raises(ConfigError, match="uint8"):
        extractor.run(job)
