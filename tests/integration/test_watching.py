"""The controller's watch over real logs and a real ledger: each line of scores and of feedback
counts once, killed or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.content import Pictures, feedback
from tests.traffic import Traffic

from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.config import parse
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.segment_log import SegmentWriter
from intonaco.types import Feedback, Finding, Json, ScoredRecord
from intonaco.watching import COMMIT_BYTES_PER_SECOND, Watch
from intonaco.workspace import Workspace

CONFIG = """
service: digits
monitoring:
  requests_between_false_alarms: 5000
  feedback: {mature_after_s: 30}
  signals:
    prompts: {of: prompt_embedding, reference: 150}
    thumbs: {of: thumbs, reference: 80}
    response_rate: {of: response_rate, reference: 100}
    diversity: {of: diversity, direction: up, reference: 150, tolerance: 0.02}
"""
Line = ScoredRecord | Feedback


class World:
    """The logs of a scorer and two gateways, and a controller's watch that can be killed."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "digits")
        with self.ledger.begin() as tx:
            fence = tx.lease("test", 0.0, 1e12)
            tx.crown("a" * 64, 0.0, "first")
        assert fence is not None
        self.fence = fence
        self.scores = SegmentWriter(self.workspace.scores, "scorer")
        self.commits = 0
        self.votes = [SegmentWriter(self.workspace.feedback, f"gateway-{n}") for n in range(2)]
        self.start()

    def start(self) -> None:
        facts: dict[str, Any] = {
            "config": parse(CONFIG),
            "workspace": self.workspace,
            "ledger": self.ledger,
        }
        missing = {
            name: cast(Any, None) for name in Parts.__dataclass_fields__ if name not in facts
        }
        self.watch = Watch(Parts(**facts, **missing | {"clock": FakeClock()}))

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if isinstance(line, Feedback):
                self.votes[line.seq % 2].append(encode(line))
            else:
                self.scores.append(encode(line))

    def look(self, now: float) -> None:
        before = self.watch._committed_at
        self.watch.look(self.fence, now)
        self.commits += self.watch._committed_at > before

    def state(self) -> Json:
        return json.dumps(self.watch._state()["monitor"])

    def close(self) -> None:
        for each in (self.scores, *self.votes):
            each.close()
        self.ledger.close()


def traffic(n: int = 620) -> list[tuple[float, Line]]:
    """What is written to the logs and when: a fall of thumbs after the first 330 images, and a
    collapse at the end."""
    pictures, random = Pictures(1), np.random.default_rng(1)
    log: list[tuple[float, Line]] = []
    for k in range(n):
        item = pictures.ask(collapse=1.0 if k > n - 100 else 0.0)
        log.append((item.record.at + 0.5, item))
        if random.random() < 0.6:
            vote = "up" if random.random() < (0.85 if k < 330 else 0.3) else "down"
            said = feedback(item, float(random.exponential(8.0)), vote=vote, seq=k)
            log.append((said.at, said))
    return sorted(log, key=lambda entry: entry[0])


def run(world: World, log: Sequence[tuple[float, Line]], *, every: Callable[[int], bool]) -> None:
    """Looks once a second at what was written since; ``every``: whether the watch is killed before
    a look, with all that it has not committed."""
    begin = log[0][0]
    n = looks = 0
    last = log[-1][0] + 120.0
    now = begin
    while now < last:
        now += 1.0
        start = n
        while n < len(log) and log[n][0] <= now:
            n += 1
        world.write([line for _, line in log[start:n]])
        looks += 1
        if every(looks):
            world.start()
        world.look(now)


def told(world: World) -> list[tuple[str, int, float, float]]:
    found = world.ledger.all(Finding)
    return [(f.signal, f.request, f.evidence, f.value_now) for f in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, list[Any]]:
    world = World(tmp_path_factory.mktemp("undisturbed"))
    run(world, traffic(), every=lambda n: False)
    result = world.state(), told(world)
    world.close()
    return result


def test_votes_and_pictures_are_noticed(undisturbed: tuple[Json, list[Any]]) -> None:
    assert {signal for signal, *_ in undisturbed[1]} >= {"thumbs", "diversity"}


@pytest.mark.parametrize("every", [3])
def test_killed_and_started_again_it_knows_the_same(
    tmp_path: Path, undisturbed: tuple[Json, list[Any]], every: int
) -> None:
    """Killed before every third look, and all begun anew from the ledger."""
    world = World(tmp_path)
    run(world, traffic(), every=lambda n: n % every == 0)
    assert told(world) == undisturbed[1]
    assert world.state() == undisturbed[0]
    world.close()


def test_a_kill_between_feeding_and_committing_counts_nothing_twice(
    tmp_path: Path, undisturbed: tuple[Json, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)

    class Killed(BaseException):
        pass

    commit, left = Watch._commit, [0]

    def killed(self: Watch, fence: int, now: float, findings: list[Finding]) -> None:
        left[0] += 1
        if left[0] % 4 == 1:
            raise Killed
        commit(self, fence, now, findings)

    monkeypatch.setattr(Watch, "_commit", killed)
    look = world.look

    def looked(now: float) -> None:
        try:
            look(now)
        except Killed:
            world.start()
            look(now)

    monkeypatch.setattr(world, "look", looked)
    run(world, traffic(), every=lambda n: False)
    assert left[0] > 100
    assert told(world) == undisturbed[1]
    assert world.state() == undisturbed[0]
    world.close()


def test_a_line_that_is_no_feedback_is_skipped(tmp_path: Path) -> None:
    world = World(tmp_path)
    item = Pictures(1).ask()
    world.votes[0].append('{"nonsense": 1}')
    world.write([feedback(item, 1.0, vote="up", seq=0), item])
    world.look(item.record.at)
    assert world.watch.monitor.requests == 1
    world.close()


def test_a_flood_of_feedback_is_heard_before_scores_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intonaco.watching.FEEDBACK_BATCH", 10)
    world = World(tmp_path)
    pictures = Pictures(1)
    items = [replace(i, prompt_embedding=()) for i in pictures.many(25)]
    world.write([*items, *(feedback(i, 1.0, vote="up", seq=0) for i in items)])
    for expected in (0, 0, 25):
        world.look(items[-1].record.at)
        assert world.watch.monitor.requests == expected
    assert world.watch.monitor.waiting == 25
    world.close()


def test_a_large_state_is_written_seldom_and_loses_nothing(tmp_path: Path) -> None:
    """Embeddings of 768 dimensions: megabytes of state, of which no second writes more than half a
    megabyte on average; killed in between, what was read since is read again."""
    pictures = Pictures(1)
    pictures.traffic = Traffic(seed=1, dimension=768)
    pictures.topics = {name: pictures._direction() for name in pictures.topics}
    log: list[tuple[float, Line]] = []
    for _ in range(300):
        item = pictures.ask()
        log.append((item.record.at + 0.5, item))
    states = []
    for name, dies in (("alive", False), ("killed", True)):
        world = World(tmp_path / name)
        run(world, log, every=lambda n, dies=dies: dies and n == 100)  # type: ignore[misc]
        stored = world.ledger.consumer("watch")
        assert stored is not None
        if not dies:
            assert len(json.dumps(stored[1])) > 4 * COMMIT_BYTES_PER_SECOND
            looks = len(world.ledger.signal_points(limit=10_000))  # what people see is of now
            assert looks > log[-1][0] - log[0][0]
            assert world.commits < looks / 3
        states.append((world.state(), told(world)))
        world.close()
    assert states[0] == states[1]
