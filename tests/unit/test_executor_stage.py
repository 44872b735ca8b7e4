"""Staging: deployed once, looked at until it is ready or dead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from intonaco.executor import Done, Failed, Parts, Pending
from intonaco.executor.service import Stage
from intonaco.ledger import Effect
from intonaco.testing.serving import MemoryServingBackend
from intonaco.types import Provenance, Release, ServingSpec

RELEASE = Release(
    release_id="a" * 64,
    service_id="s",
    serving=ServingSpec(pipeline_class="P", weights={}, scheduler="none", generation={}),
    provenance=Provenance(created_at=0.0),
    path="p",
)
STAGE = Effect(key="s:u:stage:1", kind="stage", subject="u", payload={"name": RELEASE.release_id})


def parts(serving: MemoryServingBackend, *, cancelled: bool = False) -> Parts:
    releases = SimpleNamespace(get=lambda rid: RELEASE)
    update = SimpleNamespace(cancel_requested=cancelled, rollout_id=None)
    found = SimpleNamespace(
        serving=serving,
        releases=releases,
        smoke=lambda url, release: 0.1,
        ledger=SimpleNamespace(champion=lambda: None, get=lambda kind, name: update),
    )
    return cast(Parts, found)


def test_a_worker_that_dies_while_it_loads_is_told_and_not_started_again() -> None:
    serving, stage = MemoryServingBackend(polls_until_ready=5), Stage()
    p = parts(serving)
    assert isinstance(stage(p, STAGE), Pending)
    serving.failing[RELEASE.release_id] = "worker ended: out of memory"
    assert stage(p, STAGE) == Failed("worker ended: out of memory")
    assert [m for m, _ in serving.calls] == ["deploy", "retire"]
    serving.failing.clear()
    stage(p, STAGE)  # somebody tries again
    assert serving.deployments[RELEASE.release_id] == 2


def test_a_controller_that_was_started_again_adopts_the_worker() -> None:
    serving = MemoryServingBackend(polls_until_ready=1)
    assert isinstance(Stage()(parts(serving), STAGE), Pending)
    serving.draining.add(RELEASE.release_id)  # what ended before was about to take it out
    assert isinstance(Stage()(parts(serving), STAGE), Done)
    assert serving.deployments[RELEASE.release_id] == 1


def test_nothing_is_loaded_for_an_update_that_is_cancelled() -> None:
    serving, stage = MemoryServingBackend(polls_until_ready=5), Stage()
    assert isinstance(stage(parts(serving), STAGE), Pending)
    ended = stage(parts(serving, cancelled=True), STAGE)
    assert ended == Failed("its update is being cancelled")
    another = Stage()(parts(serving, cancelled=True), STAGE)  # of a controller started again
    assert another == ended
    assert serving.deployments[RELEASE.release_id] == 1
