"""``intonaco eval``: finding reports, judging them again, plans, and what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.codec import as_json
from intonaco.config import Evaluation
from intonaco.errors import ConfigError, Conflict, IntonacoError, NotFound
from intonaco.evaluation.prompts import read_prompts, shots, shots_digest
from intonaco.types import Assessment, MetricResult

GOOD = MetricResult(
    metric="adherence",
    slice=None,
    champion=0.5,
    candidate=0.5,
    difference=0.0,
    interval=(-0.01, 0.01),
    margin=0.02,
    assessment=Assessment.NON_INFERIOR,
    guardrail=True,
)


def every_guardrail() -> list[MetricResult]:
    seconds = replace(GOOD, metric="latency", unit="log ratio")
    return [
        GOOD,
        replace(GOOD, slice="s"),
        replace(GOOD, metric="distance", interval=(-0.001, 0.001)),
        replace(GOOD, metric="recall"),
        seconds,
        replace(GOOD, metric="memory", difference=1.0, interval=None),
    ]


def report_of(name: str, metrics: list[MetricResult], **changes: Any) -> dict[str, Any]:
    return {
        "champion": {"release_id": "c" * 64},
        "candidates": [name],
        "keep": ["s"],
        "improve": [],
        "alpha": 0.05,
        "alphas": {name: 0.05},
        "success": ["adherence"],
        "extractor": {"name": "e", "digest": "d" * 64},
        "shots": {"digest": "x", "images_per_arm": 100, "prompts_by_slice": {"s": 50}},
        "arms": {},
        "comparisons": {name: as_json(metrics)},
        "errors": {},
        "notes": ["a note"],
        "reproduce": {
            "seeds_per_prompt": 2,
            "latency_rounds": 30,
            "settings": Evaluation().model_dump(mode="json"),
        },
        **changes,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "intonaco.yaml").write_text("service: sample\n")
    return tmp_path


def put(root: Path, report: dict[str, Any], name: str = "r1") -> Path:
    folder = root / "jobs" / name / "out"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text("<p>a page</p>")
    return folder


def ask(root: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, output). Raises what the command raises."""
    done = CliRunner().invoke(app, ["eval", *arguments, "-w", str(root)])
    if isinstance(done.exception, IntonacoError):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_report_is_found_by_id_folder_or_file(root: Path) -> None:
    folder = put(root, report_of("new", every_guardrail()))
    for which in ("r1", str(folder), str(folder.parent), str(folder / "report.json")):
        code, text = ask(root, "report", which)
        assert code == 0
        assert "new: pass" in text
        assert "note: a note" in text
    facts = json.loads(ask(root, "report", "r1", "--json")[1])
    assert facts["candidates"] == ["new"]
    assert facts["page"].endswith("report.html")
    with pytest.raises(NotFound, match="no report 'r2'"):
        ask(root, "report", "r2")


def test_a_report_is_judged_again_by_the_present_margins(root: Path) -> None:
    put(root, report_of("new", every_guardrail()))
    assert ask(root, "compare", "r1")[0] == 0
    narrow = "service: sample\nevaluation: {margins: {adherence: 0.001}}\n"
    (root / "intonaco.yaml").write_text(narrow)
    code, text = ask(root, "compare", "r1")
    assert code == 3
    assert "new: inconclusive" in text
    # what it was when it was made stays what it was
    assert "new: pass" in ask(root, "report", "r1")[1]


@pytest.mark.parametrize(
    ("metric", "change", "code"),
    [
        (3, {"interval": (-0.5, -0.3), "difference": -0.4}, 1),
        (3, {"interval": (-0.5, 0.5)}, 3),
        (3, {"interval": None, "difference": None}, 4),
    ],
)
def test_exit_codes(root: Path, metric: int, change: dict[str, Any], code: int) -> None:
    metrics = every_guardrail()
    metrics[metric] = replace(metrics[metric], **change)
    put(root, report_of("new", metrics))
    assert ask(root, "compare", "r1")[0] == code


def test_a_plan_from_a_run_of_the_champion_against_itself(root: Path) -> None:
    put(root, report_of("again", every_guardrail()))
    code, text = ask(root, "plan", "--from", "r1")
    assert code == 0
    assert "needed:" in text

    def needed(*arguments: str) -> dict[str, Any]:
        facts = json.loads(ask(root, "plan", "--from", "r1", "--json", *arguments)[1])
        return {n["metric"]: n for n in facts["needs"] if n["slice"] is None}

    as_it_is = needed()["adherence"]
    tighter = needed("--margin", "adherence=0.01")["adherence"]
    # an interval half as wide takes four times the prompts
    assert tighter["needed"] == pytest.approx(4 * as_it_is["needed"], rel=0.1)
    more = needed("--prompts", "200")["adherence"]
    assert more["n"] == 200
    assert more["shows"] == pytest.approx(as_it_is["shows"] / 2, rel=0.15)
    assert needed("--seeds", "8")["adherence"]["needed"] < as_it_is["needed"]
    assert needed("--prompts", "200")["latency"] == needed()["latency"]  # counted in rounds


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        ("grace=0.1", "no margin 'grace'"),
        ("adherence=much", "'much' is no number"),
        ("adherence=-1", "greater than 0"),
    ],
)
def test_wrong_margins_are_told(root: Path, margin: str, message: str) -> None:
    put(root, report_of("again", every_guardrail()))
    with pytest.raises(ConfigError, match=message):
        ask(root, "plan", "--from", "r1", "--margin", margin)


def test_a_plan_needs_a_champion_or_its_run(root: Path) -> None:
    with pytest.raises(Conflict, match="there is no champion yet"):
        ask(root, "plan")
    put(root, report_of("new", every_guardrail()))
    with pytest.raises(ConfigError, match="no run of a champion against itself"):
        ask(root, "plan", "--from", "r1")


def test_a_run_says_what_it_needs(root: Path) -> None:
    with pytest.raises(NotFound, match="no release 'abc'"):
        ask(root, "run", "--release", "abc")
    with pytest.raises(ConfigError, match="--kind watch makes no candidate"):
        ask(root, "run", "--release", "abc", "--kind", "watch")
    with pytest.raises(ConfigError, match="nothing to improve"):
        ask(root, "run", "--release", "abc", "--kind", "assemble", "--improve", "s")


def test_folders_need_an_extractor(root: Path) -> None:
    with pytest.raises(ConfigError, match="no extractor"):
        ask(root, "compare", str(root / "a"), str(root / "b"))


def test_a_report_of_another_extractor_is_judged_by_nobody(root: Path) -> None:
    put(root, report_of("new", every_guardrail()))
    pinned = "service: sample\nextractor: {path: clip, digest: %s}\n"
    (root / "intonaco.yaml").write_text(pinned % ("d" * 64))
    assert ask(root, "compare", "r1")[0] == 0
    (root / "intonaco.yaml").write_text(pinned % ("e" * 64))
    code, text = ask(root, "compare", "r1")
    assert code == 4
    assert "was measured with extractor dddddddddddd" in text


def test_a_report_of_other_prompts_is_judged_by_nobody(root: Path) -> None:
    (root / "intonaco.yaml").write_text(
        "service: sample\nevaluation: {prompts: golden.jsonl, seeds_per_prompt: 2}\n"
    )
    lines = [{"prompt_id": f"p{n}", "prompt": f"words {n}", "slice": "s"} for n in range(3)]
    golden = root / "golden.jsonl"
    golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shots_now = shots_digest(shots(read_prompts(golden), 2))
    report = report_of("new", every_guardrail())
    put(root, {**report, "shots": {**report["shots"], "digest": shots_now}})
    assert ask(root, "compare", "r1")[0] == 0
    golden.write_text(json.dumps(lines[0] | {"prompt": "others"}) + "\n")
    code, text = ask(root, "compare", "r1")
    assert code == 4
    assert "was measured on other prompts or seeds" in text
    assert ask(root, "report", "r1")[0] == 0  # the verdict as it was then


@pytest.mark.parametrize("text", ["", "{", "[]", '{"candidates": ["new"]}', "null"])
@pytest.mark.parametrize("command", ["report", "compare", "plan"])
def test_half_a_report_is_none(root: Path, command: str, text: str) -> None:
    folder = put(root, report_of("new", every_guardrail()))
    (folder / "report.json").write_text(text)
    asked = ["plan", "--from", "r1"] if command == "plan" else [command, "r1"]
    with pytest.raises(ConfigError, match=r"cannot be read|is no report of an evaluation"):
        ask(root, *asked)


def test_a_job_without_a_report_is_told(root: Path) -> None:
    job = root / "jobs" / "r2"
    job.mkdir(parents=True)
    (job / "spec.json").write_text("{}")
    with pytest.raises(NotFound, match="job r2 has no report, or none yet"):
        ask(root, "report", "r2")


def test_a_report_of_settings_that_are_gone_names_its_page(root: Path) -> None:
    report = report_of("new", every_guardrail())
    report["reproduce"]["settings"]["a_setting_of_long_ago"] = 1
    put(root, report)
    with pytest.raises(ConfigError, match="a_setting_of_long_ago") as caught:
        ask(root, "report", "r1")
    assert "report.html" in str(caught.value.hint)


def written(folder: Path, **changes: Any) -> Path:
    """A folder of two drawn pictures."""
    folder.mkdir()
    lines = []
    for seed in (0, 1):
        line = {"file_name": f"{seed}.png", "prompt": "a mug", "prompt_id": "m", "seed": seed}
        lines.append(json.dumps(line | changes))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a cup"}, "prompt 'm' has other words in"),
        ({"kind": "strange"}, "kind is 'strange'"),
        ({"seed": 5}, "prompt and seed 5 again"),
        ({"prompt_id": "n"}, "lacks prompt"),
    ],
)
def test_folders_that_are_not_of_the_same_prompts(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    (root / "intonaco.yaml").write_text("service: sample\nextractor: {path: nowhere}\n")
    before, after = written(root / "before"), written(root / "after", **changes)
    with pytest.raises(ConfigError, match=message):
        ask(root, "compare", str(before), str(after))
