"""What signals read off records, tallies and samples, and what the configuration refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.traffic import Traffic

from intonaco.app import check
from intonaco.config import Monitoring, Signal, parse
from intonaco.config.signals import FIELDS_OF_KINDS
from intonaco.errors import ConfigError
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.signals import LatencyClasses, seconds_of, usual_of_batch
from intonaco.monitoring.sources import SOURCES, Seen, Source, source
from intonaco.types import Outcome, Record, Sample, ScoredRecord, Tally
from intonaco.workspace import Workspace

NOW = 1_700_000_000.0
ITEM = Traffic(seed=0).ask()


def record(**changes: Any) -> Record:
    attempt = {
        k: changes.pop(k)
        for k in list(changes)
        if k in ITEM.record.attempts[0].__dataclass_fields__ and k != "seconds"
    }
    return replace(ITEM.record, attempts=(replace(ITEM.record.attempts[0], **attempt),), **changes)


def seen(item: Record) -> Seen:
    return Seen(item=replace(ITEM, record=item), release=None)


def values(found: Source, *items: Record) -> list[float]:
    return [r.value for item in items for r in found.of_record(seen(item))]


def tally(at: float = NOW, **changes: Any) -> Tally:
    counts: dict[str, Any] = {"requests": 0, "failed": 0, "images": 0, "in_flight": 0}
    return Tally(
        gateway=changes.pop("gateway", "gateway"),
        gateway_epoch=1,
        seq=0,
        service_id="s",
        at=at,
        **(counts | changes),
    )


def test_every_kind_has_a_source_and_says_what_its_readings_are() -> None:
    kinds = Signal.model_json_schema()["properties"]["of"]["enum"]
    assert set(kinds) == set(SOURCES)
    for cls in SOURCES.values():
        assert cls.stream in ("vector", "bounded", "rate", "positive")


def test_the_page_of_signals_says_what_the_code_does() -> None:
    page = (Path(__file__).parents[2] / "docs/concepts/signals.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", page, re.MULTILINE))
    del rows["of"]  # the head
    assert set(rows) == set(SOURCES)
    for kind, reading in rows.items():
        assert SOURCES[kind].stream in reading or kind == "latency"
    for field in FIELDS_OF_KINDS:
        assert f"`{field}" in page or f" {field}: " in page or f"{{{field}" in page, field


# ------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"of": "errors", "part": "queue"}, "part is of signals of latency, not of errors"),
        ({"of": "latency", "kinds": ["error"]}, "kinds is of signals of errors or refused"),
        ({"of": "clip_score", "every_s": 3}, "every_s is of signals of throughput or"),
        ({"of": "promql", "url": "http://p"}, "a signal of promql needs query"),
        ({"of": "python", "call": "a:b"}, "a signal of python needs range"),
        ({"of": "errors", "kinds": ["bad"]}, "'bad' is none of error, timeout, rejected"),
        ({"of": "python", "call": "a:b", "range": [1, 1]}, "range: the first number"),
        ({"of": "latency", "reading": "ratio", "detector": "e-mean"}, "reading: ratio is over 1"),
        (
            {"of": "promql", "url": "http://u:p@h", "query": "up", "range": [0, 1]},
            "url: credentials do not belong",
        ),
        ({"of": "promql", "url": "ftp://h", "query": "up", "range": [0, 1]}, "url: not http"),
        ({"of": "promql", "token": "hunter2"}, "token"),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Signal.model_validate(fields)


def test_the_check_finds_what_cannot_be_asked_and_what_cannot_be_kept(tmp_path: Path) -> None:
    def problems(signal: str, more: str = "") -> list[str]:
        text = f"service: s\nmonitoring: {{signals: {{x: {signal}}}{more}}}"
        return check(parse(text), Workspace(tmp_path))

    callable_ = "{of: python, call: 'no.such:f', range: [0, 1]}"
    assert any("signals.x.call" in p for p in problems(callable_))
    weekly = ", false_alarms_per_week: 1"
    assert any(
        "threshold of periodic" in p for p in problems("{of: errors, detector: periodic}", weekly)
    )
    token = "{of: promql, url: 'http://p', query: up, range: [0, 1], token: 'env:NO_SUCH_TOKEN'}"
    assert any("NO_SUCH_TOKEN" in p for p in problems(token))
    assert not [p for p in problems("{of: refused}", weekly) if "signal" in p]


def test_one_budget_only() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Monitoring(requests_between_false_alarms=10, false_alarms_per_week=1)


def test_a_ratio_asks_for_a_detector_that_takes_it() -> None:
    signal = Signal(of="latency", reading="ratio", detector="e-detector")
    assert source("slow", signal).stream == "positive"
    assert source("slow", Signal(of="latency")).stream == "rate"


# ------------------------------------------------------------------------------- records


def test_parts_of_a_request() -> None:
    item = record(
        queue_seconds=0.5, encode_seconds=0.1, denoise_seconds=2.0, service_seconds=3.0, seconds=9.0
    )
    found = {p: seconds_of(item, None, p) for p in ("service", "queue", "encode", "total")}
    assert found == {"service": 3.0, "queue": 0.5, "encode": 0.1, "total": 9.0}
    assert seconds_of(item, None, "decode") is None  # not told
    assert seconds_of(item, None, "device") == 3.0
    assert seconds_of(record(service_seconds=3.0, batch_size=4), None, "device") == 0.75
    assert seconds_of(record(gpu_seconds=0.2), None, "device") == 0.2
    assert seconds_of(record(outcome=Outcome.ERROR), None) is None


@pytest.mark.parametrize("part", ["service", "queue", "denoise", "total"])
def test_latency_is_compared_within_request_classes(part: str) -> None:
    field = {"total": "seconds"}.get(part, f"{part}_seconds")
    found = source("slow", Signal.model_validate({"of": "latency", "part": part, "reference": 50}))
    usual = {32: 1.0, 64: 8.0}
    for _ in range(found.learns):
        for side, seconds in usual.items():
            assert values(found, record(width=side, height=side, **{field: seconds})) == []
    # all ask for the larger picture now: no regression
    assert (
        values(found, *(record(width=64, height=64, **{field: 8.1}) for _ in range(50)))
        == [0.0] * 50
    )
    assert values(found, record(width=32, height=32, **{field: 3.5})) == [1.0]
    again = source("slow", Signal.model_validate({"of": "latency", "part": part, "reference": 50}))
    again.restore(found.state())
    assert values(again, record(width=32, height=32, **{field: 3.5})) == [1.0]


def test_ratios() -> None:
    found = source("slow", Signal(of="latency", reading="ratio", reference=50))
    for _ in range(found.learns):
        values(found, record(service_seconds=2.0))
    assert values(found, record(service_seconds=2.3)) == [pytest.approx(1.15)]


def in_batches(classes: LatencyClasses, sizes: Sequence[int], times: float) -> list[float | None]:
    """Ratios of batches of these sizes, each ``times`` the usual 0.7 + 0.3 seconds an image."""
    seconds = [times * (0.7 + 0.3 * size) for size in sizes]
    return [
        classes.ratio(record(service_seconds=each, padded_size=size, batch_size=size), None)
        for size, each in zip(sizes, seconds, strict=True)
    ]


def test_fuller_batches_are_not_slower() -> None:
    classes = LatencyClasses(slower_than=3.0, learn=50, reference=60)
    assert in_batches(classes, [1, 1, 2, 1, 4] * 10, 1.0) == [None] * 50
    ratios = in_batches(classes, [1, 2, 4] * 50, 1.0)
    assert ratios == [pytest.approx(1.0)] * 150  # whatever the mix
    assert in_batches(classes, [1, 2, 4], 1.15) == [pytest.approx(1.15)] * 3
    again = LatencyClasses(slower_than=3.0, learn=50, reference=60)
    again.restore(json.loads(json.dumps(classes.state())))
    assert again.state() == classes.state()
    assert in_batches(again, [4], 2.0) == [pytest.approx(2.0)]


def test_a_batch_size_that_never_was() -> None:
    """Within the reference it says nothing. Later it is compared with what it takes at most, so
    growth is no regression and a fault still shows, until its own usual is known."""
    classes = LatencyClasses(slower_than=3.0, learn=30, reference=20)
    in_batches(classes, [1] * 40, 1.0)
    assert in_batches(classes, [8] * 2, 1.0) == [None] * 2
    in_batches(classes, [1] * 20, 1.0)
    assert in_batches(classes, [4], 1.0) == [pytest.approx(1.9 / 4)]
    assert in_batches(classes, [4], 6.0) == [pytest.approx(6 * 1.9 / 4)]
    in_batches(classes, [4] * 10, 1.0)
    assert in_batches(classes, [4], 1.2) == [pytest.approx(1.2)]
    assert in_batches(classes, [2], 1.0) == [pytest.approx(1.0)]  # between those of 1 and 4


def test_what_is_known_of_other_batch_sizes() -> None:
    assert usual_of_batch({}, 4) is None
    assert usual_of_batch({4: 2.0}, 2) == 2.0
    assert usual_of_batch({4: 2.0}, 8) == 4.0
    assert usual_of_batch({1: 1.0, 2: 1.3, 8: 3.1}, 4) == pytest.approx(1.9)


def test_the_wait_is_compared_whatever_the_batch() -> None:
    """A fuller batch waited no longer for that: queues are compared within the class only."""
    classes = LatencyClasses(slower_than=3.0, learn=20, part="queue")
    for _ in range(20):
        classes.ratio(record(queue_seconds=1.0, padded_size=1), None)
    assert classes.ratio(record(queue_seconds=2.0, padded_size=4), None) == 2.0


def test_the_usual_of_an_older_version_is_learned_anew() -> None:
    classes = LatencyClasses(slower_than=3.0, learn=1)
    classes.restore({"medians": {"32x32/10": 1.0}, "learning": {}})
    assert classes.medians == {}


def test_classes_and_sizes_are_bounded() -> None:
    classes = LatencyClasses(slower_than=3.0, learn=1)
    for i in range(200):
        classes.ratio(record(width=8 * (i + 1)), None)
        classes.ratio(record(width=8, padded_size=i + 1), None)
    assert len(classes.medians) == 64
    assert max(map(len, classes.medians.values())) == 16


def test_an_empty_queue_can_be_compared_with() -> None:
    classes = LatencyClasses(slower_than=3.0, learn=20, part="queue")
    for _ in range(20):
        classes.slow(record(queue_seconds=0.0), None)
    assert classes.slow(record(queue_seconds=0.002), None) == 0.0
    assert classes.slow(record(queue_seconds=0.5), None) == 1.0


def test_errors_by_kind() -> None:
    every, late = (
        source("errors", Signal(of="errors", kinds=kinds)) for kinds in ((), ("timeout",))
    )
    bad, slow = record(outcome=Outcome.ERROR), record(outcome=Outcome.TIMEOUT)
    assert values(every, bad, slow, record()) == [1.0, 1.0, 0.0]
    assert values(late, bad, slow, record()) == [1.0, 0.0]
    again = replace(bad, attempts=(bad.attempts[0], record().attempts[0]))
    assert values(late, again) == [0.0]


def test_the_champions_service_is_that_of_all_whom_it_answers() -> None:
    """Also of the users of a challenger that was taken out of a split; but not what they ask."""
    back: dict[str, Any] = {"arm": "returned:few", "assigned_arm": "returned:few"}
    mine = record(**back, batch_size=2, padded_size=4, outcome=Outcome.OK)
    bad = record(**back, outcome=Outcome.ERROR)
    theirs: dict[str, Any] = {"arm": "challenger:few", "assigned_arm": "challenger:few"}
    for other in (theirs, {"assigned_arm": "challenger:few"}):  # theirs, and those it shielded
        assert values(source("errors", Signal(of="errors")), record(**other)) == []
    assert values(source("errors", Signal(of="errors")), bad, mine) == [1.0, 0.0]
    assert values(source("fill", Signal(of="batch_fill")), mine) == [0.5]
    assert seconds_of(mine, None) == mine.attempts[0].service_seconds
    score = source("clip", Signal(of="clip_score"))
    assert (len(values(score, record())), len(values(score, mine))) == (1, 0)


def test_batch_fill_and_cost() -> None:
    fill = source("fill", Signal(of="batch_fill"))
    assert values(fill, record(batch_size=3, padded_size=4), record()) == [0.75]
    cost = source("cost", Signal(of="cost", reference=50, tolerance=0.2))
    for _ in range(cost.learns):
        values(cost, record(gpu_seconds=2.0))
    readings = values(cost, record(gpu_seconds=2.0), record(gpu_seconds=6.0))
    assert readings == [0.5, 0.75]
    assert cost.raw(readings[1]) == pytest.approx(3.0)
    assert cost.tolerance == pytest.approx(0.05)


# ------------------------------------------------------------------------------- tallies


def test_refused_requests() -> None:
    broken = source("broken", Signal(of="refused"))
    large = source("large", Signal(of="refused", kinds=("body_too_large",)))
    line = tally(
        requests=10,
        refused={"invalid_json": 2, "body_too_large": 1, "rate_limit_exceeded": 4},
    )
    assert [r.value for r in broken.of_tally(line)] == [0.3]
    assert [r.value for r in large.of_tally(line)] == [0.1]
    assert list(broken.of_tally(tally())) == []  # nobody asked
    assert [r.value for r in broken.of_tally(tally(refused={"invalid_value": 2}))] == [1.0]


def test_a_client_gone_wrong_is_found_within_seconds() -> None:
    monitor = Monitor(
        "s", Monitoring(signals={"broken": Signal(of="refused", reference=300, direction="up")})
    )
    rng = np.random.default_rng(0)

    def second(i: int, broken: float) -> Tally:
        asked = int(rng.poisson(20)) + 1
        return tally(
            NOW + i, requests=asked, refused={"invalid_value": rng.binomial(asked, broken)}
        )

    for i in range(2000):
        assert monitor.tally(second(i, 0.01)) == []
    for i in range(2000, 2060):
        if found := monitor.tally(second(i, 0.10)):
            break
    assert found[0].signal == "broken"
    assert found[0].value_now > 0.05
    assert "refused for their format" in found[0].text


class Load:
    """A service under a given demand: two workers, a second an image, one at a time."""

    def __init__(self, **settings: Any) -> None:
        self.found = source("keeps_up", Signal(of="throughput", every_s=10, **settings))
        self.found.workers = 2
        self.queue = 0.0
        self.at = NOW
        self.made = 0.0
        list(self.found.tick(self.at))

    def seconds(self, count: int, demand: float) -> list[float]:
        readings = []
        for _ in range(count):
            self.at += 1
            self.queue += demand
            made = min(self.queue, 2.0)
            self.queue -= made
            self.made += made
            images, self.made = int(self.made), self.made % 1
            for _ in range(images):
                list(self.found.of_record(seen(record(service_seconds=1.0, batch_size=1))))
            list(self.found.of_tally(tally(self.at, images=images, in_flight=round(self.queue))))
            readings += [r.value for r in self.found.tick(self.at)]
        return readings


def test_throughput_is_quiet_whatever_the_hour_and_tells_of_overload() -> None:
    load = Load()
    assert set(load.seconds(100, 0.2)) == {0.0}
    assert set(load.seconds(100, 1.8)) == {0.0}
    assert set(load.seconds(100, 2.5)[1:]) == {1.0}
    assert load.found.capacity == pytest.approx(2.0)  # type: ignore[attr-defined]
    again = Load()
    again.found.restore(load.found.state())
    assert again.found.state() == load.found.state()


def test_throughput_of_nobody_knows_how_many_workers_is_no_data() -> None:
    load = Load()
    load.found.workers = 0
    assert load.seconds(100, 2.5) == []


def test_refusals_for_being_busy_are_demand() -> None:
    found = source("keeps_up", Signal(of="throughput", every_s=10))
    found.workers = 1
    list(found.tick(NOW))
    list(found.of_record(seen(record(service_seconds=1.0, batch_size=1))))
    list(found.of_tally(tally(NOW + 5, images=5, refused={"rate_limit_exceeded": 20})))
    assert [r.value for r in found.tick(NOW + 10)] == [1.0]


# ------------------------------------------------------------------------------- samples


def test_samples_are_cut_off_at_their_range() -> None:
    found = source(
        "depth", Signal(of="python", call="a:b", range=(10, 30), tolerance=2, direction="up")
    )
    took = [
        [r.value for r in found.of_sample(Sample(signal="depth", at=NOW, value=v))]
        for v in (20.0, 5.0, 90.0, None)
    ]
    assert took == [[0.5], [0.0], [1.0], []]
    assert found.raw(0.5) == 20.0
    assert found.tolerance == pytest.approx(0.1)


def test_a_moved_sample_is_a_finding_in_its_own_unit() -> None:
    signal = Signal(of="python", call="a:b", range=(0, 100), reference=100, direction="up")
    monitor = Monitor("s", Monitoring(signals={"depth": signal}))
    rng = np.random.default_rng(1)
    found = []
    for i in range(900):
        value = float(rng.normal(20 if i < 600 else 40, 3))
        found += monitor.take(Sample(signal="depth", at=NOW + 10 * i, value=value))
    assert [f.signal for f in found] == ["depth"]
    assert found[0].value_before == pytest.approx(20, abs=2)
    assert found[0].value_now == pytest.approx(40, abs=3)
    assert "since reading" in found[0].text
    assert monitor.take(Sample(signal="elsewhere", at=NOW, value=1.0)) == []


def test_scored_records_feed_the_new_signals_in_a_monitor() -> None:
    kinds = {
        "fill": Signal(of="batch_fill", reference=50),
        "cost": Signal(of="cost", reference=60),
        "queue": Signal(of="latency", part="queue", reference=60),
    }
    monitor = Monitor("s", Monitoring(signals=kinds))
    for _ in range(200):
        item = ScoredRecord(
            record=record(batch_size=2, padded_size=4, service_seconds=1.0, queue_seconds=0.1),
            prompt_embedding=(),
            scores={},
            extractor="",
        )
        assert monitor.observe(item) == []
    status = {s.signal: s for s in monitor.status()}
    assert all(s.armed for s in status.values())
    assert status["fill"].value == pytest.approx(0.5)
    assert status["cost"].value == pytest.approx(1.0)


def test_ratio_needs_its_detector_at_load() -> None:
    monitoring = Monitoring(
        signals={"l": Signal(of="latency", reading="ratio", detector="no-such-detector")}
    )
    with pytest.raises(ConfigError, match="no-such-detector"):
        Monitor("s", monitoring)
