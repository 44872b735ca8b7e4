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
    assert compare({"a": 0.0, "b": 0.2}, 1.0).ok is True
    changed = compare({"a": 0.0, "b": 3.0}, 1.0)
    assert (changed.ok, changed.changed, changed.total) == (False, ("b",), 2)
    missing = compare({"a": 0.0, "b": None}, 1.0)
    assert (missing.ok, missing.missing, missing.total) == (None, ("b",), 1)
    assert compare({"a": 9.0, "b": None}, 1.0).ok is False
    assert compare({"a": float("inf")}, 1.0).ok is False
    assert compare({}, 1.0).ok is None
