"""Live traffic becomes training data: through the whole controller, over twins of every seam."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.integration.test_loop_in_memory import World, in_rollout
from tests.unit.test_datasets_proposing import record, scored, write_scores
from typer.testing import CliRunner

from intonaco import config, readmodel
from intonaco.cli.main import app
from intonaco.codec import encode
from intonaco.datasets import checking, proposals
from intonaco.datasets.curation import Item, read_folder
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.digests import Digests
from intonaco.types import DatasetVersion, Feedback, Phase, RolloutStatus

SERVED = 12


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(*, restarts: bool = False, **changes: Any) -> World:
        world = World(tmp_path, restarts=restarts)
        worlds.append(world)
        world.first_release()
        serve(world)
        set_data(world, **changes)
        return world

    yield make
    for world in worlds:
        world.close()


def set_data(world: World, pool: str | None = "data/pool", **curation: Any) -> None:
    old = world.parts.config
    told = {"enabled": True, "consents": "consents.jsonl", "min_score": 0.5} | curation
    data = config.Data(
        train=old.data.train,
        pool=pool,
        reference=old.data.reference,
        checks={"near_duplicate": "warn"},
        curation=config.Curation.model_validate(told),
    )
    world.parts = replace(world.parts, config=old.model_copy(update={"data": data}))
    world.controller = world._controller()


def serve(world: World) -> None:
    """Twelve users got an image each and voted it up; all but the last agreed."""
    workspace, now = world.workspace, world.clock.now()
    workspace.images.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for n in range(SERVED):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(workspace.images / f"{n}.png")
        records.append(record(n, at=now - 60 + n, service_id="svc"))
    hashes = [f"{int(w):016x}" for w in rng.integers(1, 2**63, SERVED)]
    write_scores(workspace, (scored(r, image_hash=h) for r, h in zip(records, hashes, strict=True)))
    digests = Digests(workspace.instance_key())
    writer = SegmentWriter(workspace.feedback, "gateway")
    for one in records:
        writer.append(encode(vote(one.request_id, digests.unit(one.unit), one.seq, now)))
    writer.close()
    say(world, {f"user{n}": n != SERVED - 1 for n in range(SERVED)})


def vote(request: str, unit: str, seq: int, at: float) -> Feedback:
    return Feedback(
        gateway="gateway",
        gateway_epoch=1,
        seq=seq,
        service_id="svc",
        at=at,
        request_id=request,
        made_at=at,
        assigned_arm="champion",
        release="rel",
        unit=unit,
        kind="explicit",
        vote="up",
    )


def say(world: World, consents: dict[str, bool]) -> None:
    with (world.root / "consents.jsonl").open("a") as file:
        for unit, consent in consents.items():
            file.write(json.dumps({"unit": unit, "consent": consent}) + "\n")


def start(world: World, **how: Any) -> str:
    assert world.command("update.start", reason="live traffic", **how)["ok"]
    return world.updates()[-1].update_id


def learnt(world: World) -> tuple[DatasetVersion, list[Item]]:
    version = str(world.updates()[-1].candidates[0].dataset_version)
    items = read_folder(world.parts.datasets.open(version))
    return world.ledger.get(DatasetVersion, version), items


def past_dataset(world: World) -> bool:
    return world.updates()[-1].phase is not Phase.DATASET


@pytest.mark.parametrize("restarts", [False, True], ids=["steady", "killed"])
def test_the_update_waits_for_a_person_and_uses_what_they_kept(
    made: Callable[..., World], restarts: bool
) -> None:
    world = made(restarts=restarts, max_generated=0.4)
    update_id = start(world)
    world.until(lambda: proposals.find(world.workspace, update_id) is not None)
    for _ in range(6):
        world.tick(10.0)
    assert world.updates()[-1].phase is Phase.DATASET
    facts = readmodel.update_facts(
        world.ledger, world.workspace, world.updates()[-1], world.clock.now()
    )
    assert facts["waiting_for"] == "a person to look through 11 proposed images (/curation)"
    (event,) = world.ledger.events(kind="curation.proposed")
    assert "11 images" in event.text
    assert event.data["left_out"] == {"consent": 1}
    proposal = proposals.find(world.workspace, update_id)
    assert proposal is not None
    unknown = world.command("curation.approve", update=update_id, drop=["strange"])
    assert "not in the proposal: strange" in unknown["text"]
    assert world.updates()[-1].phase is Phase.DATASET
    dropped = [i.item_id for i in proposal.items if i.request in ("q-0", "q-1")]
    say(world, {"user2": False})  # withdrawn after it was proposed
    outcome = world.command("curation.approve", update=update_id, drop=dropped, reason="fine")
    assert outcome == {"ok": True, "text": f"9 of 11 proposed images may be used for {update_id}"}
    world.until(lambda: past_dataset(world))
    version, items = learnt(world)
    generated = [i for i in items if i.generated]
    assert 0 < len(generated) <= 0.4 * len(items)
    assert {str(i.provenance["request"]) for i in generated} <= {f"q-{n}" for n in range(3, 11)}
    assert {str(i.provenance["release"]) for i in generated} == {"rel"}
    assert {i.origin for i in generated} == {"traffic/feedback"}
    assert "user" not in (world.parts.datasets.open(version.version) / "metadata.jsonl").read_text()
    assert {i.texts[0].split()[0] for i in items if not i.generated} == {"train", "pool"}
    report = json.loads(
        (checking.kept(world.workspace, version.version) / "report.json").read_text()
    )
    assert (report["verdict"], report["kept"]) == ("pass", version.items)
    text = world.ledger.events(kind="update.phase", newest=True, limit=9)
    assert any("were made by a model" in e.text for e in text)
    again = world.command("curation.reject", update=update_id)
    assert again["text"] == "ann has given a word on it already"


def test_a_set_that_is_rejected_is_not_used(made: Callable[..., World]) -> None:
    world = made()
    update_id = start(world)
    world.until(lambda: proposals.find(world.workspace, update_id) is not None)
    assert world.command("curation.reject", update=update_id, reason="blurred")["ok"]
    world.until(lambda: past_dataset(world))
    assert not any(i.generated for i in learnt(world)[1])


def test_what_was_dropped_once_is_not_proposed_to_a_later_update(
    made: Callable[..., World],
) -> None:
    world = made(max_generated=0.4)
    update_id = start(world)
    world.until(lambda: proposals.find(world.workspace, update_id) is not None)
    proposal = proposals.find(world.workspace, update_id)
    assert proposal is not None
    dropped = [i.item_id for i in proposal.items if i.request in ("q-0", "q-1")]
    assert world.command("curation.approve", update=update_id, drop=dropped)["ok"]
    assert world.command("update.cancel", update=update_id)["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    set_data(world, review="none", max_generated=0.4)
    start(world)
    world.until(lambda: past_dataset(world))
    (_, event) = world.ledger.events(kind="curation.proposed")  # none of the cancelled one again
    assert event.data["left_out"] == {"consent": 1, "dropped": 2}
    generated = {str(i.provenance["request"]) for i in learnt(world)[1] if i.generated}
    assert generated
    assert not generated & {"q-0", "q-1"}


def test_without_review_nobody_is_asked(made: Callable[..., World]) -> None:
    world = made(review="none", max_generated=0.3)
    start(world)
    world.until(lambda: past_dataset(world))
    version, items = learnt(world)
    assert sum(i.generated for i in items) == int(0.3 * len(items))
    assert version.replay > 0.3  # more that is real was drawn than the recipe asks for


def test_an_update_that_nobody_looks_at_fails(made: Callable[..., World]) -> None:
    world = made()
    update_id = start(world)
    world.until(lambda: proposals.find(world.workspace, update_id) is not None)
    world.tick(8 * 86_400.0)
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.FAILED
    assert "nobody looked through" in world.updates()[-1].reason


def test_a_consent_file_that_is_gone_fails_the_update(made: Callable[..., World]) -> None:
    world = made()
    (world.root / "consents.jsonl").unlink()
    start(world)
    world.until(lambda: world.updates()[-1].phase.final)
    assert "data.curation.consents" in world.updates()[-1].reason


def test_who_withdraws_is_not_learnt_from_again(made: Callable[..., World]) -> None:
    """Also not by a full retraining, which would learn the champion's own data once more."""
    world = made(review="none", max_generated=0.5)
    start(world)
    rollout = in_rollout(world)
    with world.ledger.begin() as tx:
        tx.rollout(replace(rollout, status=RolloutStatus.PROMOTED, reason="test"))
        tx.crown(rollout.challenger, world.clock.now(), "test")
    world.until(lambda: world.updates()[-1].phase.final)
    before = [str(i.provenance["request"]) for i in learnt(world)[1] if i.generated]
    gone = before[0].removeprefix("q-")
    say(world, {f"user{gone}": False})
    set_data(world, pool=None, min_score=1e9, max_generated=0.5)  # nothing new
    start(world, action="full_retrain")
    world.until(lambda: past_dataset(world))
    after = {str(i.provenance["request"]) for i in learnt(world)[1] if i.generated}
    assert f"q-{gone}" not in after
    assert after == set(before[1:])


def test_a_command_for_what_is_not_there_is_answered(made: Callable[..., World]) -> None:
    world = made(enabled=False)
    update_id = start(world)
    assert not world.command("curation.approve", update="gone")["ok"]
    assert "nothing was proposed" in world.command("curation.approve", update=update_id)["text"]
    assert not world.command("curation.maybe", update=update_id)["ok"]
    world.until(lambda: past_dataset(world))
    assert not list(proposals.root(world.workspace).glob("*"))


def test_training_data_that_leaks_stops_the_update(made: Callable[..., World]) -> None:
    world = made(enabled=False)
    reference = world.root / "data" / "reference"
    (reference / "r.png").write_bytes((world.root / "data" / "pool" / "1.png").read_bytes())
    start(world)
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.FAILED
    assert "is the held-out image r.png" in world.updates()[-1].reason


def test_what_is_dropped_is_neither_learnt_nor_forgotten(made: Callable[..., World]) -> None:
    world = made(enabled=False)
    (world.root / "data" / "reference" / "r.png").write_bytes(
        (world.root / "data" / "pool" / "1.png").read_bytes()
    )
    data = world.parts.config.data.model_copy(update={"checks": {"leak": "drop"}})
    changed = world.parts.config.model_copy(update={"data": data})
    world.parts = replace(world.parts, config=changed)
    world.controller = world._controller()
    start(world)
    world.until(lambda: past_dataset(world))
    version, items = learnt(world)
    assert "pool 1" not in {i.texts[0] for i in items}
    assert {"pool 0", "pool 2", "pool 3"} <= {i.texts[0] for i in items}
    kept = checking.kept(world.workspace, version.version)
    assert json.loads((kept / "report.json").read_text())["left_out_count"] == 1


def test_the_command_line_shows_and_asks(
    made: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = made()
    update_id = start(world)
    world.until(lambda: proposals.find(world.workspace, update_id) is not None)
    world.workspace.config_file.write_text(
        "service: svc\ndata: {curation: {enabled: true, consents: consents.jsonl}}\n"
    )
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        "intonaco.cli.curate.ask", lambda app, kind, given, as_json: asked.append((kind, given))
    )

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["dataset", *words, "-w", str(world.root)])
        assert done.exception is None, done.exception
        return done.stdout

    assert [p["update_id"] for p in json.loads(run("proposed", "--json"))] == [update_id]
    assert re.search(rf"{update_id} +11 +12 +yes", run("proposed"))
    card = json.loads(run("proposed", update_id, "--json"))
    shown = run("proposed", update_id)
    assert all(i["id"] in shown and i["prompt"] in shown for i in card["items"])
    first = card["items"][0]["id"]
    run("approve", update_id, "--drop", first, "--reason", "blurred")
    run("reject", update_id)
    assert asked == [
        ("curation.approve", {"update": update_id, "drop": [first], "reason": "blurred"}),
        ("curation.reject", {"update": update_id, "reason": ""}),
    ]
