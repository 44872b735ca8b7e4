"""An update that people must look at, from real pictures to its verdict: the evaluation's own job
draws with real (untrained) pipelines, the review shows what it drew, two people vote over the
console's HTTP API, and the gate goes on from there."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from tests.integration.test_loop_in_memory import World

from intonaco import config
from intonaco.codec import encode
from intonaco.console import create_app
from intonaco.controller import Controller
from intonaco.demo.data import PHRASINGS, WORDS, write_demo_data
from intonaco.demo.extractor import build, save
from intonaco.demo.model import build_pipeline, build_tokenizer
from intonaco.evaluation import job as evaluation
from intonaco.evaluation.features import folder_digest
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import votes as rows
from intonaco.review import desk
from intonaco.review.session import BROKEN, find
from intonaco.types import TIE, JobSpec, Json, Phase, Review, TaskKind, Verdict

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning"
)
SLICES = ("zero", "one")
PER_SLICE, SEEDS = 8, 2
CONFIG = """
service: svc
model: {generation: {steps: 3, guidance_scale: 1.5, width: 32, height: 32}}
serving: {environments: ignore}
extractor: {type: clip, path: clip, digest: DIGEST}
data: {train: digits/train, pool: digits/pool, reference: digits/reference}
decision: {fine_tune: [full], full_retrain: [full], cooldown_s: 0}
training: {recipes: {full: {method: full, init: "m:build", steps: 5, estimated_seconds: 10}}}
evaluation:
  prompts: prompts.jsonl
  seeds_per_prompt: 2
  latency_rounds: 5
  floor_adherence: -1.0
  benchmark: {in_worker: false}
  hidden: {share: 0.25}
  # Nothing is learnt here: pictures of other steps differ, and all of it is within the margins.
  margins: {adherence: 1, slice_adherence: 1, distance: 1, recall: 1, latency: 9, copies: 1, \
detail: 9}
  review: {required: true, prompts: 12, min_prompts: 4, margin: 0.15, checks: 0.2}
approval: {mode: ask}
rollout: {bake_seconds: 5}
registry: {type: none}
tracker: {type: none}
monitoring: {probes: []}
"""


@dataclass
class Real(World):
    """Trains nothing, evaluates truly."""

    golden: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"generator": 40, "extractor": 10, "judge": 10, "reference": 80}
        write_demo_data(self.root / "digits", 0, sizes)
        for part in ("train", "pool"):  # what this champion draws, and what it is judged on
            shutil.rmtree(self.root / "digits" / part)
            shutil.copytree(self.root / "data" / part, self.root / "digits" / part)
        self.golden = [
            {"prompt_id": f"{s}-{i}", "prompt": PHRASINGS[i].format(s), "slice": s}
            for s in SLICES
            for i in range(PER_SLICE)
        ]
        self.write_prompts()
        torch.manual_seed(0)
        words = build_tokenizer(WORDS, 12)
        save(build(words).eval(), words, self.root / "clip")
        text = CONFIG.replace("DIGEST", folder_digest(self.root / "clip"))
        object.__setattr__(self.parts, "config", config.parse(text))
        self.controller = Controller(self.parts, holder="test", notifier=self.notifier)

    def write_prompts(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.golden)
        (self.root / "prompts.jsonl").write_text(lines)

    def _job(self, spec: JobSpec) -> dict[str, Json]:
        self.submitted.append(spec)
        job = JobFolder(job_folder(self.workspace, spec.key))
        job.root.mkdir(parents=True)
        (job.root / "spec.json").write_text(encode(spec))
        if spec.entrypoint == "intonaco.evaluation.job":
            return dict(evaluation.run(job))
        build_pipeline(0).save_pretrained(job.out / "pipeline", safe_serialization=True)
        return {"pipeline": "out/pipeline", "steps": 5}

    @property
    def drawn(self) -> Path:
        """What the last evaluation wrote."""
        key = next(
            s.key for s in reversed(self.submitted) if s.entrypoint == "intonaco.evaluation.job"
        )
        return job_folder(self.workspace, key) / "out"


@dataclass
class Person:
    """Somebody with a link to the review, at the console's HTTP API."""

    name: str
    world: Real
    review: Review
    client: TestClient

    @classmethod
    def invite(cls, world: Real, review: Review, name: str) -> Person:
        token = desk.invite(
            world.ledger, review, name, "reviewer", now=world.clock.now(), actor="ann"
        )
        app = create_app(world.ledger, world.workspace, world.parts.config, clock=world.clock)
        client = TestClient(
            app, base_url="http://127.0.0.1", headers={"authorization": f"Bearer {token}"}
        )
        return cls(name, world, review, client)

    def ask(self, path: str, **body: Any) -> Any:
        place = "/review" if path.startswith("pictures/") else "/api/review"
        url = f"{place}/{self.review.review_id}/{path}"
        answer = self.client.post(url, json=body) if body else self.client.get(url)
        assert answer.status_code == 200, answer.text
        return answer

    def vote_for(self, wanted: str) -> int:
        """Vote until nothing is left; how many tasks there were."""
        count = 0
        while tasks := self.ask("next").json()["tasks"]:
            name = tasks[0]["task"]
            votes = rows.votes(self.world.ledger, self.review.review_id)
            task = find(self.review, self.name, votes, name)
            assert task is not None
            if task.kind is TaskKind.SAME:
                choice = TIE
            elif BROKEN in (task.left, task.right):
                choice = "right" if task.left == BROKEN else "left"
            else:
                choice = "left" if task.left == wanted else "right"
            self.ask("votes", key=f"{self.name}-{count:08}", task=name, choices={"overall": choice})
            count += 1
        return count


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Real]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Real(tmp_path)
    assert made.command("update.start", reason="first")["ok"]
    made.until(lambda: made.updates()[0].phase is Phase.APPROVE)
    made.command("update.approve", update=made.updates()[0].update_id)
    made.until(lambda: made.updates()[0].phase.final)
    assert made.ledger.champion(), made.updates()[0].reason
    yield made
    made.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("wanted", "verdict", "ends_in"),
    [
        ("fewer", Verdict.PASS, Phase.APPROVE),
        pytest.param("champion", Verdict.FAIL, Phase.REJECTED, marks=pytest.mark.slow),
    ],
)
def test_what_was_evaluated_is_reviewed_and_decided(
    world: Real, wanted: str, verdict: Verdict, ends_in: Phase
) -> None:
    world.technique(steps=2)
    world.until(lambda: world.updates()[-1].phase is Phase.REVIEW)
    world.until(lambda: world.ledger.all(Review), ticks=5)
    review = world.ledger.all(Review)[-1]

    # What is shown is what was drawn, with the words that it was drawn from: the file of prompts
    # and the margins may be other ones by now.
    before = {line["prompt_id"]: line["prompt"] for line in world.golden}
    for line in world.golden:
        line["prompt"] += ", in oil"
    world.write_prompts()
    stricter = world.parts.config.evaluation.model_dump() | {"margins": {"adherence": 1e-9}}
    object.__setattr__(
        world.parts,
        "config",
        world.parts.config.model_copy(update={"evaluation": config.Evaluation(**stricter)}),
    )
    report = json.loads((world.drawn / "report.json").read_text())
    hidden = set(world.submitted[-1].payload["hidden"])
    assert report["hidden"]["prompts"] == len(hidden) == 4
    assert {i.prompt_id for i in review.items} == set(before) - hidden
    assert all(i.prompt == before[i.prompt_id] for i in review.items)
    with np.load(world.drawn / "images" / "fewer.npz", allow_pickle=False) as kept:
        drawn = {tuple(image.ravel()) for image in kept["images"]}

    people = [Person.invite(world, review, name) for name in ("bea", "cem")]
    first = people[0].ask("next").json()["tasks"][0]["task"]
    shown = [people[0].ask(f"pictures/{first}/{side}").content for side in ("left", "right")]
    pixels = {tuple(np.asarray(Image.open(io.BytesIO(raw))).ravel()) for raw in shown}
    assert len(pixels & drawn) == 1
    assert people[0].vote_for(wanted) >= len(review.items)
    world.tick()
    assert world.updates()[-1].phase is Phase.REVIEW  # one person is not enough
    people[1].vote_for(wanted)

    world.until(lambda: world.updates()[-1].phase in (ends_in, Phase.FAILED))
    update = world.updates()[-1]
    assert update.phase is ends_in, update.reason
    (candidate,) = update.candidates
    assert candidate.verdict is verdict, candidate.reasons
    assert any(reason.startswith("review: ") for reason in candidate.reasons)
    measured = {m.metric for m in candidate.metrics}
    assert {"adherence", "distance", "recall", "latency", "memory", "detail"} <= measured
