"""Triggers and waiting findings through the whole controller, over twins of every seam."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.integration.test_loop_in_memory import World, write_items
from tests.unit.test_decision_diagnosis import NEW, prompts

from intonaco import accounts
from intonaco.config import Budget
from intonaco.datasets.curation import read_folder
from intonaco.errors import Conflict
from intonaco.executor.data import _new_in, dataset_of
from intonaco.testing.datasets import sample_dataset
from intonaco.triggering import new_items
from intonaco.types import Action, Cause, DatasetVersion, Diagnosis, Finding, Phase, Plan


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**changes: Any) -> World:
        world = World(tmp_path)
        worlds.append(world)
        world.first_release()
        decision = world.parts.config.decision
        triggers = decision.triggers.model_copy(
            update={"debounce_s": 10.0} | changes.pop("triggers", {})
        )
        decision = decision.model_copy(update={"triggers": triggers} | changes)
        config = world.parts.config.model_copy(update={"decision": decision})
        world.parts = replace(world.parts, config=config)
        world.controller = world._controller()
        return world

    yield make
    for world in worlds:
        world.close()


def events(world: World, kind: str) -> list[str]:
    return [e.text for e in world.ledger.events(kind=kind)]


def add_version(world: World, name: str, folder: str, origin: str) -> DatasetVersion:
    write_items(world.root / folder, origin)
    version = world.parts.datasets.put(world.root / folder, name=name)
    with world.ledger.begin() as tx:
        tx.put(version, id=version.version, at=world.clock.now())
    return version


def test_files_that_only_moved_are_not_new(made: Callable[..., World]) -> None:
    """Else a renamed folder would be counted, and learnt, as if nobody had seen it."""
    world = made()
    base = dataset_of(world.parts, world.ledger.champion())
    assert base is not None
    items = read_folder(world.parts.datasets.open(base.version))
    folder = world.root / "moved"
    folder.mkdir()
    lines = []
    for item in items:
        shutil.copyfile(item.file, folder / f"renamed-{item.file.name}")
        lines.append({"file_name": f"renamed-{item.file.name}", "text": item.texts[0]})
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "new.png")
    lines.append({"file_name": "new.png", "text": "new"})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    version = world.parts.datasets.put(folder, name="cats").version
    assert new_items(world.parts, version) == 1
    assert [item.texts for item in _new_in(world.parts, version, base)] == [("new",)]


def test_a_new_dataset_version_is_learnt_once(made: Callable[..., World]) -> None:
    world = made(triggers={"datasets": ("cats",)})
    config = world.parts.config
    recipes = {
        name: recipe.model_copy(update={"replay_sampling": "topic"})
        for name, recipe in config.training.recipes.items()
    }
    training = config.training.model_copy(update={"recipes": recipes})
    world.parts = replace(world.parts, config=config.model_copy(update={"training": training}))
    world.controller = world._controller()
    world.tick()
    version = add_version(world, "cats", "more", "pool")
    world.tick(6.0)
    assert any("nothing has changed for 10 s" in t for t in events(world, "trigger.skipped"))
    world.until(lambda: len(world.updates()) == 2, ticks=30)
    update = world.updates()[-1]
    assert (update.plan.action, update.plan.cause) == (Action.FINE_TUNE, Cause.NEW_DATA)
    assert update.plan.dataset_version == version.version
    world.until(lambda: world.updates()[-1].phase is Phase.ROLLOUT)
    learnt = world.ledger.get(DatasetVersion, str(update_candidate(world).dataset_version))
    assert learnt.items > version.items  # with a replay of the old, and how it was drawn
    assert learnt.mix is not None
    assert (learnt.mix.sampling, learnt.mix.share) == ("topic", learnt.replay)
    assert learnt.mix.replayed == learnt.items - learnt.mix.new > 0
    assert world.command("update.cancel", update=update.update_id)["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    world.controller = world._controller()  # started again: nothing fires twice
    for _ in range(10):
        world.tick(10.0)
    assert len(world.updates()) == 2
    assert len(events(world, "trigger.fired")) == 1


def update_candidate(world: World) -> Any:
    return world.updates()[-1].candidates[0]


def test_a_data_version_that_nobody_added_says_what_to_do(made: Callable[..., World]) -> None:
    world = made(triggers={"dvc": ("cats.dvc",)})
    (world.root / "cats.dvc").write_text(
        "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: cats\n"
    )
    world.tick()
    assert any("intonaco dataset add" in text for text in events(world, "trigger.skipped"))
    for _ in range(5):
        world.tick(10.0)
    assert len(events(world, "trigger.skipped")) == 1


def damaged(world: World, version: DatasetVersion, name: str = "1.png") -> None:
    """A picture of the version is no picture any more."""
    file = world.parts.datasets.open(version.version) / name
    file.chmod(0o644)
    file.write_bytes(b"no picture")


def diagnoses(world: World, cause: Cause) -> list[Diagnosis]:
    return [
        d for d in world.ledger.all(Diagnosis, status="incident") if cause in (d.cause, *d.also)
    ]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_broken_version_is_told_and_not_learnt(
    made: Callable[..., World], restarts: bool
) -> None:
    world = made(triggers={"datasets": ("cats",)})
    world.restarts = restarts
    world.tick()
    version = add_version(world, "cats", "more", "pool")
    damaged(world, version)
    for _ in range(12):
        world.tick(6.0)
    assert len(world.updates()) == 1
    assert any("1 unreadable (first: 1.png)" in t for t in events(world, "trigger.skipped"))
    (told,) = world.ledger.all(Finding)
    assert (told.signal, told.of, told.value_now) == ("dataset cats", "dataset", 1.0)
    (diagnosis,) = diagnoses(world, Cause.BROKEN_FORMAT)
    assert "1 unreadable" in diagnosis.reason
    (plan,) = [p for p in world.ledger.all(Plan) if p.cause is Cause.BROKEN_FORMAT]
    assert plan.action is Action.TELL
    good = world.parts.datasets.put(sample_dataset(world.root / "better", items=4), name="cats")
    with world.ledger.begin() as tx:
        tx.put(good, id=good.version, at=world.clock.now())
    world.until(lambda: len(world.updates()) == 2, ticks=40)
    assert world.updates()[-1].plan.dataset_version == good.version


def test_a_pool_or_reference_that_breaks_is_told_once(made: Callable[..., World]) -> None:
    """Not while it is being written, and not what was there at first."""
    world = made()
    pool = world.root / "data" / "pool"
    world.tick(6.0)
    listed = (pool / "metadata.jsonl").read_text()
    for number in range(3):
        line = json.dumps({"file_name": f"new-{number}.png", "text": "new", "topic": "zero"})
        listed += line + "\n"
        (pool / "metadata.jsonl").write_text(listed)
        world.tick(6.0)
    assert world.ledger.all(Finding) == []
    for _ in range(6):
        world.tick(6.0)
    (told,) = world.ledger.all(Finding)
    assert told.signal == "data.pool"
    assert "3 missing (first: new-0.png)" in told.text
    assert [d.cause for d in diagnoses(world, Cause.BROKEN_FORMAT)] == [Cause.BROKEN_FORMAT]
    write_items(world.root / "data" / "reference", "reference")  # it is there now, and good
    for _ in range(6):
        world.tick(6.0)
    (world.root / "data" / "reference" / "metadata.jsonl").unlink()
    for _ in range(6):
        world.tick(6.0)
    assert [f.signal for f in world.ledger.all(Finding)] == ["data.pool", "data.reference"]
    assert "metadata.jsonl" in world.ledger.all(Finding)[-1].text


def test_items_that_are_left_out_are_no_broken_pool(made: Callable[..., World]) -> None:
    world = made()
    data = world.parts.config.data.model_copy(update={"on_invalid": "drop"})
    config = world.parts.config.model_copy(update={"data": data})
    world.parts = replace(world.parts, config=config)
    world.controller = world._controller()
    world.tick(6.0)
    pool = world.root / "data" / "pool"
    (pool / "stray.png").write_bytes(b"")
    for _ in range(6):
        world.tick(6.0)
    assert world.ledger.all(Finding) == []
    (pool / "metadata.jsonl").write_text("")
    for _ in range(6):
        world.tick(6.0)
    assert [f.signal for f in world.ledger.all(Finding)] == ["data.pool"]


def test_a_broken_pool_is_told_beside_what_would_be_learnt_from_it(
    made: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intonaco.monitoring.monitor.Monitor.refresh", lambda self, f: f)
    world = made()
    world.tick(6.0)
    (world.root / "data" / "pool" / "1.png").write_bytes(b"no picture")
    (world.root / "data" / "pool" / "metadata.jsonl").touch()
    for _ in range(6):
        world.tick(6.0)
    world.tick(7 * 3600.0)  # the finding about the pool is an incident that is long over
    for _ in range(3):
        world.tick(6.0)
    found(world)
    world.until(lambda: diagnoses(world, Cause.CONCEPT_DRIFT) != [], ticks=200)
    latest = diagnoses(world, Cause.CONCEPT_DRIFT)[0]
    assert latest.cause is Cause.CONCEPT_DRIFT
    assert Cause.BROKEN_FORMAT in latest.also
    assert "data.pool: 3 items are good; 1 unreadable (first: 1.png)" in latest.reason


def test_what_triggers_announced_stands_beside_the_causes(
    made: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a plan of the trigger's and none of the finding's."""
    monkeypatch.setattr("intonaco.monitoring.monitor.Monitor.refresh", lambda self, f: f)
    world = made(triggers={"datasets": ("cats",), "min_new_items": 1000})
    world.tick()
    add_version(world, "cats", "more", "pool")
    for _ in range(5):
        world.tick(6.0)
    plans = [p for p in world.ledger.all(Plan) if p.cause is Cause.NEW_DATA]
    assert len(plans) == 1
    found(world)
    world.until(lambda: diagnoses(world, Cause.CONCEPT_DRIFT) != [], ticks=200)
    latest = diagnoses(world, Cause.CONCEPT_DRIFT)[0]
    assert latest.also == (Cause.NEW_DATA,)
    assert "It was announced: dataset cats changed" in latest.reason
    assert [p for p in world.ledger.all(Plan) if p.cause is Cause.NEW_DATA] == plans
    world.tick(8 * 3600.0)
    found(world, "two")
    world.until(lambda: len(diagnoses(world, Cause.CONCEPT_DRIFT)) > 1, ticks=200)
    assert diagnoses(world, Cause.CONCEPT_DRIFT)[-1].also == ()


@pytest.mark.parametrize("of_source", [False, True])
def test_a_dvc_file_that_names_other_data_is_new_data(
    of_source: bool, made: Callable[..., World]
) -> None:
    """By the id of the version's own folder, or of the shards that it was made from."""
    world = made(triggers={"dvc": ("cats.dvc",)})
    first = add_version(world, "cats", "some", "one")
    file = world.root / "cats.dvc"
    file.write_text(f"outs:\n- md5: {first.dvc_md5}.dir\n  hash: md5\n  path: cats\n")
    world.tick()
    version = add_version(world, "cats", "more", "pool")
    if of_source:
        version = replace(version, source_ids=("0123456789abcdef0123456789abcdef",))
        with world.ledger.begin() as tx:
            tx.put(version, id=version.version, at=world.clock.now())
    md5 = version.source_ids[0] if of_source else f"{version.dvc_md5}.dir"
    file.write_text(f"outs:\n- md5: {md5}\n  hash: md5\n  path: cats.tar\n")
    world.until(lambda: len(world.updates()) == 2, ticks=30)
    plan = world.updates()[-1].plan
    assert (plan.cause, plan.dataset_version) == (Cause.NEW_DATA, version.version)


def test_the_webhook_asks_and_the_policy_decides(made: Callable[..., World]) -> None:
    world = made(triggers={"webhook": True})
    assert world.command("trigger.webhook", reason="nightly data")["ok"]
    assert world.command("trigger.webhook", reason="once more")["ok"]
    world.until(lambda: len(world.updates()) == 2, ticks=40)
    plan = world.updates()[-1].plan
    assert plan.cause is Cause.REQUESTED
    assert "once more" in plan.reason
    assert "1 earlier calls" in plan.reason


def test_a_webhook_that_is_off_is_refused(made: Callable[..., World]) -> None:
    world = made(triggers={"datasets": ("cats",)})
    outcome = world.command("trigger.webhook", reason="x")
    assert not outcome["ok"]
    assert "decision.triggers.webhook is off" in outcome["text"]


def test_a_trigger_waits_for_the_running_update(made: Callable[..., World]) -> None:
    world = made(triggers={"webhook": True})
    assert world.command("update.start", reason="by hand")["ok"]
    assert world.command("trigger.webhook", reason="ci")["ok"]
    world.tick(11.0)
    assert any("is under way" in text for text in events(world, "trigger.skipped"))
    assert world.command("update.cancel", update=world.updates()[-1].update_id)["ok"]
    world.until(lambda: len(world.updates()) == 3)
    assert world.updates()[1].phase.final


def found(world: World, name: str = "one") -> Finding:
    champion = world.ledger.champion()
    finding = replace(
        prompts(*NEW),
        finding_id=name,
        service_id="svc",
        release=champion,
        at=world.clock.now(),
        since_at=world.clock.now() - 60,
    )
    with world.ledger.begin() as tx:
        tx.put(finding, id=finding.finding_id, at=finding.at, status="new")
    return finding


def statuses(world: World) -> dict[str, list[str]]:
    kinds = ("new", "waiting", "diagnosed", "cleared")
    return {k: [f.finding_id for f in world.ledger.all(Finding, status=k)] for k in kinds}


def test_a_finding_that_waits_is_judged_again(
    made: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is too little data; after an hour it is counted once more, and nobody is told what was
    said before."""
    monkeypatch.setattr("intonaco.monitoring.monitor.Monitor.refresh", lambda self, f: f)
    world = made()
    finding = found(world)
    world.until(lambda: statuses(world)["waiting"] == [finding.finding_id], ticks=200)
    plans = world.ledger.all(Plan)
    first = plans[-1]
    assert first.action is Action.COLLECT_DATA
    assert first.look_again_at is not None
    told = len(events(world, "plan"))
    world.clock.at = first.look_again_at
    world.tick()
    world.until(lambda: world.ledger.get(Plan, first.plan_id).at > first.at, ticks=20)
    assert len(events(world, "plan")) == told
    assert statuses(world)["waiting"] == [finding.finding_id]


def test_a_finding_of_an_earlier_release_waits_no_more(made: Callable[..., World]) -> None:
    world = made()
    finding = replace(prompts(*NEW), service_id="svc", release="gone")
    with world.ledger.begin() as tx:
        tx.put(finding, id=finding.finding_id, at=finding.at, status="waiting")
    world.tick()
    assert statuses(world)["diagnosed"] == [finding.finding_id]
    assert events(world, "finding.closed") == ["it was of an earlier release"]


def test_a_plan_whose_money_is_gone_is_held(
    made: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reserves between the decision and the reservation: nothing is begun or lost."""
    monkeypatch.setattr("intonaco.monitoring.monitor.Monitor.refresh", lambda self, f: f)
    monkeypatch.setattr("intonaco.watching.Watch.rate", lambda self: 50.0)
    world = made(min_labelled=1)
    real = accounts.set_aside

    def taken(*arguments: Any, **more: Any) -> None:
        raise Conflict("the budget has nothing left")

    monkeypatch.setattr(accounts, "set_aside", taken)
    finding = found(world)
    world.until(lambda: bool(events(world, "plan.held")), ticks=200)
    assert statuses(world)["waiting"] == [finding.finding_id]
    assert len(world.updates()) == 1
    assert len(events(world, "budget.used_up")) == 1
    monkeypatch.setattr(accounts, "set_aside", real)
    world.clock.advance(3700.0)
    world.until(lambda: len(world.updates()) == 2, ticks=50)
    assert world.ledger.spent()[1] > 0


def test_a_budget_that_is_used_up_is_told_once_until_some_comes_back(
    made: Callable[..., World],
) -> None:
    world = made(triggers={"datasets": ("cats", "dogs")})
    config = world.parts.config
    spent = accounts.money(world.ledger, config, world.clock.now()).settled
    assert spent > 0
    budget = config.decision.budget.model_copy(update={"amount": spent + 1e-6, "gpu_hours": 99.0})
    decision = config.decision.model_copy(update={"budget": budget})
    world.parts = replace(world.parts, config=config.model_copy(update={"decision": decision}))
    world.controller = world._controller()
    for _ in range(3):
        world.tick()
    for name in ("cats", "dogs"):  # the second is held back too, and says nothing new
        add_version(world, name, name, "pool")
        for _ in range(30):
            world.tick(5.0)
    assert len(world.updates()) == 1
    (text,) = events(world, "budget.used_up")
    assert text.startswith("the budget is used up: an update because of new data is estimated at ")
    assert f"{spent:.2f} of {spent:.2f} EUR are spent, 0.00 reserved and 0.00 left" in text
    assert "of 99.00 h of the machine are spent" in text
    assert "some comes back on 2023-12-" in text
    world.controller = world._controller()
    world.clock.advance(31 * 86_400.0)  # what the first release cost has left the period
    for _ in range(5):
        world.tick()
    _, again = events(world, "budget.used_up")
    assert f"0.00 of {spent:.2f} EUR are spent" in again
    told = [e for e in world.notifier.events if e.kind == "budget.used_up"]
    assert len(told) == 2


def test_by_hand_there_is_no_more_than_the_budget(made: Callable[..., World]) -> None:
    world = made(budget=Budget(amount=0.0))
    outcome = world.command("update.start", reason="more")
    assert not outcome["ok"]
    assert "estimated at" in outcome["text"]
    assert len(world.updates()) == 1


def test_a_reservation_stops_the_jobs(made: Callable[..., World]) -> None:
    world = made()
    assert world.command("update.start", reason="more")["ok"]
    world.until(lambda: world.updates()[-1].phase is Phase.EVALUATE)
    update = world.updates()[-1]
    specs = {s.key: s for s in world.submitted if update.update_id in s.key}
    train = next(s for key, s in specs.items() if ":train:" in key)
    assert train.max_seconds == pytest.approx(update.plan.limits["tune"])
    assert train.max_seconds == pytest.approx(610.0)  # the estimate and ten minutes


def test_the_state_is_plain_json(made: Callable[..., World]) -> None:
    world = made(triggers={"datasets": ("cats",), "recipes": True})
    world.tick()
    stored = world.ledger.setting("triggers")
    assert json.loads(json.dumps(stored)) == stored
    assert set(stored["known"]) == {"dataset:cats", "recipe:tune", "recipe:full"}
