"""What an evaluation is judged by is fixed when it is asked for: what changes while it runs is of
the next one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.integration.test_loop_in_memory import World

from intonaco import config
from intonaco.codec import encode
from intonaco.executor import Executor, Pending
from intonaco.jobs import job_folder
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import JobHandle, JobSpec, Json, Phase

JOB = "intonaco.evaluation.job"


@dataclass
class Changing(World):
    """Somebody edits the prompts while the evaluation runs."""

    def _report(self, spec: JobSpec) -> dict[str, Json]:
        report = super()._report(spec)
        job = job_folder(self.workspace, spec.key)
        (job / "spec.json").write_text(encode(spec))
        (job / "out" / "report.html").write_text("<p>a page</p>")
        (self.root / "prompts.jsonl").write_text("half a li")
        return report


def test_prompts_that_change_while_it_runs_are_of_the_next_one(tmp_path: Path) -> None:
    world = Changing(tmp_path)
    champion = world.first_release()
    assert world.updates()[0].chosen == champion, world.updates()[0].reason
    world.close()


@dataclass
class Waiting(MemoryTrainingBackend):
    """Jobs that go on, as they were asked for each time."""

    asked: list[JobSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def submit(self, spec: JobSpec) -> JobHandle:
        self.asked.append(spec)
        return super().submit(spec)


def test_a_configuration_that_changes_while_it_runs_asks_for_the_same(tmp_path: Path) -> None:
    """Another payload under the job's key is a conflict, and would end the update."""
    world = World(tmp_path)
    world.first_release()
    backend = Waiting()
    world.training = backend
    object.__setattr__(world.parts, "training", backend)
    world.technique()
    world.until(lambda: world.updates()[-1].phase is Phase.EVALUATE)
    world.until(lambda: backend.asked, ticks=10)
    first = backend.asked[0]
    assert first.entrypoint == JOB
    folder = job_folder(world.workspace, first.key)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(encode(first))
    other = config.Evaluation(prompts="prompts.jsonl", latency_rounds=7, seeds_per_prompt=9)
    changed = world.parts.config.model_copy(update={"evaluation": other})
    later = Executor(replace(world.parts, config=changed))
    effects = world.ledger.effects(world.updates()[-1].update_id)
    assert isinstance(later.run(effects[first.key].effect), Pending)
    assert backend.asked[-1].payload == first.payload
    world.close()


def test_the_tracker_gets_the_page_and_the_facts(tmp_path: Path) -> None:
    world = Changing(tmp_path)
    world.first_release()
    tracker = world.parts.tracker
    assert isinstance(tracker, MemoryTracker)
    kept = {file.name for files in tracker.artifacts.values() for file in files}
    assert {"report.html", "report.json"} <= kept
    world.close()
