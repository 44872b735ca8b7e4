"""A required review in the controller's loop, over twins: blocked, decided for, decided against,
timed out, cancelled; the same with a controller that is thrown away again and again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.integration.test_loop_in_memory import CONFIG, World

from intonaco import config
from intonaco.app import App
from intonaco.cli.review import of_update
from intonaco.controller import Controller
from intonaco.errors import NotFound
from intonaco.executor.review import review_id
from intonaco.jobs import job_folder
from intonaco.ledger import votes as rows
from intonaco.review import desk, pictures, session
from intonaco.review.session import BROKEN
from intonaco.types import TIE, JobSpec, Json, Phase, Review, TaskKind, Update, Verdict

PROMPTS = 24
DAY = 86_400.0


@dataclass
class Reviewed(World):
    """Its evaluations keep pictures, and people are asked."""

    prompts: int = PROMPTS

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = [
            json.dumps({"prompt_id": f"p{n}", "prompt": f"the digit {n}", "slice": f"s{n % 3}"})
            for n in range(self.prompts)
        ]
        (self.root / "prompts.jsonl").write_text("\n".join(lines))
        text = CONFIG.replace("APPROVAL", self.approval).replace(
            "floor_adherence: 0.5}",
            f"floor_adherence: 0.5, review: {{required: true, timeout_s: {3 * DAY}}}}}",
        )
        object.__setattr__(self.parts, "config", config.parse(text))
        self.controller = Controller(self.parts, holder="test", notifier=self.notifier)

    def _report(self, spec: JobSpec) -> dict[str, Json]:
        report = super()._report(spec)
        arms = {c["name"]: c["release_id"] for c in spec.payload["candidates"]}
        if spec.payload["champion"]:
            arms["champion"] = spec.payload["champion"]["release_id"]
        folder = job_folder(self.workspace, spec.key) / "out" / "images"
        folder.mkdir()
        rng = np.random.default_rng(1)
        for name in arms:
            np.savez_compressed(
                folder / f"{name}.npz",
                images=rng.integers(0, 255, (2 * self.prompts, 12, 12, 3)).astype(np.uint8),
                prompt_ids=np.array([f"p{n // 2}" for n in range(2 * self.prompts)]),
                slices=np.array([f"s{n // 2 % 3}" for n in range(2 * self.prompts)]),
                seeds=np.arange(2 * self.prompts),
            )
        drawn = {n: {"release_id": r, "images": f"out/images/{n}.npz"} for n, r in arms.items()}
        return report | {"arms": drawn}

    def the_review(self) -> Review:
        self.until(lambda: self.updates()[-1].phase is Phase.REVIEW)
        self.until(lambda: self.ledger.all(Review), ticks=5)
        return self.ledger.all(Review)[-1]

    def vote(self, name: str, *prefers: str, most: int = 1000) -> int:
        """One person's votes until nothing is left: attentive, the preferences in turn by the
        prompt's number."""
        review = self.ledger.all(Review)[-1]
        for number in range(most):
            told, _ = session.upcoming(review, name, rows.votes(self.ledger, review.review_id))
            if not told:
                return number
            task = told[0]
            if task.kind is TaskKind.SAME:
                choice = TIE
            elif BROKEN in (task.left, task.right):
                choice = "right" if task.left == BROKEN else "left"
            else:
                prompt = next(i.prompt_id for i in review.items if i.item == task.item)
                wanted = prefers[int(prompt[1:]) % len(prefers)]
                choice = "left" if task.left == wanted else "right"
            desk.vote(
                self.ledger,
                review,
                name,
                key=f"{name}-{number}",
                task=task.task,
                choices={"overall": choice},
                seconds=2.0,
                now=self.clock.now(),
            )
        return most


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Reviewed]:
    made = Reviewed(tmp_path, restarts=getattr(request, "param", False))
    made.first_release()
    made.technique()
    yield made
    made.close()


DISTURBED = pytest.mark.parametrize(
    "world", [False, True], ids=["undisturbed", "killed again and again"], indirect=True
)


def ended(world: Reviewed) -> Update:
    world.until(lambda: world.updates()[-1].phase.final)
    return world.updates()[-1]


def moves(world: Reviewed) -> list[str]:
    last = world.updates()[-1].update_id
    return [e.data["to"] for e in world.ledger.events(kind="update.phase") if e.subject == last]


def test_the_first_release_is_not_reviewed(world: Reviewed) -> None:
    first = world.updates()[0]
    told = [
        e.text for e in world.ledger.events(kind="update.phase") if e.subject == first.update_id
    ]
    assert "review → gate: no review: nothing to compare with" in told


@DISTURBED
def test_it_blocks_until_it_is_decided_and_then_goes_on(world: Reviewed) -> None:
    review = world.the_review()
    assert {arm.name for arm in review.arms} == {"champion", "fewer"}
    assert len(review.items) == PROMPTS
    assert len({i.prompt_id for i in review.items}) == PROMPTS
    for _ in range(20):
        world.tick(1000.0)
    assert world.updates()[-1].phase is Phase.REVIEW
    world.vote("ann", "fewer")
    world.tick()
    assert world.updates()[-1].phase is Phase.REVIEW  # one person is not enough
    world.vote("bob", "fewer")
    world.until(lambda: world.updates()[-1].phase not in (Phase.REVIEW, Phase.GATE))
    candidate = world.updates()[-1].candidates[0]
    assert candidate.verdict is Verdict.PASS
    assert "reviewers preferred it" in candidate.reasons[-1]
    assert moves(world)[:3] == ["review", "gate", "register"]
    (opened,) = world.ledger.events(kind="review.opened")
    (closed,) = world.ledger.events(kind="review.closed")
    assert (opened.actor, closed.actor) == ("controller", "reviewers")
    assert closed.data["verdicts"] == {"fewer": "pass"}
    assert closed.data["update_id"] == world.updates()[-1].update_id


@DISTURBED
def test_decided_against_is_rejected_and_says_so(world: Reviewed) -> None:
    champion = world.ledger.champion()
    world.the_review()
    for name in ("ann", "bob"):
        world.vote(name, "champion")
    update = ended(world)
    assert update.phase is Phase.REJECTED
    assert update.candidates[0].verdict is Verdict.FAIL
    assert "less than 40 %" in update.candidates[0].reasons[0]
    assert world.ledger.champion() == champion


@DISTURBED
def test_a_review_that_runs_out_of_time_is_inconclusive(world: Reviewed) -> None:
    world.the_review()
    world.vote("ann", "fewer")  # one person, of two
    world.tick(3 * DAY)
    update = ended(world)
    assert update.phase is Phase.REJECTED
    assert update.candidates[0].verdict is Verdict.INCONCLUSIVE
    assert "its time is up: 1 of at least 2 reviewers" in update.candidates[0].reasons[0]
    (closed,) = world.ledger.events(kind="review.closed")
    assert closed.actor == "controller"


def test_all_votes_and_no_decision_is_inconclusive(world: Reviewed) -> None:
    world.the_review()
    for name in ("ann", "bob"):  # 10 of 24 prompts, at the threshold of 40 %
        world.vote(name, "fewer", "fewer", "champion", "champion", "champion")
    review = ended(world).candidates[0]
    assert review.verdict is Verdict.INCONCLUSIVE
    assert "all votes are in" in review.reasons[0]


def test_who_fails_the_attention_checks_does_not_count(world: Reviewed) -> None:
    review = world.the_review()
    world.vote("ann", "fewer")
    for number in range(1000):  # always the left one
        told, _ = session.upcoming(review, "cat", rows.votes(world.ledger, review.review_id))
        if not told:
            break
        desk.vote(
            world.ledger, review, "cat", key=f"cat-{number}", task=told[0].task,
            choices={"overall": "left"}, seconds=1.0, now=world.clock.now(),
        )  # fmt: skip
    world.tick()
    assert world.updates()[-1].phase is Phase.REVIEW  # cat was set aside: there is one reviewer
    world.vote("bob", "fewer")  # and the pairs that cat judged are shown again
    world.until(lambda: world.updates()[-1].phase not in (Phase.REVIEW, Phase.GATE))
    assert world.updates()[-1].candidates[0].verdict is Verdict.PASS


def test_what_the_gate_refuses_is_not_shown_to_people(tmp_path: Path) -> None:
    world = Reviewed(tmp_path)
    world.first_release()
    world.verdict = Verdict.FAIL
    world.technique()
    assert ended(world).candidates[0].verdict is Verdict.FAIL
    assert world.ledger.all(Review) == []
    world.close()


def test_a_further_candidate_for_a_trigger_is_asked_about_at_half_the_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Reviewed(tmp_path)
    world.first_release()
    monkeypatch.setattr(Controller, "_earlier", lambda self, update, effects: 1)
    world.technique()
    assert world.the_review().alpha == world.parts.config.evaluation.alpha / 2
    world.close()


def test_a_cancelled_update_closes_its_review(world: Reviewed) -> None:
    review = world.the_review()
    assert world.command("update.cancel", update=review.update_id)["ok"]
    world.until(lambda: not world.ledger.wanted_effects(), ticks=5)
    assert world.updates()[-1].phase is Phase.CANCELLED
    assert world.ledger.get(Review, review.review_id).closed_because == "the update was cancelled"


def test_an_updates_evaluation_can_be_reviewed_by_hand(world: Reviewed) -> None:
    review = world.the_review()
    parts = world.parts
    app = App(
        config=parts.config, workspace=world.workspace, ledger=world.ledger, clock=world.clock
    )
    drawn = of_update(app, str(review.update_id))
    assert [d.arm for d in drawn] == list(review.arms)
    assert all(d.file.is_file() for d in drawn)
    with pytest.raises(NotFound, match="no update"):
        of_update(app, "nothing")


def test_pictures_that_are_gone_fail_the_update_and_say_so(tmp_path: Path) -> None:
    world = Reviewed(tmp_path)
    world.first_release()
    report = world._report

    def without(spec: JobSpec) -> dict[str, Json]:
        told = report(spec)
        if spec.payload["champion"]:
            (job_folder(world.workspace, spec.key) / "out" / "images" / "fewer.npz").unlink()
        return told

    world._report = without  # type: ignore[method-assign]
    world.technique()
    update = ended(world)
    assert update.phase is Phase.FAILED
    assert "not reviewed" in update.reason
    world.close()


def test_pictures_hold_nothing_but_pixels(world: Reviewed) -> None:
    review = world.the_review()
    files = sorted(world.workspace.reviews.rglob("*.png"))
    assert len(files) == 2 * PROMPTS
    for file in files:
        raw = file.read_bytes()
        assert chunks(raw) == ["IHDR", "IDAT", "IEND"]
        assert "fewer" not in file.name
        assert "champion" not in file.name
    one = pictures.picture(world.workspace, review, "champion", review.items[0].item)
    broken = pictures.scrambled(one, review.key, review.items[0].item)
    assert chunks(broken) == ["IHDR", "IDAT", "IEND"]
    with Image.open(io.BytesIO(one)) as a, Image.open(io.BytesIO(broken)) as b:
        assert a.size == b.size
        assert np.asarray(a).tolist() != np.asarray(b).tolist()
    key = f"svc:{review.update_id}:review:all:1"
    assert review.review_id == review_id(key)


def chunks(raw: bytes) -> list[str]:
    names: list[str] = []
    at = 8
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        name = raw[at + 4 : at + 8].decode()
        if name != "IDAT" or names[-1:] != ["IDAT"]:
            names.append(name)
        at += size + 12
    return names
