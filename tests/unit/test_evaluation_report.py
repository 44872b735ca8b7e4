"""The report of an evaluation: what it shows, in which words, and what it never shows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intonaco.config import Evaluation
from intonaco.evaluation.arms import ArmImages
from intonaco.evaluation.charts import interval_plot
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.parts import by_kind, by_secrecy, prompt_rows
from intonaco.evaluation.prompts import Prompt, Shot
from intonaco.evaluation.report import data_uri, load, write_report
from intonaco.evaluation.verdicts import PICTURES, decided, of_pictures
from intonaco.evaluation.wording import amount, change, metric_name, size
from intonaco.types import Assessment, MetricResult, Verdict

HOSTILE = "<script>alert(1)</script>"
METRIC = MetricResult(
    metric="adherence",
    slice=None,
    champion=0.5,
    candidate=0.4,
    difference=-0.1,
    interval=(-0.15, -0.05),
    margin=0.02,
    assessment=Assessment.HARMFUL,
    guardrail=True,
    unit="cosine",
)


def shots_of(count: int) -> list[Shot]:
    return [
        Shot(
            prompt=Prompt(
                prompt_id=f"p{i}",
                prompt=f"{HOSTILE} number{i}.",
                slice="s",
                kind="edge" if i == 0 else "representative",
            ),
            seed=seed,
        )
        for i in range(count)
        for seed in (1, 2)
    ]


def arm(shots: list[Shot], values: Any) -> ArmImages:
    return ArmImages(
        prompt_ids=tuple(s.prompt.prompt_id for s in shots),
        slices=tuple(s.prompt.slice for s in shots),
        adherence=np.asarray(values, dtype=np.float64),
        features=np.zeros((len(shots), 2)),
    )


def report_of(**changes: Any) -> dict[str, Any]:
    return {
        "champion": {"release_id": "c" * 64},
        "candidates": ["new"],
        "keep": ["s"],
        "improve": [],
        "alpha": 0.05,
        "extractor": {"name": "e", "digest": "d" * 64},
        "shots": {"digest": "s" * 64, "images_per_arm": 8},
        "reference_images": 10,
        "arms": {"champion": {"release_id": "c" * 64}, "new": {"release_id": "n" * 64}},
        "notes": [],
        "skipped": {},
        "reproduce": {"packages": {"torch": "2"}, "hardware": {"device": "cpu"}},
        **changes,
    }


def page(tmp_path: Path, hidden: frozenset[str] = frozenset(), **changes: Any) -> str:
    shots = shots_of(4)
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 255, (len(shots), 8, 8, 3)).astype(np.uint8)
        for name in ("champion", "new")
    }
    scores = {name: arm(shots, rng.random(len(shots))) for name in images}
    decision = GateDecision(
        verdict=Verdict.FAIL, reasons=("adherence fell",), metrics=changes.pop("metrics", (METRIC,))
    )
    target = tmp_path / "report.html"
    write_report(
        report_of(**changes),
        {"new": decision},
        prompt_rows(scores, shots, hidden),
        images,
        target,
    )
    return target.read_text()


def test_verdict_and_reasons_stand_on_top(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert text.index('<div class="word">fail</div>') < text.index("Every metric")
    assert "<li>adherence fell</li>" in text
    for part in ("Every metric", "Samples", "Best and worst prompts", "To do it again"):
        assert part in text
    assert text.count("data:image/webp;base64,") == 2 * 4 + 2 * 4  # samples; two worst, two best


def test_prompts_are_only_words_and_hidden_ones_are_nowhere(tmp_path: Path) -> None:
    text = page(tmp_path, frozenset({"p2"}))
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "number1." in text
    assert "number2." not in text


def test_a_candidate_that_drew_nothing_is_told(tmp_path: Path) -> None:
    shots = shots_of(2)
    images = {"champion": np.zeros((4, 8, 8, 3), dtype=np.uint8)}
    decision = GateDecision(verdict=Verdict.ERROR, reasons=("could not be evaluated",), metrics=())
    arms = {"champion": {"release_id": "c" * 64}}
    rows = prompt_rows({"champion": arm(shots, np.ones(4))}, shots, ())
    write_report(report_of(arms=arms), {"new": decision}, rows, images, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "could not be evaluated" in text
    assert "Samples" not in text


def test_large_pictures_are_scaled_down_and_small_ones_kept_to_the_bit() -> None:
    import base64
    import io

    rng = np.random.default_rng(1)

    def read(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    small = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read(data_uri(small)).convert("RGB")), small)
    assert read(data_uri(np.zeros((512, 1024, 3), dtype=np.uint8))).size == (256, 128)


def dots(svg: str) -> tuple[float, float, float]:
    """(dot, zero, margin's edge) of a plot."""
    found = [
        re.search(pattern, svg)
        for pattern in (
            r'cx="([\d.]+)"',
            r'class="zero" x1="([\d.]+)"',
            r'class="edge" x1="([\d.]+)"',
        )
    ]
    return (
        float(found[0].group(1)) if found[0] else math.nan,
        float(found[1].group(1)) if found[1] else math.nan,
        float(found[2].group(1)) if found[2] else math.nan,
    )


@pytest.mark.parametrize(
    ("metric", "worse"), [("adherence", -1.0), ("latency", 1.0), ("distance", 1.0), ("fd@e", 1.0)]
)
def test_better_is_right_and_the_margin_stays_where_it_is(metric: str, worse: float) -> None:
    m = replace(METRIC, metric=metric, difference=0.03 * worse, interval=(-0.04, 0.04))
    dot, zero, edge = dots(interval_plot(m))
    assert dot < edge < zero  # beyond the margin of 0.02
    other = replace(m, difference=-0.03 * worse, margin=2.0)
    dot, same_zero, same_edge = dots(interval_plot(other))
    assert dot > zero
    assert (same_zero, same_edge) == (zero, edge)


def test_ratios_are_drawn_from_one_and_a_floor_from_itself() -> None:
    memory = replace(METRIC, metric="memory", difference=1.0, interval=None, margin=1.25)
    dot, zero, edge = dots(interval_plot(memory))
    assert dot == zero
    assert edge < zero
    floor = replace(
        METRIC, difference=None, champion=None, candidate=0.6, interval=(0.55, 0.65), margin=0.5
    )
    assert "floor" in interval_plot(floor)
    dot, zero, _ = dots(interval_plot(floor))
    assert dot > zero
    unsafe = replace(floor, metric="unsafe", candidate=0.0, interval=(0.0, 0.2), margin=0.05)
    assert "limit" in interval_plot(unsafe)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_drawn_as_such(value: float | None) -> None:
    assert "not measured" in interval_plot(replace(METRIC, difference=value, margin=None))


def test_words() -> None:
    assert amount(0.05, "latency", "+") == "+5.1 %"
    assert amount(-0.05, "recall") == "−5.0 points"
    assert amount(1.25, "memory") == "1.25 ×"
    assert amount(math.nan) == amount(None) == "–"
    recall = replace(METRIC, metric="recall")
    assert change(recall) == "−10.0 (−15.0 … −5.0) points"
    assert metric_name("adherence_improve") == "adherence to prompts where it is to improve"
    assert metric_name("score:sharp") == "score sharp"
    assert [size(v) for v in (None, 12, 2.5e6, 3e9)] == ["–", "12 B", "2.5 MB", "3.0 GB"]


def test_kinds_are_told_apart() -> None:
    shots = shots_of(6)
    champion, candidate = arm(shots, np.zeros(12)), arm(shots, [1.0, 1.0, *[0.5] * 10])
    found = by_kind(champion, candidate, shots, 0.05)
    assert found["edge"]["prompts"] == 1
    assert found["edge"]["interval"] is None
    assert found["representative"]["difference"] == 0.5
    assert (
        by_kind(champion, candidate, [replace(s, prompt=shots[-1].prompt) for s in shots], 0.05)
        == {}
    )


def test_who_learnt_the_shown_prompts_is_found_out_and_others_are_not() -> None:
    """One-sided intervals at 5 % that must not meet: of candidates with the same gain everywhere
    far fewer than 5 % are suspected."""
    shots = shots_of(60)
    secret = {f"p{i}" for i in range(0, 60, 5)}
    shown = np.array([s.prompt.prompt_id not in secret for s in shots])
    rng = np.random.default_rng(7)
    honest = caught = 0
    runs = 200
    for _ in range(runs):
        noise = rng.normal(0, 0.05, len(shots))
        zero = arm(shots, np.zeros(len(shots)))
        honest += by_secrecy(zero, arm(shots, 0.1 + noise), secret, 0.05)["apart"]
        caught += by_secrecy(zero, arm(shots, 0.1 * shown + noise), secret, 0.05)["apart"]
    assert honest / runs <= 0.05
    assert caught / runs >= 0.9
    assert by_secrecy(zero, zero, (), 0.05) == {}


@pytest.mark.parametrize(
    ("assessments", "verdict"),
    [
        ((Assessment.NON_INFERIOR, Assessment.SUPERIOR), Verdict.PASS),
        ((Assessment.NON_INFERIOR, Assessment.UNDECIDED), Verdict.INCONCLUSIVE),
        ((Assessment.UNDECIDED, Assessment.HARMFUL), Verdict.FAIL),
        ((Assessment.NO_DATA, Assessment.SUPERIOR), Verdict.INCONCLUSIVE),
        ((), Verdict.ERROR),
    ],
)
def test_pictures_alone_pass_only_if_every_guardrail_holds(
    assessments: tuple[Assessment, ...], verdict: Verdict
) -> None:
    results = [replace(METRIC, assessment=a) for a in assessments]
    information = replace(METRIC, assessment=Assessment.HARMFUL, guardrail=False)
    assert of_pictures([*results, information]).verdict is verdict


def test_a_report_of_pictures_is_no_business_of_the_gate() -> None:
    from intonaco.codec import as_json

    good = replace(METRIC, difference=0.1, interval=(0.05, 0.15))
    facts = {"candidates": ["b"], "alpha": 0.05, "comparisons": {"b": [as_json(good)]}}
    assert decided({**facts, "kind": PICTURES}, Evaluation())["b"].verdict is Verdict.PASS
    assert decided(facts, Evaluation())["b"].verdict is Verdict.ERROR


def test_pictures_that_were_to_improve_must_have() -> None:
    same = replace(METRIC, assessment=Assessment.NON_INFERIOR)

    def with_gain(low: float, high: float) -> Verdict:
        gain = replace(METRIC, metric="adherence_improve", interval=(low, high), guardrail=False)
        return of_pictures([same, gain], least=0.01).verdict

    assert with_gain(0.02, 0.04) is Verdict.PASS
    assert with_gain(0.0, 0.04) is Verdict.INCONCLUSIVE
    assert with_gain(-0.02, 0.005) is Verdict.FAIL
    assert of_pictures([same], least=0.01).verdict is Verdict.INCONCLUSIVE
    assert of_pictures([same]).verdict is Verdict.PASS


def test_pictures_are_judged_again_by_the_present_margins_at_the_same_alpha() -> None:
    from intonaco.codec import as_json

    lower = replace(METRIC, difference=-0.05, interval=(-0.06, -0.04))
    facts = {
        "kind": PICTURES,
        "candidates": ["b"],
        "alpha": 0.05,
        "comparisons": {"b": [as_json(lower)]},
    }
    wide = Evaluation.model_validate({"margins": {"adherence": 0.1}})
    assert decided(facts, Evaluation())["b"].verdict is Verdict.FAIL
    assert decided(facts, wide)["b"].verdict is Verdict.PASS
    assert decided(facts, wide.model_copy(update={"alpha": 0.01}))["b"].verdict is Verdict.ERROR


def test_a_later_attempt_is_judged_at_the_share_of_the_present_alpha() -> None:
    facts = {
        "candidates": ["b"],
        "alpha": 0.05,
        "alphas": {"b": 0.025},
        "expected": {"attempts": {"b": 2}},
        "keep": ["s"],
        "champion": {},
        "comparisons": {"b": []},
    }
    again = decided(facts, Evaluation.model_validate({"alpha": 0.02}))["b"]
    assert again.reasons[0].startswith("was measured at alpha 0.025, and 0.01 was fixed for it")
    assert "alpha" not in decided(facts, Evaluation())["b"].reasons[0]


def test_a_folder_without_a_report_is_told(tmp_path: Path) -> None:
    from intonaco.errors import ConfigError

    with pytest.raises(ConfigError, match="holds no evaluation"):
        load(tmp_path)
