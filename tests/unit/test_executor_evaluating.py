"""What an evaluation is asked to do: the payload of its job."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from intonaco import config
from intonaco.errors import ConfigError
from intonaco.evaluation.order import Order
from intonaco.executor import Parts
from intonaco.executor.evaluating import check_configured, hidden_period, payload
from intonaco.types import Provenance, Release, ServingSpec
from intonaco.workspace import Workspace

RELEASE = Release(
    release_id="a" * 64,
    service_id="shop",
    serving=ServingSpec(
        pipeline_class="P", weights={}, scheduler="none", generation={"steps": 3}, environment="e"
    ),
    provenance=Provenance(created_at=0.0),
    path="releases/a/pipeline",
)
TEXT = """
service: shop
extractor: {path: clip}
data: {reference: real}
evaluation: {prompts: golden.jsonl, %s}
serving: {environments: ignore, hourly_price: 2.0}
monitoring: {%s}
"""


def parts(root: Path, evaluation: str = "", monitoring: str = "") -> Parts:
    lines = [{"prompt_id": f"p{i}", "prompt": f"words {i}", "slice": "s"} for i in range(10)]
    (root / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    releases = SimpleNamespace(get=lambda rid: RELEASE, folder=lambda release: root / release.path)
    found = SimpleNamespace(
        config=config.parse(TEXT % (evaluation, monitoring), source="test"),
        workspace=Workspace(root),
        releases=releases,
    )
    return cast(Parts, found)


def made(p: Parts, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "champion": RELEASE.release_id,
        "candidates": {"new": RELEASE.release_id},
        "keep": ["s"],
        "improve": [],
        "extractor": "d" * 64,
        "attempt": "u1",
        "at": 1_700_000_000.0,
        "context": {"update": "u1"},
    }
    return payload(p, **{**given, **changes})


def test_the_job_reads_what_was_written(tmp_path: Path) -> None:
    p = parts(tmp_path, "hidden: {share: 0.3}, seeds_per_prompt: 2")
    asked = made(p, attempts={"new": 2}, alphas={"new": 0.025}, superiority=True)
    order = Order.of(json.loads(json.dumps(asked)))
    assert len(order.shots) == 20
    assert len(order.hidden) == 3
    assert order.hidden_period == "u1"
    assert order.settings == p.config.evaluation
    assert order.benchmark is not None
    assert order.benchmark.hourly_price == 2.0
    assert (asked["attempts"], asked["alphas"]) == ({"new": 2}, {"new": 0.025})
    assert asked["superiority"] is True
    assert p.workspace.instance_key().decode() not in json.dumps(asked)


def test_the_same_is_asked_however_often(tmp_path: Path) -> None:
    p = parts(tmp_path)
    assert made(p) == made(p)  # a job that is there is adopted only if it does the same
    hidden = {tuple(made(p, attempt=f"u{n}")["hidden"]) for n in range(20)}
    assert len(hidden) > 1  # two of so few prompts may well be drawn again


def test_others_are_hidden_each_month(tmp_path: Path) -> None:
    p = parts(tmp_path, "hidden: {rotate: month}")
    day = 86_400.0
    assert hidden_period(p, attempt="u1", at=1_700_000_000.0) == "2023-11"
    assert made(p)["hidden"] == made(p, attempt="u2", at=1_700_000_000.0 + 10 * day)["hidden"]
    assert made(p)["hidden_period"] != made(p, at=1_700_000_000.0 + 31 * day)["hidden_period"]


def test_timing_in_the_jobs_own_process_can_be_asked_for(tmp_path: Path) -> None:
    assert made(parts(tmp_path))["benchmark"] is not None
    assert made(parts(tmp_path, "benchmark: {in_worker: false}"))["benchmark"] is None


def test_a_safety_signal_says_what_is_unsafe(tmp_path: Path) -> None:
    assert made(parts(tmp_path))["unsafe"] is None
    signal = (
        "scoring: {heads: {nsfw: {type: sharpness}}}, "
        "signals: {safe: {of: safety, score: nsfw, unsafe_above: 0.9}}"
    )
    asked = made(parts(tmp_path, monitoring=signal))
    assert asked["unsafe"] == {"score": "nsfw", "above": 0.9}
    assert list(asked["heads"]) == ["nsfw"]


def test_an_extractor_of_elsewhere_keeps_its_address(tmp_path: Path) -> None:
    p = parts(tmp_path)
    assert made(p)["extractor"]["path"] == str(tmp_path / "clip")
    remote = p.config.model_copy(update={"extractor": config.Extractor(path="s3://models/clip")})
    p = cast(Parts, SimpleNamespace(**{**vars(p), "config": remote}))
    assert made(p)["extractor"]["path"] == "s3://models/clip"


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    p = parts(tmp_path)
    bare = config.parse("service: shop\n", source="test")
    p = cast(Parts, SimpleNamespace(**{**vars(p), "config": bare}))
    with pytest.raises(ConfigError, match=r"evaluation.prompts, data.reference, extractor: needed"):
        check_configured(p)
