"""What a gateway counts at its door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fixtures_gateway import in_one_loop

from intonaco.codec import decode
from intonaco.segment_log import SegmentReader, SegmentWriter
from intonaco.types import Tally


def lines(root: Path) -> list[Tally]:
    return [decode(Tally, line) for line in SegmentReader(root / "tallies").read()]


async def test_answers_failures_and_refusals_by_code_without_content(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        tallies = stage.gateway.tallies
        tallies.write()
        assert not (tmp_path / "tallies").exists()  # nothing happened
        await stage.ask(prompt="a secret cat")
        await stage.ask(prompt="a secret cat", n=2)
        await stage.ask(prompt="a secret cat", steps=-1)
        await stage.ask(promt="a secret cat")
        tallies.write()
        tallies.write()  # nothing new: no line
        await stage.ask(prompt="a secret cat", size="wrong")
        tallies.write()
        first, second = lines(tmp_path)
    assert (first.requests, first.images, first.failed, first.in_flight) == (4, 3, 0, 0)
    assert sum(first.refused.values()) == 2
    assert (first.seq, second.seq) == (0, 1)
    assert (second.requests, second.images) == (1, 0)
    assert second.refused == {"invalid_value": 1}
    assert (first.record_epoch, first.record_seq) == (1, 3)
    text = "".join(p.read_text() for p in (tmp_path / "tallies").glob("*/*.jsonl"))
    assert "secret" not in text
    assert json.loads(text.splitlines()[0])["service_id"]


async def test_a_disk_that_fails_delays_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        tallies = stage.gateway.tallies
        await stage.ask(prompt="x")
        tallies.write()

        def full(_: SegmentWriter, line: str) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(SegmentWriter, "append", full)
            tallies.state.requests += 1
            tallies.write()
        tallies.state.requests += 1
        tallies.write()
        assert [t.requests for t in lines(tmp_path)] == [1, 2]
        assert stage.gateway.metrics.storage_errors >= 1
