"""Probes: the same everywhere, and no data is not fine."""

from __future__ import annotations

from intonaco.monitoring.probes import ProbeSet, compare


def test_probes_are_the_same_every_time_and_told_apart() -> None:
    one, two = ProbeSet(["a", "b", "a"]), ProbeSet(["a", "b"])
    assert one.probes == two.probes
    assert len(one) == 2
    assert len({p.key for p in one.probes}) == len({p.seed for p in one.probes}) == 2
    assert all(0 <= p.seed < 2**31 for p in one.probes)


def test_compare() -> None:
    before = {"a": "1", "b": "2"}
    assert compare(before, before).ok is True
    changed = compare(before, {"a": "1", "b": "3"})
    assert (changed.ok, changed.changed, changed.total) == (False, ("b",), 2)
    missing = compare(before, {"a": "1"})
    assert (missing.ok, missing.missing, missing.total) == (None, ("b",), 1)
    assert compare(before, {"a": "9"}).ok is False
    assert compare({}, {"a": "1"}).ok is None
