"""What people are shown agrees with what the ledger and the workspace hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from intonaco import readmodel
from intonaco.config import Config
from intonaco.errors import NotFound
from intonaco.ledger import Ledger
from intonaco.types import Observed, Phase, Rollout, RolloutStatus, SignalStatus, Update
from intonaco.workspace import Workspace

FIRST, SECOND, REFUSED = "a1" * 32, "b2" * 32, "c3" * 32


@pytest.fixture
def snapshot(
    ledger: Ledger, workspace: Workspace, config: Config, now: float, observed: Observed
) -> dict[str, Any]:
    return readmodel.snapshot(ledger, workspace, config, now, observed)


def test_it_is_json(snapshot: dict[str, Any]) -> None:
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot


def test_roles_follow_tenures_and_the_rollout(snapshot: dict[str, Any], now: float) -> None:
    roles = snapshot["releases"]
    assert roles["champion"]["id"] == FIRST
    assert roles["champion"]["since"] == now - 600
    assert roles["champion"]["pipeline_class"] == "StableDiffusionPipeline"
    assert roles["challenger"]["short"] == SECOND[:10]
    assert roles["challenger"]["since"] is None
    assert roles["challenger"]["provenance"]["recipe"] == "fine_tune"
    assert roles["previous"] is None


def test_after_a_change_of_champion_the_old_one_is_previous(
    ledger: Ledger, workspace: Workspace, config: Config, now: float
) -> None:
    with ledger.begin() as tx:
        tx.crown(SECOND, now, "promoted")
    roles = readmodel.snapshot(ledger, workspace, config, now)["releases"]
    assert (roles["champion"]["id"], roles["previous"]["id"]) == (SECOND, FIRST)
    assert roles["challenger"] is None  # it is the champion now


def test_routing_shows_what_the_gateway_really_does(
    snapshot: dict[str, Any], ledger: Ledger, observed: Observed
) -> None:
    table = snapshot["routing"]
    assert table["epoch"] == 4
    assert table["followed"] is True
    assert {a["name"]: a["weight"] for a in table["arms"]} == {
        "champion": 0.5,
        "challenger:fine_tune": 0.25,
        "baseline": 0.25,
    }
    tripped = replace(observed, epoch=3, weights={"champion": 1.0, "challenger:fine_tune": 0.0})
    table = readmodel.routing(ledger, tripped)
    assert table is not None
    assert table["followed"] is False
    assert {a["name"]: a["effective"] for a in table["arms"]}["challenger:fine_tune"] == 0.0
    unknown = readmodel.routing(ledger)
    assert unknown is not None
    assert unknown["followed"] is None
    assert {a["effective"] for a in unknown["arms"]} == {None}


def test_the_update_tells_its_phases_jobs_and_candidates(snapshot: dict[str, Any]) -> None:
    update = snapshot["update"]
    states = {p["phase"]: p["state"] for p in update["phases"]}
    assert states["train"] == "done"
    assert states["rollout"] == "current"
    assert states["bake"] == "to_come"
    assert {p["phase"]: p["seconds"] for p in update["phases"]}["train"] == 190.0
    jobs = {j["name"]: j for j in update["jobs"]}
    assert set(jobs) == {"fine_tune", "low_rank"}  # the stage effect is no job
    assert (jobs["fine_tune"]["step"], jobs["fine_tune"]["total"]) == (430, 900)
    assert jobs["fine_tune"]["status"] == "running"
    assert jobs["low_rank"]["status"] == "done"
    assert [(c["name"], c["verdict"]) for c in update["candidates"]] == [
        ("fine_tune", "pass"),
        ("low_rank", "fail"),
    ]
    assert "margin 0.05" in update["candidates"][1]["reasons"][0]


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"phase": Phase.ROLLED_BACK}, "rollout"),
        ({"phase": Phase.REJECTED, "rollout_id": None}, "approve"),
        ({"phase": Phase.REJECTED, "rollout_id": None, "chosen": None}, "gate"),
        ({"phase": Phase.FAILED, "rollout_id": None, "chosen": None, "candidates": ()}, "dataset"),
    ],
)
def test_an_ended_update_stopped_where_its_facts_say(
    ledger: Ledger, changes: dict[str, Any], stopped: str
) -> None:
    update = replace(ledger.get(Update, "u2"), **changes)
    states = {p["state"]: p["phase"] for p in readmodel.phase_strip(update)}
    assert states["stopped"] == stopped
    assert "current" not in states


def test_the_last_event_says_best_where_an_update_stopped(ledger: Ledger, now: float) -> None:
    update = replace(ledger.get(Update, "u2"), phase=Phase.ROLLED_BACK)
    with ledger.begin() as tx:
        tx.update(update)
        tx.event(now, "update.phase", "u2", "", data={"from": "bake", "to": "rolled_back"})
    newest = next(u for u in readmodel.updates(ledger) if u["id"] == "u2")
    assert [p["phase"] for p in newest["phases"] if p["state"] == "stopped"] == ["bake"]


def test_a_promoted_update_has_everything_done_and_a_retry_starts_at_stage(ledger: Ledger) -> None:
    update = ledger.get(Update, "u1")
    assert {p["state"] for p in readmodel.phase_strip(update)} == {"done"}
    retry = replace(ledger.get(Update, "u2"), attempt=2, phase=Phase.APPROVE)
    states = [p["state"] for p in readmodel.phase_strip(retry)]
    assert states == ["skipped"] * 5 + ["done", "current", "to_come", "to_come"]


def test_the_rollout_tells_its_steps(snapshot: dict[str, Any], ledger: Ledger, now: float) -> None:
    steps = snapshot["rollout"]["steps"]
    assert [s["state"] for s in steps] == ["done", "current", "to_come", "to_come"]
    assert (steps[0]["seconds"], steps[0]["units"]) == (60.0, 44)
    assert steps[1]["seconds"] == 120.0  # still running: until now
    assert steps[2]["seconds"] is None
    told = {a["metric"]: a["assessment"] for a in snapshot["rollout"]["assessments"]}
    assert told["clip_score"] == "superior"
    ended = replace(
        ledger.get(Rollout, "u2-1"), status=RolloutStatus.ROLLED_BACK, ended_at=now - 60
    )
    steps = readmodel.rollout_facts(ended, now)["steps"]
    assert [s["state"] for s in steps] == ["done", "stopped", "to_come", "to_come"]
    assert steps[1]["seconds"] == 60.0


def test_findings_come_without_embeddings(snapshot: dict[str, Any]) -> None:
    (finding,) = snapshot["findings"]
    assert finding["requests_to_detect"] == 1480 - 1342
    (cluster,) = finding["clusters"]  # only what moved
    assert cluster["sample_prompts"][0] == "a handwritten seven"
    assert "0.123456789" not in json.dumps(snapshot)
    assert "0.987654321" not in json.dumps(snapshot)


def test_the_budget_adds_up(snapshot: dict[str, Any]) -> None:
    budget = snapshot["budget"]
    assert budget["settled"] == 0.25
    assert budget["reserved"] == 0.5
    assert budget["left"] == pytest.approx(99.25)


def test_processes_that_should_run_and_do_not_are_shown(snapshot: dict[str, Any]) -> None:
    alive = {p["name"]: p["alive"] for p in snapshot["processes"]}
    assert alive == {
        "gateway": False,
        "controller": True,
        "scorer": False,
        "console": False,
        "worker-1": True,
    }


def test_a_controller_that_ticks_no_more_is_told(
    ledger: Ledger, workspace: Workspace, config: Config, now: float
) -> None:
    def told(at: float) -> dict[str, Any]:
        facts: dict[str, Any] = readmodel.snapshot(ledger, workspace, config, at)["controller"]
        return facts

    never = told(now)
    assert (never["last_tick"], never["age_s"], never["late"]) == (None, None, True)
    assert never["text"].startswith("no controller has ticked yet: gateways serve on")
    workspace.ticked(now)
    assert told(now + 30.0) == {"last_tick": now, "age_s": 30.0, "late": False, "text": ""}
    assert told(now - 5.0)["late"] is False  # a clock that was set back is no death
    assert told(now + 31.0)["text"].startswith("no controller for 31 s: gateways serve on")
    slow = config.model_copy(update={"tick_seconds": 20.0})
    assert not readmodel.controller(workspace, slow, now + 200.0)["late"]
    line = f"intonaco_controller_last_tick_timestamp_seconds {now:.10g}\n"
    assert line in readmodel.exposition(ledger, config, now, workspace.last_tick())
    assert "last_tick" not in readmodel.exposition(ledger, config, now)


def test_a_worker_that_is_gone_is_not_shown(
    ledger: Ledger, workspace: Workspace, config: Config, now: float
) -> None:
    info = json.loads((workspace.run / "worker-1.json").read_text())
    (workspace.run / "worker-1.json").write_text(json.dumps({**info, "started": 1.0}))
    names = [p["name"] for p in readmodel.processes(workspace)]
    assert "worker-1" not in names


def test_frozen(ledger: Ledger, workspace: Workspace, config: Config, now: float) -> None:
    assert readmodel.snapshot(ledger, workspace, config, now)["frozen"] is False
    with ledger.begin() as tx:
        tx.set("frozen", True)
    assert readmodel.snapshot(ledger, workspace, config, now)["frozen"] is True


def test_a_new_service_has_nothing_to_show(
    empty_ledger: Ledger, workspace: Workspace, config: Config, now: float
) -> None:
    snapshot = readmodel.snapshot(empty_ledger, workspace, config, now)
    for name in ("routing", "gateway", "update", "rollout", "last_rollout"):
        assert snapshot[name] is None
    assert snapshot["releases"] == {"champion": None, "challenger": None, "previous": None}
    assert snapshot["signals"] == []
    assert snapshot["events"] == []
    assert readmodel.history(empty_ledger) == {"signals": {}, "routing": [], "timeline": []}


def test_signal_charts_keep_the_moment_of_firing(snapshot: dict[str, Any]) -> None:
    prompts = next(s for s in snapshot["signals"] if s["signal"] == "prompts")
    assert prompts["firing"] is True
    assert {len(column) for column in prompts["history"].values()} == {300}
    rows: list[tuple[float, list[SignalStatus]]] = [
        (
            float(i),
            [
                SignalStatus(
                    signal="x", detector="d", armed=True, armed_at=0, requests=i, value=None,
                    reference=0.0, evidence=0.0, threshold=1.0, firing=i == 777,
                )
            ],
        )
        for i in range(1000)
    ]  # fmt: skip
    course = readmodel.signal_history(rows, 50)["x"]
    assert len(course["at"]) <= 53
    assert 777.0 in course["at"]
    assert course["at"][-1] == 999.0


def test_numbers_that_are_not_finite_are_null() -> None:
    status = SignalStatus(
        signal="x", detector="d", armed=True, armed_at=0, requests=1, value=math.nan,
        reference=0.0, evidence=math.inf, threshold=1.0, firing=True,
    )  # fmt: skip
    facts = readmodel.plain({"a": [status], "b": (math.inf,)})
    assert facts["a"][0]["evidence"] is None
    assert facts["a"][0]["value"] is None
    assert facts["b"] == [None]


def test_lineage_reaches_from_the_release_to_the_traffic(ledger: Ledger, now: float) -> None:
    lineage = readmodel.release_lineage(ledger, SECOND)
    assert lineage["ancestors"] == [FIRST]
    assert lineage["run"]["recipe"] == "fine_tune"
    assert lineage["update"]["id"] == "u2"
    assert lineage["candidate"]["verdict"] == "pass"
    assert lineage["dataset"]["items"] == 412
    assert [f["finding_id"] for f in lineage["findings"]] == ["f1"]
    assert lineage["traffic"] == [
        {
            "signal": "prompts",
            "from_request": 1342,
            "to_request": 1480,
            "from": now - 500,
            "to": now - 480,
        }
    ]


def test_lineage_of_a_first_release_ends_early_and_of_none_is_refused(ledger: Ledger) -> None:
    lineage = readmodel.release_lineage(ledger, FIRST)
    assert lineage["ancestors"] == []
    assert lineage["findings"] == []
    assert lineage["dataset"] is None
    with pytest.raises(NotFound):
        readmodel.release_lineage(ledger, "f" * 64)


def test_releases_newest_first_with_verdict_and_role(ledger: Ledger) -> None:
    releases = readmodel.releases(ledger)
    assert [r["id"] for r in releases] == [REFUSED, SECOND, FIRST]
    assert [r["roles"] for r in releases] == [[], ["challenger"], ["champion"]]
    assert [r["verdict"] for r in releases] == ["fail", "pass", "pass"]


def test_the_timeline_leaves_out_the_plumbing(ledger: Ledger) -> None:
    kinds = [e["kind"] for e in readmodel.timeline(ledger)]
    assert kinds[0] == "release.crowned"
    assert "finding" in kinds
    assert "effect.retried" not in kinds


def test_history_has_every_routing_table(ledger: Ledger) -> None:
    history = readmodel.history(ledger)
    assert [t["epoch"] for t in history["routing"]] == [1, 3, 4]
    assert len(history["signals"]["errors"]["at"]) == 300
