"""Probes: the same everywhere, judged by bits where they are promised, and no data is not fine."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from intonaco.monitoring.probes import (
    Compared,
    Conditions,
    Drift,
    ProbeSet,
    cosine_distance,
    describe,
    judge,
    levels,
)


def png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(buffer, format="PNG")
    return buffer.getvalue()


def far(distance: float, limit: float = 1.0, measure: str = "pixels") -> Compared:
    return Compared(measure=measure, distance=distance, limit=limit)


def test_probes_are_the_same_every_time_and_told_apart() -> None:
    one, two = ProbeSet(["a", "b", "a"]), ProbeSet(["a", "b"])
    assert one.probes == two.probes
    assert len(one) == 2
    assert len({p.key for p in one.probes}) == len({p.seed for p in one.probes}) == 2
    assert all(0 <= p.seed < 2**31 for p in one.probes)


def test_a_round_is_good_only_if_all_of_it_was_measured() -> None:
    assert judge({"a": far(0.0), "b": far(0.2)}).ok is True
    changed = judge({"a": far(0.0), "b": far(3.0)})
    assert (changed.ok, changed.changed, changed.total) == (False, ("b",), 2)
    missing = judge({"a": far(0.0), "b": None})
    assert (missing.ok, missing.missing, missing.total) == (None, ("b",), 1)
    assert judge({"a": far(9.0), "b": None}).ok is False
    assert judge({"a": far(math.inf)}).ok is False
    assert judge({"a": far(math.nan)}).ok is False
    assert judge({}).ok is None


def test_any_bit_is_a_change_where_bits_are_promised() -> None:
    assert far(0.0, 0.0, "bits").changed is False
    assert far(1e-4, 0.0, "bits").changed is True
    on = Conditions(environment="e", dtype="float32", device="cpu, X, 1 thread")
    assert on.promises_bits
    assert not Conditions(environment="e", dtype="float32", device="cuda, X").promises_bits
    assert not Conditions(environment="", dtype="float32", device="").promises_bits
    other = Conditions(environment="e", dtype="float32", device="cpu, X, 2 threads")
    assert on.key != other.key


def test_limits_follow_what_the_release_does_by_itself() -> None:
    assert Drift().limit("pixels") == 0.1
    assert Drift(levels=2.0).limit("pixels") == 6.0
    assert Drift(cosine=0.1).limit("embedding") > Drift().limit("embedding") > 0


def test_distances() -> None:
    assert levels(png(3), png(3)) == 0.0
    assert levels(png(3), png(5)) == 2.0
    assert levels(png(3), png(3, size=5)) == math.inf
    assert cosine_distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert cosine_distance(np.zeros(2), np.ones(2)) == math.inf


def test_a_round_in_words() -> None:
    good = {"a": far(0.0, 0.0, "bits")}
    assert "bit for bit" in describe(judge(good), good, stored=False, reason="")
    near = {"a": far(0.2)}
    assert "apart from rounding" in describe(judge(near), near, stored=False, reason="")
    changed = {"a": far(30.0), "b": far(0.0)}
    said = describe(judge(changed), changed, stored=False, reason="")
    assert said.startswith("1 of 2 probes changed under the same release (by up to 30 of 255")
    nothing: dict[str, Compared | None] = {"a": None}
    said = describe(judge(nothing), nothing, stored=False, reason="too many users wait")
    assert said == "not measured: 1 of 1 probes (too many users wait)"
