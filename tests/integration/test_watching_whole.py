"""All default signals at once, over the logs of two gateways and a scorer: killed in mid-stream
again and again, the watch ends with the same evidence to the last digit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tests.content import Pictures, feedback

from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.config import parse
from intonaco.config.signals import DEFAULT_SIGNALS
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.segment_log import SegmentWriter
from intonaco.types import Feedback, Finding, Json, Record, ScoredRecord, Tally, TrafficWindow
from intonaco.watching import Watch
from intonaco.workspace import Workspace

GATEWAYS = ("gateway-0", "gateway-1")
REQUESTS = 520
REFERENCE = 150
TURNS = 420  # the request from which images are one and the same, slow, failing and voted down


def config() -> str:
    """The default signals and refusals, with short references."""
    signals = {
        name: signal.model_dump(mode="json", exclude_unset=True) | {"reference": REFERENCE}
        for name, signal in DEFAULT_SIGNALS.items()
    }
    signals["thumbs"]["reference"] = 80
    signals["refused"] = {"of": "refused", "direction": "up", "reference": 50}
    monitoring = {
        "requests_between_false_alarms": 5000,
        "feedback": {"mature_after_s": 30},
        "signals": signals,
    }
    return json.dumps({"service": "digits", "monitoring": monitoring})


class World:
    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "digits")
        with self.ledger.begin() as tx:
            fence = tx.lease("test", 0.0, 1e12)
            tx.crown("a" * 64, 0.0, "first")
        assert fence is not None
        self.fence = fence
        w = self.workspace
        self.scores = SegmentWriter(w.scores, "scorer")
        self.records = {g: SegmentWriter(w.records, g) for g in GATEWAYS}
        self.tallies = {g: SegmentWriter(w.tallies, g) for g in GATEWAYS}
        self.votes = {g: SegmentWriter(w.feedback, g) for g in GATEWAYS}
        self.start()

    def start(self) -> None:
        facts: dict[str, Any] = {
            "config": parse(config()),
            "workspace": self.workspace,
            "ledger": self.ledger,
            "clock": FakeClock(),
        }
        missing = {n: cast(Any, None) for n in Parts.__dataclass_fields__ if n not in facts}
        self.watch = Watch(Parts(**facts, **missing))

    def write(self, line: Record | ScoredRecord | Feedback | Tally) -> None:
        if isinstance(line, ScoredRecord):
            self.scores.append(encode(line))
            return
        logs = {Record: self.records, Tally: self.tallies, Feedback: self.votes}[type(line)]
        logs[line.gateway].append(encode(line))

    def close(self) -> None:
        logs = (self.records, self.tallies, self.votes)
        for log in (self.scores, *(each for group in logs for each in group.values())):
            log.close()
        self.ledger.close()


def traffic() -> list[tuple[float, Any]]:
    """What is written when: records, tallies and votes by either gateway, scores by the scorer."""
    pictures, dice = Pictures(7), random.Random(7)
    seqs = dict.fromkeys(GATEWAYS, 0)
    lines: list[tuple[float, Any]] = []
    for n in range(REQUESTS):
        late = n >= TURNS
        made = pictures.ask(
            collapse=float(late), failing=0.2 if late else 0.01, slow=0.4 if late else 0.01
        )
        gateway = dice.choice(GATEWAYS)
        record = replace(made.record, gateway=gateway, gateway_epoch=1, seq=seqs[gateway])
        seqs[gateway] += 1
        item = replace(made, record=record)
        lines.append((record.at, record))
        lines.append((record.at + 0.4, item))
        lines.append((record.at + 0.1, _tally(gateway, n, record, seqs, refused=late and n % 2)))
        if record.image is not None and dice.random() < 0.6:
            vote = "up" if dice.random() < (0.2 if late else 0.85) else "down"
            said = feedback(item, dice.expovariate(1 / 8.0), vote=vote, seq=n)
            lines.append((said.at, said))
    return sorted(lines, key=lambda line: line[0])


def _tally(gateway: str, n: int, record: Record, seqs: dict[str, int], *, refused: int) -> Tally:
    return Tally(
        gateway=gateway,
        gateway_epoch=1,
        seq=n,
        service_id="digits",
        at=record.at + 0.1,
        requests=1 + refused,
        failed=0,
        images=1,
        in_flight=0,
        refused={"invalid_value": 1} if refused else {},
        record_epoch=1,
        record_seq=seqs[gateway],
    )


def live(root: Path, *, kills: bool) -> tuple[Json, list[Any], list[str]]:
    """Looks once a second. ``kills``: in a third of the looks the watch is killed after it read
    and before it committed, and in another third before it looks."""
    world, log, dice = World(root), traffic(), random.Random(11)
    n, now, last = 0, log[0][0], log[-1][0] + 120.0
    while now < last:
        now += 1.0
        while n < len(log) and log[n][0] <= now:
            world.write(log[n][1])
            n += 1
        fate = dice.random() if kills else 1.0
        if fate < 1 / 3:
            commit = world.watch._commit
            world.watch._commit = _dies  # type: ignore[method-assign, assignment]
            try:
                world.watch.look(world.fence, now)
            except Killed:
                world.start()
            else:
                world.watch._commit = commit  # type: ignore[method-assign]
        elif fate < 2 / 3:
            world.start()
        world.watch.look(world.fence, now)
    state = {"watch": world.watch._state(), "door": world.watch._door_state()}
    found = [(f.signal, f.request, f.evidence, f.value_now) for f in world.ledger.all(Finding)]
    windows = [encode(w) for w in world.ledger.all(TrafficWindow)]
    world.close()
    return json.dumps(state), found, windows


class Killed(BaseException):
    pass


def _dies(*_: Any) -> None:
    raise Killed


def test_with_all_default_signals_kills_change_not_a_digit(tmp_path: Path) -> None:
    whole = live(tmp_path / "whole", kills=False)
    cut = live(tmp_path / "cut", kills=True)
    assert {signal for signal, *_ in whole[1]} >= {"diversity", "errors", "thumbs", "refused"}
    assert cut[1] == whole[1]
    assert cut[0] == whole[0]
    assert cut[2] == whole[2]
    assert len(whole[2]) >= 3
