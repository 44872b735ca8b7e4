"""Dead-man's switches: no data is told, once an episode, and never taken for quiet."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.traffic import Traffic

from intonaco.config import Monitoring, Signal
from intonaco.decision.diagnosis import signal_kind
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.silence import MOST, RecordLog, Silence, Unscored
from intonaco.types import Finding, Sample, Tally

NOW = 1_700_000_000.0
RECORD = Traffic(seed=0).ask().record


def monitor(**signals: Signal) -> Monitor:
    return Monitor("s", Monitoring(signals=signals))


QUERY = Signal(of="promql", url="http://p", query="up", range=(0, 1), every_s=5)


def told(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(f.signal, f.of, f.detector) for f in found]


def test_an_external_signal_that_falls_silent_is_told_once_an_episode() -> None:
    watched = monitor(gpu=QUERY)
    assert watched.tick(NOW) == []
    watched.take(Sample(signal="gpu", at=NOW + 1, value=0.5))
    assert watched.tick(NOW + 61) == []
    watched.take(Sample(signal="gpu", at=NOW + 60, value=None, reason="no answer: ConnectTimeout"))
    first = watched.tick(NOW + 62)
    assert told(first) == [("gpu", "silence", "dead-man's switch")]
    assert "no answer: ConnectTimeout" in first[0].text
    assert first[0].since_at == NOW + 1
    assert watched.tick(NOW + 500) == []
    watched.take(Sample(signal="gpu", at=NOW + 501, value=0.5))
    assert watched.tick(NOW + 502) == []
    assert len(watched.tick(NOW + 600)) == 1
    assert watched.status()[0].last_at == NOW + 501


def test_one_that_never_had_data_is_told_too() -> None:
    watched = monitor(gpu=Signal(of="gpu_utilisation", silent_after_s=30))
    watched.take(Sample(signal="gpu", at=NOW, value=None, reason="no GPU"))
    assert watched.tick(NOW) == []
    assert "no GPU" in watched.tick(NOW + 31)[0].text
    status = watched.status()[0]
    assert (status.no_data, status.last_at, status.value) == ("no GPU", None, None)


def test_signals_of_requests_are_expected_only_where_it_is_said() -> None:
    quiet, said = Signal(of="errors"), Signal(of="latency", silent_after_s=100)
    watched = monitor(errors=quiet, latency=said)
    watched.tick(NOW)
    found = watched.tick(NOW + 1000)
    assert [f.signal for f in found] == ["latency"]
    assert signal_kind(found[0]) == "silence"  # nothing slow was measured
    assert watched.refresh(found[0]) == found[0]
    assert watched.settled(found[0])


def test_a_new_champion_does_not_end_a_silence() -> None:
    watched = monitor(gpu=QUERY)
    watched.tick(NOW)
    assert len(watched.tick(NOW + 100)) == 1
    watched.rebaseline("b" * 64)
    assert watched.tick(NOW + 200) == []


def restarted(watched: Monitor, **signals: Signal) -> Monitor:
    again = monitor(**signals)
    again.restore(json.loads(json.dumps(watched.state())))
    return again


@pytest.mark.parametrize("down", [1.0, 100_000.0])
def test_a_silence_goes_on_over_a_restart(down: float) -> None:
    """However long nobody looked: what was looked at before and after it counts."""
    watched = monitor(gpu=QUERY)
    watched.tick(NOW)
    assert watched.tick(NOW + 40) == []
    again = restarted(watched, gpu=QUERY)
    begin = NOW + 40 + down
    assert again.tick(begin) == []
    assert again.tick(begin + 19) == []
    found = again.tick(begin + 21)
    assert [f.value_now for f in found] == [61.0]
    assert restarted(again, gpu=QUERY).tick(begin + 200) == []  # told


@pytest.mark.parametrize(
    "signal",
    [
        QUERY,
        Signal(of="python", call="a.b:c", range=(0, 1), every_s=5),
        Signal(of="latency", silent_after_s=60),
    ],
    ids=lambda signal: signal.of,
)
def test_what_was_not_looked_at_is_no_silence(signal: Signal) -> None:
    watched = monitor(it=signal)
    watched.tick(NOW)
    watched.tick(NOW + 10)
    again = restarted(watched, it=signal)
    assert again.tick(NOW + 9000) == []
    assert again.tick(NOW + 9049) == []
    third = restarted(again, it=signal)
    assert third.tick(NOW + 20_000) == []
    assert len(third.tick(NOW + 20_002)) == 1


def test_what_is_heard_after_a_restart_counts_from_the_first_look() -> None:
    """What was made while nobody looked is read late: it says that there was no silence then."""
    silence = Silence()
    silence.heard(1000.0)
    assert silence.lasts(1050.0, 60.0) is None
    again = Silence.of_state(json.loads(json.dumps(silence.state())))
    again.heard(1100.0)
    assert again.lasts(5000.0, 60.0) is None
    assert again.lasts(5060.0, 60.0) is None
    assert again.lasts(5061.0, 60.0) == 61.0


def test_a_state_of_an_older_version() -> None:
    assert Silence.of_state([5.0, True]) == Silence(5.0, True)


def test_silence() -> None:
    silence = Silence()
    assert silence.lasts(10.0, 5.0) is None
    silence.heard(12.0)
    silence.heard(11.0)  # late
    assert silence.lasts(17.0, 5.0) is None
    assert silence.lasts(17.5, 5.0) == 5.5


# ------------------------------------------------------------------------------- records


def tally(seq: int, epoch: int = 1, gateway: str = "gateway") -> Tally:
    return Tally(
        gateway=gateway,
        gateway_epoch=1,
        seq=0,
        service_id="s",
        at=NOW,
        requests=1,
        failed=0,
        images=1,
        in_flight=0,
        record_epoch=epoch,
        record_seq=seq,
    )


def test_records_that_gateways_wrote_and_that_do_not_come() -> None:
    log = RecordLog()
    assert log.missing(NOW, 60) == []
    log.record(replace(RECORD, seq=0))
    log.tally(tally(1))
    assert log.missing(NOW + 1, 60) == []
    log.tally(tally(5))
    assert log.missing(NOW + 2, 60) == []
    assert log.missing(NOW + 61, 60) == []
    assert log.missing(NOW + 63, 60) == ["gateway"]
    assert log.missing(NOW + 99, 60) == []
    log.record(replace(RECORD, seq=4))
    assert log.missing(NOW + 100, 60) == []
    log.tally(tally(6))
    assert log.missing(NOW + 200, 60) == []
    assert log.missing(NOW + 261, 60) == ["gateway"]


def test_one_gateways_silence_is_not_drowned_by_another() -> None:
    log = RecordLog()
    log.tally(tally(3))
    log.tally(tally(1000, gateway="gateway-1"))
    told = []
    for i in range(100):
        log.record(replace(RECORD, gateway="gateway-1", seq=i))
        told += log.missing(NOW + i, 60)
    assert told == ["gateway"]


def test_records_that_come_late_but_come_are_lag_and_no_silence() -> None:
    log = RecordLog()
    log.tally(tally(1000))
    for i in range(50):
        log.record(replace(RECORD, seq=i))
        assert log.missing(NOW + 30 * i, 60) == []


@pytest.mark.parametrize(("epoch", "seq", "missing"), [(2, 0, False), (2, 3, True), (1, 9, False)])
def test_a_gateway_that_began_anew(epoch: int, seq: int, missing: bool) -> None:
    log = RecordLog()
    log.record(replace(RECORD, gateway_epoch=1, seq=8))
    log.tally(tally(seq, epoch))
    log.missing(NOW, 60)
    restored = RecordLog.of_state(json.loads(json.dumps(log.state())))
    assert restored == log
    assert restored.missing(NOW + 61, 60) == []  # its first look
    assert restored.missing(NOW + 122, 60) == ["gateway"] * missing


def test_records_that_were_not_read_while_nobody_looked() -> None:
    log = RecordLog()
    log.tally(tally(5))
    log.missing(NOW, 60)
    assert log.missing(NOW + 50, 60) == []
    restored = RecordLog.of_state(json.loads(json.dumps(log.state())))
    assert restored.missing(NOW + 5000, 60) == []
    assert restored.missing(NOW + 5011, 60) == ["gateway"]


def test_records_wait_until_their_own_scores_are_read() -> None:
    waits = Unscored()
    traffic = Traffic(seed=1)
    records = [replace(traffic.ask().record, at=NOW + 2.0 * k) for k in range(3)]
    other = replace(records[0], gateway="gateway-1", at=NOW + 1.0, seq=900)
    for record in (*records, other):
        waits.record(record)
    assert waits.oldest_at == NOW
    waits.scored(records[1])  # and the first, which is before it in the same log
    assert waits.oldest_at == NOW + 1.0
    waits = Unscored.of_state(json.loads(json.dumps(waits.state())))
    waits.scored(other)
    assert waits.oldest_at == NOW + 4.0
    waits.scored(records[2])
    waits.record(records[2])  # the scorer was faster than the controller's look at the record
    assert waits.oldest_at is None


def test_a_long_silence_keeps_its_beginning_in_little_room() -> None:
    waits = Unscored()
    record = Traffic(seed=2).ask().record
    for k in range(20 * MOST):
        waits.record(replace(record, at=NOW + 2.0 * k, seq=k))
    assert waits.oldest_at == NOW
    assert len(json.dumps(waits.state())) < 40 * MOST
    waits.scored(replace(record, seq=10 * MOST))
    assert NOW < (waits.oldest_at or 0.0) <= NOW + 20.0 * MOST + 2.0
    waits.scored(replace(record, seq=20 * MOST - 1))
    assert not waits.oldest_at
