"""The embedding detector: false alarms, delay, memory, restarts. Seeded simulations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tests.traffic import Traffic

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors import EmbeddingDetector
from intonaco.monitoring.detectors.dedupe import SessionDedupe
from intonaco.monitoring.detectors.kmeans import kmeans, silhouette, unit
from intonaco.testing.detectors import check_detector
from intonaco.testing.streams import Stream, World

WORLD = World(0)
FALSE_ALARMS = math.log(5_000)


def armed(reference: int, seed: int, kind: str = "null_iid") -> EmbeddingDetector:
    detector = EmbeddingDetector(threshold=FALSE_ALARMS, reference=reference)
    feed(
        detector,
        WORLD.stream(kind, reference * (7 if "burst" in kind else 1), seed=900 + seed),
        "before",
        until_armed=True,
    )
    assert detector.armed
    return detector


def feed(
    detector: EmbeddingDetector, stream: Stream, name: str, *, until_armed: bool = False
) -> int | None:
    """Number of the update that fired, from 1, or None."""
    for i, (x, session, at) in enumerate(zip(stream.x, stream.session, stream.at, strict=True)):
        if detector.update(x, session=f"{name}{session}", at=float(at)):
            return i + 1
        if until_armed and detector.armed:
            break
    return None


@pytest.mark.parametrize("kind", ["null_iid", "null_burst", "null_robot"])
def test_keeps_its_false_alarm_rate_on_nulls(kind: str) -> None:
    alarms, updates = 0, 0
    for seed in range(2):
        detector = armed(400, seed, "null_burst" if kind == "null_burst" else "null_iid")
        fired = feed(detector, WORLD.stream(kind, 5_500, seed=50 + seed), "now")
        alarms += fired is not None
        updates += fired or 5_500
    # one in 5,000 is promised: two alarms in 11,000 would be within it, the slack gives fewer
    assert alarms <= 1
    assert updates / max(alarms, 1) > 5_000


def test_bursts_without_dedupe_show_what_dedupe_is_for() -> None:
    """The same stream, one user asking one thing 200 times: alarm without, none with."""
    fired = {}
    for dedupe in (True, False):
        detector = EmbeddingDetector(threshold=FALSE_ALARMS, reference=400, dedupe=dedupe)
        detector.update_many(WORLD.stream("null_iid", 400, seed=901).x)
        x = WORLD.stream("null_iid", 1, seed=5).x[0]
        fired[dedupe] = any(detector.update(x, session="robot") for _ in range(200))
    assert fired == {True: False, False: True}


@pytest.mark.parametrize(
    ("kind", "reference", "median", "worst"), [("new20", 1500, 150, 300), ("new50", 400, 50, 90)]
)
def test_delay_after_a_new_topic(kind: str, reference: int, median: int, worst: int) -> None:
    delays, begins = [], []
    for seed in range(4):
        detector = armed(reference, seed)
        before = detector.updates
        fired = feed(detector, WORLD.stream(kind, 1_500, seed=seed, change_at=300), "now")
        assert fired is not None
        delays.append(fired - 300)
        begins.append(detector.since - before - 300)
    assert min(delays) > 0
    assert np.median(delays) <= median
    assert max(delays) <= worst
    assert abs(np.median(begins)) <= 40


def test_demo_like_shift_is_flagged_within_150_requests_and_nulls_never() -> None:
    delays = []
    for seed in range(12):
        traffic = Traffic(seed=seed, phrase=0.2 + 0.3 * (seed % 2))
        detector = EmbeddingDetector(threshold=FALSE_ALARMS, reference=250)

        def ask(new: float, detector: EmbeddingDetector = detector, t: Traffic = traffic) -> bool:
            item = t.ask(new=new)
            return detector.update(
                item.prompt_embedding, session=item.record.unit, at=item.record.at
            )

        assert not any(ask(0.0) for _ in range(1_500)), f"false alarm with seed {seed}"
        assert detector.armed
        delays.append(next(n for n in range(1, 1_000) if ask(0.3)))
    assert max(delays) <= 150
    assert 15 <= np.median(delays) <= 60


def test_restored_goes_on_exactly_at_any_point() -> None:
    stream = WORLD.stream("burst+new50", 900, seed=3, change_at=600)
    for cut in (0, 50, 399, 610, 700):
        one = EmbeddingDetector(threshold=FALSE_ALARMS, reference=300)
        rows = list(zip(stream.x, stream.session, stream.at, strict=True))
        for x, session, at in rows[:cut]:
            one.update(x, session=str(session), at=float(at))
        two = EmbeddingDetector(threshold=FALSE_ALARMS, reference=300)
        two.restore(json.loads(json.dumps(one.state())))
        for x, session, at in rows[cut:]:
            fired = one.update(x, session=str(session), at=float(at))
            assert fired == two.update(x, session=str(session), at=float(at))
            assert one.evidence == two.evidence
            assert one.since == two.since
        assert json.dumps(one.state()) == json.dumps(two.state())


def test_state_stays_bounded() -> None:
    detector = EmbeddingDetector(threshold=1e9, reference=100, dedupe=False)
    x = Traffic(seed=1).vectors.reshape(-1, 32)
    r = np.random.default_rng(0)
    sizes = []
    for _ in range(2):
        detector.update_many(x[r.integers(60, size=3_000)])
        sizes.append(len(json.dumps(detector.state())))
    assert sizes[1] < 1.1 * sizes[0]


def test_evidence_stays_finite_long_after_the_alarm() -> None:
    r = np.random.default_rng(0)
    topics = unit(r.standard_normal((6, 16)))
    detector = EmbeddingDetector(threshold=FALSE_ALARMS, reference=100)
    detector.update_many(unit(topics[r.integers(5, size=100)] + 0.1 * r.standard_normal(16)))
    detector.update_many([topics[5]] * 5_000)
    assert detector.drift_detected
    assert math.isfinite(detector.evidence)
    assert detector.since < 110


def test_tolerance_quiets_a_small_move() -> None:
    def fires(tolerance: float) -> bool:
        traffic = Traffic(seed=4)
        detector = EmbeddingDetector(threshold=FALSE_ALARMS, reference=500, tolerance=tolerance)
        for item in traffic.many(600):
            detector.update(item.prompt_embedding)
        return any(detector.update(i.prompt_embedding) for i in traffic.many(600, new=0.2))

    assert fires(0.0)
    assert not fires(0.25)


@pytest.mark.parametrize("reference", [100, 400, 1500])
@pytest.mark.parametrize("prompts", [2, 6])
def test_prompts_from_a_menu_are_no_change(prompts: int, reference: int) -> None:
    """A few points, nothing around them: rounding is no reason to alarm, nor to fail."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        menu = unit(rng.standard_normal((prompts, 24)))
        detector = EmbeddingDetector(threshold=math.log(50_000), reference=reference)
        for _ in range(reference + 1000):
            user = int(rng.integers(60))
            assert not detector.update(menu[rng.integers(prompts)], session=f"u{user}")
        restored = EmbeddingDetector(threshold=math.log(50_000), reference=reference)
        restored.restore(json.loads(json.dumps(detector.state())))
        for user in range(200):
            new = menu[rng.integers(prompts)] if rng.random() < 0.5 else rng.standard_normal(24)
            detector.update(new, session=f"v{user}")
            restored.update(new, session=f"v{user}")
            assert restored.evidence == detector.evidence
        assert detector.drift_detected


def test_follows_the_protocol() -> None:
    r = np.random.default_rng(1)
    topics = unit(r.standard_normal((6, 24)))
    quiet = unit(topics[r.integers(5, size=400)] + 0.1 * r.standard_normal((400, 24)))
    moved = unit(topics[r.integers(6, size=60)] + 0.1 * r.standard_normal((60, 24)))
    moved[::2] = topics[5]

    def make() -> EmbeddingDetector:
        return EmbeddingDetector(threshold=FALSE_ALARMS, reference=200, dedupe=False)

    check_detector(make, list(quiet), list(moved))


def test_too_small_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        EmbeddingDetector(threshold=1.0, reference=5)


def test_sessions_forget_by_time_and_number() -> None:
    dedupe = SessionDedupe(forget_seconds=60, sessions=2)
    a, b = np.eye(4)[0], np.eye(4)[1]
    assert not dedupe.repeats("u", a, 0.0)
    assert dedupe.repeats("u", a, 30.0)
    assert not dedupe.repeats("v", a, 30.0)
    assert not dedupe.repeats("u", b, 31.0)
    assert not dedupe.repeats("u", a, 32.0)  # only the last prompt counts
    assert not dedupe.repeats("u", a, 200.0)
    assert not dedupe.repeats("w", a, 201.0)
    assert not dedupe.repeats("v", a, 202.0)  # forgotten: two others came since
    assert not dedupe.repeats(None, a, 202.0)
    assert not dedupe.repeats(None, a, 202.0)


def test_kmeans_finds_what_is_there_and_silhouette_says_how_many() -> None:
    r = np.random.default_rng(2)
    topics = unit(r.standard_normal((6, 20)))
    true = r.integers(6, size=240)
    x = unit(topics[true] + 0.08 * r.standard_normal((240, 20)))
    scores = {}
    for k in range(2, 12):
        centroids, labels = kmeans(x, k, rng=np.random.default_rng(k))
        scores[k] = silhouette(x, labels)
        assert len(centroids) <= k
        assert np.allclose(np.linalg.norm(centroids, axis=1), 1)
    assert max(scores, key=lambda k: scores[k]) == 6
    _, labels = kmeans(x, 6, rng=np.random.default_rng(6))
    assert all(len(set(labels[true == t])) == 1 for t in range(6))


def test_silhouette_is_the_textbook_one() -> None:
    r = np.random.default_rng(3)
    x = unit(r.standard_normal((30, 5)))
    labels = r.integers(3, size=30)
    distance = 1 - x @ x.T
    expected = []
    for i in range(30):
        same = [j for j in range(30) if labels[j] == labels[i] and j != i]
        inside = distance[i, same].mean()
        outside = min(distance[i, labels == c].mean() for c in range(3) if c != labels[i])
        expected.append((outside - inside) / max(inside, outside))
    assert silhouette(x, labels) == pytest.approx(np.mean(expected))
