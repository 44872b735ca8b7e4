"""A service in the middle of its second update: the first release drifts, two recipes were tried,
one passed the gate and is at the second step of its rollout."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from intonaco import config as configuration
from intonaco.config import Config
from intonaco.datasets import proposals
from intonaco.datasets.proposing import Choice, Proposed
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import Effect, Ledger, Transaction
from intonaco.types import (
    Action,
    Arm,
    ArmRole,
    Assessment,
    BreakerTrip,
    Candidate,
    Cause,
    ClusterMove,
    DatasetVersion,
    Diagnosis,
    Finding,
    MetricAssessment,
    MetricResult,
    Observed,
    Phase,
    Plan,
    Provenance,
    Release,
    Rollout,
    RolloutStatus,
    RolloutStep,
    RoutingTable,
    ServingSpec,
    SignalStatus,
    StepKind,
    StepResult,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

START = 1_700_000_000.0
SERVICE = "digits"
FIRST, SECOND, REFUSED = "a1" * 32, "b2" * 32, "c3" * 32
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def now() -> float:
    return START + 600


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded workspace that each test gets a copy of."""
    workspace = Workspace(tmp_path_factory.mktemp("seed") / "workspace")
    workspace.root.mkdir()
    workspace.config_file.write_text(f"service: {SERVICE}\nconsole: {{port: 0}}\n")
    ledger = Ledger.open(workspace.ledger, SERVICE)
    fill(ledger, workspace)
    ledger.close()
    return workspace.root


@pytest.fixture
def workspace(tmp_path: Path, seed: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(seed, tmp_path / "workspace")))


@pytest.fixture
def config() -> Config:
    return configuration.parse(f"service: {SERVICE}\nmodel: {{name: digits-32}}\n")


@pytest.fixture
def ledger(workspace: Workspace) -> Iterator[Ledger]:
    """Seeded."""
    opened = Ledger.open(workspace.ledger, SERVICE)
    yield opened
    opened.close()


@pytest.fixture
def empty_ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "empty" / "ledger.db", SERVICE)
    yield opened
    opened.close()


@pytest.fixture
def observed() -> Observed:
    return Observed(
        epoch=4,
        salt="s2",
        weights={"champion": 0.5, "challenger:fine_tune": 0.25, "baseline": 0.25},
        in_flight={FIRST: 3, SECOND: 1},
        trips=(
            BreakerTrip(
                release=REFUSED,
                at=START + 500,
                first_failure_at=START + 499,
                failures=3,
                reason="3 failures in a row",
            ),
        ),
        requests=5321,
        failed=0,
    )


def propose(workspace: Workspace, images: list[str], update_id: str = "u2") -> proposals.Proposal:
    """Three images of live traffic, proposed for an update."""
    items = tuple(
        Proposed(
            item_id=f"{n}" * 12,
            image=image,
            prompt=prompt,
            source=source,
            request=f"req-{n}" if source != "review" else "",
            release=FIRST if source != "review" else "",
            finding="f1" if source == "finding" else "",
            at=START + 90,
            score=0.8 if source != "review" else None,
            votes=2 if source == "review" else n,
        )
        for n, (image, prompt, source) in enumerate(
            zip(
                images,
                ("a handwritten seven", HOSTILE, "nine"),
                ("review", "feedback", "finding"),
                strict=False,
            )
        )
    )
    choice = Choice(items=items, considered=40, min_score=0.7, left_out={"consent": 5})
    return proposals.make(workspace, update_id, choice, START + 130, 2**20)


def fill(ledger: Ledger, workspace: Workspace) -> None:
    images = _pictures(workspace)
    propose(workspace, images)
    moved = ClusterMove(
        cluster=4,
        share_before=0.012,
        share_now=0.47,
        share_now_interval=(0.41, 0.53),
        quality_inside=0.11,
        quality_outside=0.31,
        sample_prompts=("a handwritten seven", "show me the number nine", HOSTILE),
        sample_images=tuple(images),
        centroid=(0.123456789, 0.5),
    )
    still = ClusterMove(
        cluster=0,
        share_before=0.2,
        share_now=0.1,
        share_now_interval=(0.07, 0.13),
        quality_inside=None,
        quality_outside=None,
        sample_prompts=("a handwritten two",),
        sample_images=(),
        centroid=(0.987654321, 0.5),
        moved=False,
    )
    finding = Finding(
        finding_id="f1",
        service_id=SERVICE,
        signal="prompts",
        detector="mean_shift",
        at=START + 120,
        request=1480,
        armed_at=600,
        since=1342,
        since_at=START + 100,
        evidence=12.4,
        threshold=11.5,
        value_before=0.012,
        value_now=0.47,
        unit="share",
        direction="moved",
        clusters=(moved, still),
        release=FIRST,
        text="47 % of requests now ask for something that 1 % asked for before",
    )
    diagnosis = Diagnosis(
        diagnosis_id="d1",
        service_id=SERVICE,
        at=START + 125,
        cause=Cause.CONCEPT_DRIFT,
        reason="demand moved and adherence is 0.20 lower there",
        findings=(finding,),
        moved_share=0.47,
        quality_gap=0.2,
    )
    plan = Plan(
        plan_id="p2",
        service_id=SERVICE,
        at=START + 126,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="A fine-tune on the moved part is expected to be worth 40 times its cost.",
        recipes=("fine_tune", "low_rank"),
        estimated_cost=0.0421,
        expected_benefit=1.7,
        budget_left=99.9,
        diagnosis_id="d1",
        clusters=(moved, still),
    )
    update = Update(
        update_id="u2",
        service_id=SERVICE,
        plan=plan,
        phase=Phase.ROLLOUT,
        created_at=START + 126,
        phase_since=START + 420,
        champion=FIRST,
        candidates=(
            Candidate(
                name="fine_tune",
                dataset_version="d4" * 32,
                release_id=SECOND,
                verdict=Verdict.PASS,
                reasons=("no worse on any metric, adherence superior on the moved topics",),
                metrics=(
                    a_metric("adherence", None, 0.305, 0.322, (0.008, 0.026), 0.02, "superior"),
                    a_metric(
                        "slice_adherence", "seven", 0.11, 0.31, (0.15, 0.25), 0.05, "superior"
                    ),
                    a_metric("distance", None, 0.021, 0.019, (-0.006, 0.002), 0.01, "non_inferior"),
                ),
                train_seconds=71.2,
                cost=0.0396,
                registry_version="3",
            ),
            Candidate(
                name="low_rank",
                dataset_version="d4" * 32,
                release_id=REFUSED,
                verdict=Verdict.FAIL,
                reasons=("slice_adherence of two: 0.08 worse, margin 0.05",),
                metrics=(
                    a_metric("adherence", None, 0.305, 0.301, (-0.015, 0.007), 0.02, "undecided"),
                    a_metric("slice_adherence", "two", 0.33, 0.25, (-0.12, -0.05), 0.05, "harmful"),
                ),
                train_seconds=38.0,
                cost=0.0211,
                registry_version="4",
            ),
        ),
        chosen=SECOND,
        rollout_id="u2-1",
    )
    first_update = Update(
        update_id="u1",
        service_id=SERVICE,
        plan=Plan(
            plan_id="p1",
            service_id=SERVICE,
            at=START,
            action=Action.FULL_RETRAIN,
            cause=Cause.FIRST_RELEASE,
            reason="the service has no release yet",
        ),
        phase=Phase.PROMOTED,
        created_at=START - 300,
        phase_since=START,
        champion=None,
        candidates=(Candidate(name="full", release_id=FIRST, verdict=Verdict.PASS),),
        chosen=FIRST,
        rollout_id="u1-1",
        reason="baked",
    )
    rollout = Rollout(
        rollout_id="u2-1",
        service_id=SERVICE,
        update_id="u2",
        champion=FIRST,
        challenger=SECOND,
        steps=(
            RolloutStep(kind=StepKind.SHADOW, weight=0.2, min_seconds=20, min_units=40),
            RolloutStep(kind=StepKind.CANARY, weight=0.25, min_seconds=60, min_units=200),
            RolloutStep(kind=StepKind.CANARY, weight=0.5, min_seconds=60, min_units=200),
            RolloutStep(kind=StepKind.CANARY, weight=1.0),
        ),
        status=RolloutStatus.RUNNING,
        started_at=START + 420,
        step=1,
        step_since=START + 480,
        salt="s2",
        history=(
            StepResult(
                kind=StepKind.SHADOW,
                weight=0.2,
                entered_at=START + 420,
                left_at=START + 480,
                units=44,
                decision="advance",
            ),
            StepResult(kind=StepKind.CANARY, weight=0.25, entered_at=START + 480, units=61),
        ),
        assessments=(
            an_assessment("errors", Assessment.NON_INFERIOR, 0.0, (-0.006, 0.007), 0.01),
            replace(
                an_assessment("slow", Assessment.UNDECIDED, 0.012, (-0.04, 0.061), 0.05),
                units_ahead=241,
            ),
            an_assessment("clip_score", Assessment.SUPERIOR, 0.071, (0.03, 0.11), 0.02),
            replace(
                an_assessment("nothing_yet", Assessment.NO_DATA, None, None, 0.02),
                missing="no scores from the scorer",
            ),
        ),
    )
    champion = Arm(
        name="champion", role=ArmRole.CHAMPION, release=FIRST, urls=("http://c",), weight=1.0
    )
    challenger = Arm(
        name="challenger:fine_tune",
        role=ArmRole.CHALLENGER,
        release=SECOND,
        urls=("http://d",),
        weight=0.25,
    )
    tables = [
        RoutingTable(service_id=SERVICE, epoch=1, salt="s1", arms=(champion,), reason="first"),
        RoutingTable(
            service_id=SERVICE,
            epoch=3,
            salt="s2",
            arms=(champion, _arm(challenger, "shadow:fine_tune", ArmRole.SHADOW, 0.2)),
            reason="shadow 20 %",
        ),
        RoutingTable(
            service_id=SERVICE,
            epoch=4,
            salt="s2",
            arms=(
                _arm(champion, "champion", ArmRole.CHAMPION, 0.5),
                challenger,
                _arm(champion, "baseline", ArmRole.BASELINE, 0.25),
            ),
            reason="canary 25 %",
        ),
    ]
    with ledger.begin() as tx:
        for release, parent, recipe, at in (
            (FIRST, None, "full", START - 10),
            (SECOND, FIRST, "fine_tune", START + 300),
            (REFUSED, FIRST, "low_rank", START + 340),
        ):
            made = a_release(release, parent, recipe, at)
            tx.put(made, id=release, at=at)
        tx.put(
            DatasetVersion(
                version="d4" * 32, dvc_md5="0" * 32, name="moved", items=412, bytes=90_000,
                topics={"seven": 60}, replay=0.3, created_at=START + 130,
            ),
            id="d4" * 32,
            at=START + 130,
        )  # fmt: skip
        tx.crown(FIRST, START, "the first release")
        tx.put(finding, id="f1", at=finding.at)
        tx.put(diagnosis, id="d1", at=diagnosis.at)
        tx.put(plan, id="p2", at=plan.at)
        tx.update(first_update)
        tx.update(update)
        tx.rollout(rollout)
        for table, at in zip(tables, (START, START + 420, START + 480), strict=True):
            tx.routing(table, at)
        asked = tx.command(START + 125, "update.start", "ann", {"reason": "it drifts"})
        tx.take_command(asked, START + 126, {"ok": True, "text": "update u2 begins"})
        tx.money(START, "u1", "reserve", 1.0)
        tx.money(START, "u1", "settle", 0.25)
        tx.money(START + 126, "u2", "reserve", 0.5)
        _events(tx)
        for name in ("fine_tune", "low_rank"):
            tx.want(
                Effect(key=f"k:{name}", kind="train", subject="u2", payload={"name": name}),
                START + 130,
            )
        tx.want(
            Effect(key="k:stage", kind="stage", subject="u2", payload={"name": SECOND}), START + 400
        )
        tx.want(
            Effect(key="k:evaluate", kind="evaluate", subject="u1", payload={"name": "all"}),
            START + 345,
        )
        tx.finish_effect("k:evaluate", START + 390, result={"folder": "jobs/evaluation/out"})
        tx.finish_effect("k:low_rank", START + 340, result={"seconds": 38.0})
        _signals(tx)
    folder = job_folder(workspace, "k:fine_tune")
    folder.mkdir(parents=True)
    JobFolder(folder).progress("denoiser", 430, 900, "loss 0.031")
    page = workspace.jobs / "evaluation" / "out" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html><style>p { margin: 0 }</style><p>pass</p>")
    workspace.announce("controller")
    workspace.announce("worker-1", url="http://127.0.0.1:1", release=FIRST)
    (workspace.run / "routing.json").write_text(json.dumps({"not": "a process"}))


def _events(tx: Transaction) -> None:
    tx.event(START, "release.crowned", FIRST, "a1a1a1a1a1 is champion: the first release")
    tx.event(START + 120, "finding", "f1", f"demand moved, for example {HOSTILE}")
    tx.event(START + 125, "diagnosis", "d1", "concept_drift: adherence is lower where demand moved")
    tx.event(START + 126, "plan", "p2", "fine_tune: worth 40 times its cost")
    tx.event(START + 126, "update.started", "u2", "update u2 begins")
    moves = ["dataset", "train", "evaluate", "gate", "register", "stage", "approve", "rollout"]
    at = START + 126
    for before, after in itertools.pairwise(moves):
        seconds = {"train": 190.0, "evaluate": 80.0}.get(before, 4.0)
        at += seconds
        tx.event(
            at, "update.phase", "u2", f"{before} → {after}",
            data={"from": before, "to": after, "seconds": seconds},
        )  # fmt: skip
    tx.event(START + 421, "effect.retried", "u2", "stage: the worker was busy")
    tx.event(START + 480, "rollout.step", "u2-1", "shadow 20 % → canary 25 %", actor="ada")


def _signals(tx: Transaction) -> None:
    for second in range(0, 600, 2):
        moved = max(0.0, second - 100)
        wave = math.sin(second / 7)
        tx.signals(
            START + second,
            [
                a_signal("prompts", second, 0.02 + 0.45 * (moved > 0) + 0.01 * wave,
                         0.02, min(40.0, 0.4 * moved + abs(wave))),
                a_signal("clip_score", second, 0.30 - 0.09 * (moved > 0) + 0.01 * wave, 0.30,
                         min(30.0, 0.12 * moved + abs(wave))),
                a_signal("errors", second, 0.0, 0.0, 0.0),
                a_signal("latency", second, 0.02 + 0.005 * wave, 0.02,
                         math.inf if second > 900 else abs(wave)),
            ],
        )  # fmt: skip


def a_signal(
    name: str, second: float, value: float, reference: float, evidence: float
) -> SignalStatus:
    armed = second > 40
    return SignalStatus(
        signal=name,
        detector="mean_shift" if name == "prompts" else "betting",
        armed=armed,
        armed_at=600 if armed else None,
        requests=int(second * 9),
        value=value,
        reference=reference if armed else None,
        evidence=evidence if armed else 0.0,
        threshold=11.5,
        firing=armed and evidence >= 11.5,
    )


def a_metric(
    metric: str, part: str | None, champion: float, candidate: float,
    interval: tuple[float, float], margin: float, assessment: str,
) -> MetricResult:  # fmt: skip
    return MetricResult(
        metric=metric, slice=part, champion=champion, candidate=candidate,
        difference=candidate - champion, interval=interval, margin=margin,
        assessment=Assessment(assessment), guardrail=True, unit="cosine",
    )  # fmt: skip


def an_assessment(
    metric: str, assessment: Assessment, difference: float | None,
    interval: tuple[float, float] | None, margin: float,
) -> MetricAssessment:  # fmt: skip
    return MetricAssessment(
        metric=metric, assessment=assessment, difference=difference, interval=interval,
        margin=margin, evidence_harm=0.4, evidence_non_inferior=4.1, threshold=4.38,
        units_challenger=61, units_champion=64,
    )  # fmt: skip


def a_release(release_id: str, parent: str | None, recipe: str, at: float) -> Release:
    return Release(
        release_id=release_id,
        service_id=SERVICE,
        serving=ServingSpec(
            pipeline_class="StableDiffusionPipeline",
            weights={"unet/diffusion_pytorch_model.safetensors": "e" * 64},
            scheduler="DDIMScheduler",
            generation={"steps": 12, "guidance_scale": 2.0, "width": 32, "height": 32},
        ),
        provenance=Provenance(
            created_at=at,
            parent=parent,
            recipe=recipe,
            dataset_version="d4" * 32 if parent else None,
            training_job=f"k:{recipe}",
            update_id="u2" if parent else "u1",
        ),
        path=f"releases/{release_id}/pipeline",
    )


def _arm(arm: Arm, name: str, role: ArmRole, weight: float) -> Arm:
    return Arm(name=name, role=role, release=arm.release, urls=arm.urls, weight=weight)


def _pictures(workspace: Workspace) -> list[str]:
    (workspace.images / "2023").mkdir(parents=True)
    names = []
    for digit in "798":
        image = Image.new("RGB", (32, 32), "black")
        ImageDraw.Draw(image).text((12, 8), digit, fill="white")
        names.append(f"images/2023/{digit}.png")
        image.save(workspace.resolve(names[-1]))
    return names
