"""The evaluation job from its payload to the gate, with real pipelines (untrained) and a real CLIP
(hardly trained)."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fixtures_environments import PEFT, lock_with, offline, write_wheel

from intonaco.codec import encode
from intonaco.config import Evaluation, Margins
from intonaco.demo.data import PHRASINGS, WORDS, write_demo_data
from intonaco.demo.extractor import build, save
from intonaco.demo.model import build_pipeline, build_tokenizer
from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation import job as evaluation
from intonaco.evaluation.gate import decide
from intonaco.evaluation.keeping import save_images
from intonaco.evaluation.prompts import read_prompts, shots
from intonaco.evaluation.sampling import generate
from intonaco.jobs import JobFolder
from intonaco.types import JobSpec, Verdict
from intonaco.workspace import Workspace

# of diffusers' schedulers with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
__all__ = ["offline"]  # a fixture
SLICES = ("one", "two", "three")
PER_SLICE, SEEDS = 4, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluation")
    sizes = {"generator": 20, "extractor": 20, "judge": 20, "reference": 150}
    write_demo_data(root / "data", 0, sizes)
    lines = [
        {"prompt_id": f"{s}-{i}", "prompt": PHRASINGS[i].format(s), "slice": s}
        for s in SLICES
        for i in range(PER_SLICE)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    words = build_tokenizer(WORDS, 12)
    save(build(words).eval(), words, root / "extractor")
    for name, seed in (("champion", 0), ("other", 1)):
        build_pipeline(seed).save_pretrained(root / name, safe_serialization=True)
    broken = build_pipeline(2)
    with torch.no_grad():
        broken.unet.conv_out.weight.fill_(float("nan"))
    broken.save_pretrained(root / "broken", safe_serialization=True)
    return root


def payload(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "champion": {"release_id": "r-champion", "path": str(root / "champion")},
        "candidates": [
            {"name": "same", "release_id": "r-same", "path": str(root / "champion")},
            {"name": "other", "release_id": "r-other", "path": str(root / "other")},
            {"name": "broken", "release_id": "r-broken", "path": str(root / "broken")},
            {
                "name": "fewer-steps",
                "release_id": "r-fewer",
                "path": str(root / "champion"),
                "generation": {"steps": 2},
            },
        ],
        "prompts": str(root / "prompts.jsonl"),
        "reference": str(root / "data" / "reference"),
        "extractor": {"type": "clip", "path": str(root / "extractor"), "digest": None},
        "seeds_per_prompt": SEEDS,
        "batch_size": 8,
        "latency_rounds": 5,
        "threads": 1,
        "generation": {"steps": 5, "guidance_scale": 1.5, "width": 32, "height": 32},
        "keep": ["one", "two"],
        "improve": ["three"],
        **changes,
    }


def run(folder: Path, given: Mapping[str, Any]) -> tuple[JobFolder, dict[str, Any]]:
    folder.mkdir(parents=True)
    spec = JobSpec(key="k", entrypoint="intonaco.evaluation.job", payload=given)
    (folder / "spec.json").write_text(encode(spec))
    job = JobFolder(folder)
    result = evaluation.run(job)
    report: dict[str, Any] = json.loads((folder / result["report"]).read_text())
    return job, report


@pytest.fixture(scope="module")
def done(root: Path) -> tuple[JobFolder, dict[str, Any]]:
    return run(root / "job", payload(root, cache=str(root / "cache")))


def metric(report: Mapping[str, Any], name: str, of: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        m for m in report["comparisons"][name] if m["metric"] == of and m["slice"] is None
    )
    return found


def test_every_arm_generates_the_same_shots(done: tuple[JobFolder, dict[str, Any]]) -> None:
    job, report = done
    assert set(report["arms"]) == {"champion", "same", "other", "fewer-steps"}
    files = {n: np.load(job.out / "images" / f"{n}.npz") for n in report["arms"]}
    for file in files.values():
        assert file["images"].shape == (len(SLICES) * PER_SLICE * SEEDS, 32, 32, 3)
        assert file["images"].dtype == np.uint8
        for column in ("prompt_ids", "slices", "seeds"):
            np.testing.assert_array_equal(file[column], files["champion"][column])
        assert len(set(file["seeds"].tolist())) == len(file["seeds"])
    np.testing.assert_array_equal(files["champion"]["images"], files["same"]["images"])
    assert (files["champion"]["images"] != files["other"]["images"]).any()
    assert (files["champion"]["images"] != files["fewer-steps"]["images"]).any()


def test_the_champion_again_differs_by_nothing(done: tuple[JobFolder, dict[str, Any]]) -> None:
    report = done[1]
    for name in ("adherence", "adherence_improve", "distance", "recall"):
        assert metric(report, "same", name)["difference"] == 0.0
    assert metric(report, "same", "memory")["difference"] == 1.0
    assert metric(report, "other", "adherence")["difference"] != 0.0


def test_fewer_steps_take_less_time(done: tuple[JobFolder, dict[str, Any]]) -> None:
    # 2 steps against 5 on one core, in CPU time: far outside any noise
    assert metric(done[1], "fewer-steps", "latency")["difference"] < 0
    assert done[1]["latency_kind"] == "CPU seconds of the process"


def test_a_broken_candidate_is_an_error_of_its_own(
    done: tuple[JobFolder, dict[str, Any]],
) -> None:
    report = done[1]
    assert "not finite" in report["errors"]["broken"]
    wide = Margins(adherence=2, slice_adherence=2, distance=2, recall=2, latency=9, memory=9)
    verdicts = {n: d.verdict for n, d in decide(report, Evaluation(margins=wide)).items()}
    assert verdicts["broken"] is Verdict.ERROR
    # the same images cannot be an improvement, however wide the margins
    assert verdicts["same"] in (Verdict.INCONCLUSIVE, Verdict.FAIL)
    kept = {**report, "improve": []}
    assert decide(kept, Evaluation(margins=wide))["same"].verdict is Verdict.PASS


def test_figures_of_each_arm(done: tuple[JobFolder, dict[str, Any]]) -> None:
    job, report = done
    for arm in report["arms"].values():
        assert set(arm["adherence"]["by_slice"]) == set(SLICES)
        assert all(0 <= v <= 1 for v in arm["hit_rate"]["by_slice"].values())
        assert {"fd@digits-clip32", "precision", "recall", "seconds_per_image"} <= set(arm)
        with Image.open(job.root / arm["grid"]) as grid:
            assert grid.size == (8 * 32, len(SLICES) * 32)


def test_the_cache_is_used_and_right(
    root: Path, done: tuple[JobFolder, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"candidates": payload(root)["candidates"][1:2]}
    fresh = run(root / "fresh", payload(root, **only))[0]
    monkeypatch.setattr(evaluation, "generate", None)  # called, it would fail
    kept = run(root / "kept", payload(root, **only, cache=str(root / "cache")))[0]
    for name in ("champion", "other"):
        images = [np.load(j.out / "images" / f"{name}.npz")["images"] for j in (fresh, kept)]
        np.testing.assert_array_equal(images[0], images[1])


def test_a_first_release_is_held_to_a_floor(root: Path) -> None:
    given = payload(root, champion=None, improve=[], keep=[])
    given["candidates"] = given["candidates"][1:2]
    report = run(root / "first", given)[1]
    assert report["champion"] is None
    assert report["keep"] == list(SLICES)
    for floor, verdict in ((None, Verdict.ERROR), (-1.0, Verdict.PASS), (1.0, Verdict.FAIL)):
        assert decide(report, Evaluation(floor_adherence=floor))["other"].verdict is verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": ["seven"]}, "keep names seven"),
        ({"prompts": "/nowhere/prompts.jsonl"}, "evaluation.prompts"),
        ({"reference": "/nowhere/reference"}, "data.reference"),
        ({"champion": {"release_id": "r", "path": "/nowhere"}}, "/nowhere"),
    ],
)
def test_a_wrong_payload_is_told(
    root: Path, tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "job", payload(root, **changes))


ONE = ("same",)


def of_candidates(root: Path, *names: str, **changes: Any) -> dict[str, Any]:
    made = payload(root, **changes)
    return {**made, "candidates": [c for c in made["candidates"] if c["name"] in names]}


def test_pictures_of_another_size_than_asked_for_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = iter(("champion", "same"))

    def larger(*arguments: Any) -> Any:
        images = generate(*arguments)
        return images if next(arms) == "champion" else images.repeat(2, axis=1)

    monkeypatch.setattr("intonaco.evaluation.job.generate", larger)
    _, report = run(tmp_path / "job", of_candidates(root, *ONE))
    assert report["errors"] == {"same": "BackendError: same draws 32x64 where 32x32 is asked for"}
    assert decide(report, Evaluation())["same"].verdict is Verdict.ERROR


def test_detail_is_not_compared_between_sizes(root: Path, tmp_path: Path) -> None:
    given = of_candidates(root, *ONE)
    given["candidates"][0]["generation"] = {"width": 16, "height": 16}
    _, report = run(tmp_path / "job", given)
    assert report["errors"] == {}
    assert "detail" not in {m["metric"] for m in report["comparisons"]["same"]}
    assert report["skipped"]["detail"] == "same draws pictures of another size than the champion"


def test_a_full_disk_is_no_candidates_fault(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(out: Path, name: str, *arguments: Any, **more: Any) -> None:
        if name == "same":
            raise OSError(errno.ENOSPC, "No space left on device")
        save_images(out, name, *arguments, **more)

    monkeypatch.setattr("intonaco.evaluation.job.save_images", full)
    with pytest.raises(StorageError, match=r"the disk is full: .*job"):
        run(tmp_path / "job", of_candidates(root, *ONE))
    assert not (tmp_path / "job" / "out" / "report.json").exists()


def test_prompts_that_changed_since_it_was_asked_for_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="changed after this evaluation was asked for"):
        run(tmp_path / "job", payload(root, shots="0" * 64))


class TestPrompts:
    def test_a_seed_depends_on_its_prompt_alone(self, root: Path) -> None:
        prompts = read_prompts(root / "prompts.jsonl")
        whole = {(s.prompt.prompt_id, s.seed) for s in shots(prompts, 2)}
        assert {(s.prompt.prompt_id, s.seed) for s in shots(prompts[3:5], 2)} <= whole
        assert len(whole) == 2 * len(prompts)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds no prompts"),
            ('{"prompt_id": "a", "prompt": "x"}', "line 1"),
            ('{"prompt_id": "a", "prompt": "x", "slice": "s"}\nnonsense', "line 2"),
            ('{"prompt_id": "a", "prompt": "x", "slice": "s"}\n' * 2, "'a' again"),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "p.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_prompts(tmp_path / "p.jsonl")


@pytest.mark.slow
def test_an_arm_of_another_environment_is_drawn_there(
    root: Path, tmp_path: Path, offline: Path, done: tuple[JobFolder, dict[str, Any]]
) -> None:
    write_wheel(offline, "peft", PEFT)
    workspace = Workspace(tmp_path / "w")
    store = EnvironmentStore(workspace)
    away = store.keep(lock_with(peft=PEFT))
    champion = {"release_id": "r-champion", "path": str(root / "champion")}
    given = payload(
        root,
        champion={**champion, "environment": environment_lock()},
        candidates=[
            {"name": "away", **champion, "release_id": "r-away", "environment": away},
            {
                "name": "broken",
                "release_id": "r-broken",
                "path": str(root / "broken"),
                "environment": away,
            },
            {"name": "lost", **champion, "release_id": "r-lost", "environment": "f" * 64},
        ],
        environments={"workspace": str(workspace.root), "base": "auto", "timeout_s": 120.0},
        cache=str(tmp_path / "cache"),
        latency_rounds=3,
    )
    job, report = run(tmp_path / "job", given)
    assert "not finite" in report["errors"]["broken"]
    assert "nobody has given the lock of environment ffffffffff" in report["errors"]["lost"]
    # The wheel holds no code, so both environments draw the same, and as one process did before.
    here, there = (np.load(job.out / "images" / f"{n}.npz") for n in ("champion", "away"))
    np.testing.assert_array_equal(here["images"], there["images"])
    np.testing.assert_array_equal(
        here["images"], np.load(done[0].out / "images" / "champion.npz")["images"]
    )
    assert metric(report, "away", "memory")["difference"] == 1.0
    assert report["arms"]["champion"]["memory_bytes"] == done[1]["arms"]["champion"]["memory_bytes"]
    assert report["arms"]["away"]["seconds_per_image"] > 0
    # What an arm drew is kept under the environment that drew it; features under the images alone,
    # which are the same, and of the reference.
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2
