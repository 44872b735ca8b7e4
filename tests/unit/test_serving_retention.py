"""What is deleted, and what never is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
from tests.fixtures_gateway import in_one_loop

from intonaco.clock import FakeClock
from intonaco.config import parse
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway.main import build
from intonaco.serving.gateway.retention import DAY_S, expired_minutes, prune
from intonaco.workspace import Workspace

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def test_minutes_by_name() -> None:
    names = ["20231114/2212", "20231114/2213", "20231114/2214", "20220101/0000", "junk", "2023/x"]
    assert expired_minutes(names, NOW) == ["20231114/2212", "20220101/0000"]


def old_file(path: Path, days: float, text: str = "{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - days * DAY_S,) * 2)
    return path


def test_prune(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    gone = [
        old_file(workspace.images / "20230901/1200/a.png", 74),
        old_file(workspace.images / "20230901/1201/b.png", 74),
        old_file(workspace.records / "gateway/00000001-000000.jsonl", 60),
        old_file(workspace.scores / "scorer/00000001-000000.jsonl", 60),
        old_file(workspace.feedback / "gateway/00000001-000000.jsonl", 60),
    ]
    kept = [
        old_file(workspace.images / "20231114/1200/c.png", 0),
        old_file(workspace.images / "by-hand/d.png", 500),
        old_file(workspace.records / "gateway/00000001-000001.jsonl", 60),  # not read to its end
        old_file(workspace.records / "gateway/00000002-000000.jsonl", 60),  # the newest
        old_file(workspace.scores / "scorer/00000002-000000.jsonl", 0),
        old_file(workspace.feedback / "gateway/00000002-000000.jsonl", 60),
        old_file(workspace.feedback / "votes.db", 500),
        old_file(workspace.datasets / "x/data.jsonl", 500),
    ]
    offset = {"records": {"gateway/00000001-000000.jsonl": 3, "gateway/00000001-000001.jsonl": 2}}
    workspace.run.mkdir()
    (workspace.run / "scorer-offset.json").write_text(json.dumps(offset))
    assert prune(workspace, NOW, 30) == 5
    assert [p for p in gone if p.exists()] == []
    assert [p for p in kept if not p.exists()] == []
    assert not (workspace.images / "20230901").exists()
    assert prune(workspace, NOW, 30) == 0
    (workspace.run / "scorer-offset.json").write_text("cut sh")
    assert prune(workspace, NOW + 99 * DAY_S, 30) > 0
    assert kept[2].exists(), "an offset that cannot be read frees nothing"


def test_records_wait_for_a_scorer_that_has_never_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    record = old_file(workspace.records / "gateway/00000001-000000.jsonl", 60)
    old_file(workspace.records / "gateway/00000002-000000.jsonl", 60)
    assert prune(workspace, NOW, 30, scored=True) == 0
    assert record.exists()
    assert prune(workspace, NOW, 30) == 1
    assert not record.exists()


async def test_the_configuration_tells_of_the_scorer(tmp_path: Path) -> None:
    for number, extractor in enumerate(("", "extractor: {type: clip, path: x}")):
        workspace = Workspace(tmp_path / str(number))
        config = parse(f"service: tiny\n{extractor}\nserving: {{gateway: {{retention_days: 7}}}}")
        old_file(workspace.records / "gateway/00000001-000000.jsonl", 60)
        async with httpx.AsyncClient() as http:
            gateway = build(workspace, config, http=http, clock=FakeClock(NOW))
            await gateway.tidy()
            await gateway.close()
        assert gateway.metrics.pruned == (0 if extractor else 1)


def test_an_empty_workspace(tmp_path: Path) -> None:
    assert prune(Workspace(tmp_path), NOW, 1) == 0


async def test_the_gateway_deletes_what_it_wrote(tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    async with in_one_loop(tmp_path, "retention_days: 7", clock=clock) as stage:
        stage.route()
        workspace = stage.workspace

        def files(root: Path) -> list[Path]:
            return sorted(p for p in root.rglob("*") if p.is_file())

        answer = await stage.ask()
        body = {"token": answer.json()["data"][0]["feedback_token"], "vote": "up"}
        assert (await stage.http.post("/v1/feedback", json=body)).status_code == 201
        await stage.gateway.tidy()
        assert len(files(workspace.images)) == 1
        for path in files(workspace.records) + files(workspace.feedback):
            os.utime(path, (NOW, NOW))
        clock.advance(8 * DAY_S)
        await stage.ask()
        await stage.gateway.tidy()
        assert len(files(workspace.images)) == 1
        assert len(list(SegmentReader(workspace.records).read())) == 1, "only the second is left"
        assert list(SegmentReader(workspace.feedback).read()) == []
        assert "intonaco_gateway_pruned_total 3" in await stage.metrics()
        await stage.ask()
        assert len(list(SegmentReader(workspace.records).read())) == 2, "writing goes on"


async def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    async with in_one_loop(tmp_path, clock=clock) as stage:
        stage.route()
        await stage.ask()
        clock.advance(9999 * DAY_S)
        await stage.gateway.tidy()
        assert len(list(stage.workspace.images.rglob("*.png"))) == 1
