"""Windows of traffic: nothing lost, nothing twice, bounded, and parts add up to the whole."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.traffic import Traffic

from intonaco.monitoring.windows import (
    CELLS,
    CLASSES,
    IN_MEMORY,
    LEVELS,
    NAMES,
    OTHER,
    TrafficWindows,
    Window,
    error_name,
    expiry,
    level_for,
    merged,
)
from intonaco.types import Attempt, Json, Outcome, Record, Tally, TrafficWindow

NOW = 1_700_000_000.0


def varied(count: int, seed: int = 0) -> list[Record]:
    traffic, rng = Traffic(seed=seed), random.Random(seed)
    found = []
    for item in traffic.many(count, failing=0.1):
        side, steps = rng.choice(((32, 10), (64, 10), (64, 30)))
        attempt = replace(
            item.record.attempts[0],
            queue_seconds=rng.expovariate(5),
            denoise_seconds=rng.uniform(0.5, 1.0),
            batch_size=rng.choice((1, 2, 3)),
            padded_size=4,
            gpu_seconds=0.25,
            peak_memory_bytes=rng.randrange(2**30),
        )
        if attempt.outcome is not Outcome.OK:
            attempt = replace(attempt, error=rng.choice(("ReadTimeout: x", "503 internal: y")))
        found.append(
            replace(
                item.record,
                width=side,
                height=side,
                steps=steps,
                attempts=(attempt,),
                gateway=rng.choice(("gateway", "gateway-1")),
            )
        )
    return found


def window(records: Iterable[Record]) -> Window:
    found = Window()
    for record in records:
        found.record(record)
    return found


def test_two_gateways_windows_merged_are_one_gateways() -> None:
    records = varied(600)
    whole = window(records)
    parts = [window(r for r in records if r.gateway == g) for g in ("gateway", "gateway-1")]
    for order in (parts, parts[::-1]):
        assert merged(order) == whole
        assert json.dumps(merged(order).state()) == json.dumps(whole.state())


def test_state_is_exact() -> None:
    records = varied(300)
    one = window(records[:200])
    other = Window.of_state(json.loads(json.dumps(one.state())))
    for record in records[200:]:
        one.record(record)
        other.record(record)
    assert json.dumps(one.state()) == json.dumps(other.state())


def test_what_is_counted() -> None:
    record = varied(1)[0]
    good = replace(
        record.attempts[0],
        outcome=Outcome.OK,
        service_seconds=2.0,
        batch_size=2,
        padded_size=4,
        gpu_seconds=0.5,
    )
    bad = replace(good, arm="challenger:x", release="b", outcome=Outcome.TIMEOUT, error="504 slow")
    item = replace(
        record,
        attempts=(bad, good),
        assigned_arm="challenger:x",
        served_by=good.release,
        status=200,
        seconds=3.0,
    )
    found = window([item, replace(item, probe=True), replace(item, shadow_of="r")])
    kind = item.request_class
    answered = found.cells[good.release, "challenger:x", kind]
    assert answered.statuses == {"200": 1}
    assert answered.time("seconds").count == 1
    tried = found.cells["b", "challenger:x", kind]
    assert tried.outcomes == {"timeout": 2}
    assert tried.errors == {"timeout": 2}
    made = found.cells[good.release, "champion", kind]
    assert made.images == 2
    assert made.requests == 0
    assert made.time("work").total == pytest.approx(2.0)  # two images, each half of two seconds
    assert made.time("device").total == pytest.approx(1.0)
    assert made.batches == {"2/4": 2}
    assert made.slots == 4.0


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ReadTimeout: to http://x/secret", "ReadTimeout"),
        ("503 draining: soon", "draining"),
        ("answered with no whole PNG", "error"),
        ("", "error"),
    ],
)
def test_errors_are_named_and_never_quoted(error: str, name: str) -> None:
    attempt = replace(varied(1)[0].attempts[0], outcome=Outcome.ERROR, error=error)
    assert isinstance(attempt, Attempt)
    assert error_name(attempt) == name


def test_memory_is_bounded_whatever_the_traffic() -> None:
    found = Window()
    record = varied(1)[0]
    for i in range(400):
        attempt = replace(
            record.attempts[0],
            release=f"{i % 40:064d}",
            outcome=Outcome.ERROR,
            error=f"Error{i}: no",
        )
        found.record(replace(record, width=32 + i, attempts=(attempt,), served_by=None, status=500))
        found.tally(tally(refused={f"code{i}": 1}))
    assert len({k for _, _, k in found.cells} - {OTHER}) <= CLASSES
    assert len(found.cells) <= CELLS + 1
    assert all(len(c.errors) <= NAMES + 1 for c in found.cells.values())
    assert len(found.refused) <= NAMES + 1
    assert sum(sum(c.outcomes.values()) for c in found.cells.values()) == 400
    assert sum(found.refused.values()) == 400


def test_too_many_classes_are_pooled_on_merging() -> None:
    record = varied(1)[0]
    parts = [
        window(replace(record, width=32 + 8 * (i + CLASSES * j)) for i in range(CLASSES))
        for j in range(2)
    ]
    parts[0].record(replace(record, width=32))
    there, back = merged(parts), merged(parts[::-1])
    assert there == back
    classes = {k for _, _, k in there.cells}
    assert len(classes) == CLASSES + 1
    assert f"32x{record.height}x{record.steps}" in classes
    assert there.total().requests == 2 * CLASSES + 1


def tally(**changes: Json) -> Tally:
    values: Json = {
        "gateway": "gateway",
        "gateway_epoch": 1,
        "seq": 0,
        "service_id": "s",
        "at": NOW,
        "requests": 3,
        "failed": 1,
        "images": 2,
        "in_flight": 0,
    }
    return Tally(**(values | changes))


class Store:
    """A ledger's windows."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], str] = {}

    def load(self, level: str, start: int) -> TrafficWindow | None:
        text = self.rows.get((level, start))
        if text is None:
            return None
        return TrafficWindow(level=level, start=start, state=json.loads(text))

    def write(self, windows: TrafficWindows) -> None:
        for row in windows.changed():
            self.rows[row.level, row.start] = json.dumps(row.state)
        windows.written()


def test_killed_at_any_commit_the_windows_are_the_same_to_the_last_digit() -> None:
    records = varied(400, seed=4)
    random.Random(1).shuffle(records)  # late ones too
    records = [replace(r, at=NOW - 7200 + 18 * i) for i, r in enumerate(records)]
    whole, cut = Store(), Store()
    uninterrupted = TrafficWindows(whole.load)
    for i, record in enumerate(records):
        uninterrupted.record(record, NOW)
        if i % 50 == 49:
            whole.write(uninterrupted)
    for start in range(0, len(records), 50):
        lost = TrafficWindows(cut.load)
        for record in records[start : start + 20]:
            lost.record(record, NOW)  # killed before it was written
        again = TrafficWindows(cut.load)
        for record in records[start : start + 50]:
            again.record(record, NOW)
        cut.write(again)
    assert cut.rows == whole.rows
    for level in LEVELS:
        rows = [json.loads(t) for (name, _), t in whole.rows.items() if name == level]
        assert merged(map(Window.of_state, rows)).total().requests == len(records)


def test_late_records_find_their_window_and_too_late_ones_only_the_coarse_ones() -> None:
    store = Store()
    windows = TrafficWindows(store.load)
    record = varied(1)[0]
    windows.record(replace(record, at=NOW - 100 * 60), NOW)
    windows.record(replace(record, at=NOW - 3 * 3600), NOW)
    windows.record(replace(record, at=NOW - 40 * 86_400), NOW)
    store.write(windows)
    levels = sorted(level for level, _ in store.rows)
    assert levels.count("minute") == 1
    assert levels.count("hour") == 2
    for level, before in expiry(NOW).items():
        assert all(start >= before for name, start in store.rows if name == level)


def test_few_windows_are_held_in_memory() -> None:
    store = Store()
    windows = TrafficWindows(store.load)
    record = varied(1)[0]
    for minute in range(60):
        windows.record(replace(record, at=NOW - 60 * minute), NOW)
        store.write(windows)
    assert len(windows._windows) <= IN_MEMORY
    assert len([k for k in store.rows if k[0] == "minute"]) == 60


def test_tallies_are_counted() -> None:
    found = Window()
    found.tally(tally(refused={"invalid_json": 2}))
    found.tally(tally())
    assert (found.requests, found.failed, found.refused) == (6, 2, {"invalid_json": 2})
    assert Window.of_state(json.loads(json.dumps(found.state()))) == found


def test_the_finest_level_that_reaches_back() -> None:
    assert [level_for(h * 3600.0) for h in (1, 2, 3, 168, 169, 10_000)] == [
        "minute",
        "minute",
        "hour",
        "hour",
        "day",
        "day",
    ]


def test_the_benchmark_measures_what_it_says() -> None:
    place = Path(__file__).parents[2] / "benchmarks/monitoring/signals.py"
    spec = importlib.util.spec_from_file_location("bench_signals", place)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert len(bench.signals(100)) == 100
    per_second, state_mb = bench.requests_per_second(20, signal_count=6, warm_up=40)
    assert per_second > 0
    assert state_mb > 0
    stored = bench.month(per_window=10)
    assert len(stored) == sum(keep // seconds for seconds, keep in LEVELS.values())
    assert bench.restore_seconds(stored) >= 0
