"""Workers of an equal slice as real processes: started beside the champion's own, started again
when one is killed, and ended, while the champion's own worker lives through it all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from tests import fixtures_tiny
from tests.fixtures_serving import until

from intonaco import config
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.releases import ReleaseStore
from intonaco.rollout import baseline
from intonaco.serving.local import LocalServingBackend
from intonaco.types import (
    Arm,
    ArmRole,
    Rollout,
    RolloutStatus,
    RoutingTable,
    ServingStatus,
)
from intonaco.workspace import Workspace


def table(release: str, urls: tuple[str, ...]) -> RoutingTable:
    arm = Arm(name="champion", role=ArmRole.CHAMPION, release=release, urls=urls, weight=1.0)
    return RoutingTable(service_id="svc", epoch=1, salt="s", arms=(arm,))


def test_its_workers_come_and_go_beside_the_champions_own(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(tmp_path / "p"))
    rid = release.release_id
    found = config.parse("service: svc\nrollout: {baseline: true}")
    ledger = Ledger.open(workspace.ledger, "svc")
    serving = LocalServingBackend(workspace, found.serving)
    parts = cast(
        Parts,
        SimpleNamespace(
            config=found,
            ledger=ledger,
            serving=serving,
            releases=ReleaseStore(workspace, release.service_id),
        ),
    )
    rollout = Rollout(
        rollout_id="r1",
        service_id="svc",
        update_id="u1",
        champion=rid,
        challenger="b" * 64,
        steps=(),
        status=RolloutStatus.RUNNING,
        started_at=0.0,
        baseline=1,
    )
    with ledger.begin() as tx:
        fence = tx.lease("me", 0.0, 1e9)
    assert fence is not None
    now = 0.0

    def look(going: Rollout | None, confirmed: RoutingTable | None = None) -> ServingStatus:
        nonlocal now
        now += 10.0
        status = serving.status(rid)
        own, equal = baseline.look(parts, going, {"challenger": 0.2}, status, confirmed, fence, now)
        assert len(own.urls) <= 1
        assert not {*own.urls} & {*equal}
        return status

    try:
        serving.deploy(release)
        alone = until(lambda: serving.status(rid), lambda s: s.ready)
        both = until(lambda: look(rollout), lambda s: s.ready and len(s.urls) == 2)
        assert both.urls[0] == alone.urls[0]
        assert baseline.missing(parts, rollout, both) == ""

        first, second = (workspace.process(f"worker-{release.short}{k}") for k in ("", "-1"))
        assert first is not None
        assert second is not None
        os.kill(second.pid, signal.SIGKILL)
        ill = until(lambda: serving.status(rid), lambda s: bool(s.error))
        assert not ill.ready
        assert baseline.answers(parts, ill)
        assert baseline.of_its_own(parts, ill).ready
        assert "0 of 1 workers" in baseline.missing(parts, rollout, ill)
        again = until(lambda: look(rollout), lambda s: s.ready and len(s.urls) == 2)
        assert again.urls[0] == alone.urls[0]

        look(None, table(rid, again.urls))
        assert serving.status(rid).replicas == 2  # users are sent to both
        cut = table(rid, alone.urls)
        until(lambda: look(None, cut), lambda s: s.replicas == 1 and s.ready)
        assert serving.status(rid).urls == alone.urls
        assert ledger.setting(baseline.SETTING) is None
        still = workspace.process(f"worker-{release.short}")
        assert still is not None
        assert still.pid == first.pid
    finally:
        serving.retire(rid)
        serving.close()
        ledger.close()
    assert [p.name for p in workspace.processes()] == []
