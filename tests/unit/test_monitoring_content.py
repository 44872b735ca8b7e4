"""Signals of what pictures show: when they fire, on what they stay quiet, and that they go on
exactly after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.content import Pictures, topic_of, unit

from intonaco.config import Monitoring, Signal, parse
from intonaco.errors import ConfigError
from intonaco.monitoring.monitor import Monitor
from intonaco.types import Finding, ScoredRecord

REFERENCE = 250


def monitor(**signals: Signal) -> Monitor:
    return Monitor("digits", Monitoring(requests_between_false_alarms=5_000, signals=signals))


def of(name: str, **settings: object) -> Signal:
    return Signal.model_validate({"of": name, "reference": REFERENCE, **settings})


DIVERSITY = of("diversity", direction="up", tolerance=0.02)


def watch(made: Monitor, items: Iterable[ScoredRecord]) -> list[Finding]:
    return [finding for item in items for finding in made.observe(item)]


def delay(made: Monitor, items: Iterable[ScoredRecord], signal: str) -> int | None:
    """How many records it took."""
    for n, item in enumerate(items, 1):
        if any(f.signal == signal for f in made.observe(item)):
            return n
    return None


# ----------------------------------------------------------------------------------- diversity


@pytest.mark.parametrize("exact", [True, False], ids=["the-same", "much-alike"])
def test_a_collapsed_model_is_noticed_within_a_hundred_requests(exact: bool) -> None:
    delays = []
    for seed in range(3):
        pictures = Pictures(seed)
        made = monitor(prompts=of("prompt_embedding"), diversity=DIVERSITY)
        assert watch(made, pictures.many(600)) == []
        found = delay(made, pictures.many(100, collapse=1.0, exact=exact), "diversity")
        assert found is not None
        delays.append(found)
    assert max(delays) <= 30


def test_a_model_that_collapsed_for_some_requests_is_noticed() -> None:
    pictures = Pictures(1)
    made = monitor(diversity=DIVERSITY)
    watch(made, pictures.many(600))
    items = list(pictures.many(600, collapse=0.3))
    finding = next(f for i in items for f in made.observe(i))
    assert finding.direction == "up"
    assert finding.value_now > finding.value_before + 0.1
    assert "no longer differ" in finding.text


def null(kind: str, seed: int, n: int) -> Iterator[ScoredRecord]:
    """Traffic of a healthy model: independent requests; users who draw one prompt about four times
    with new seeds; topics that come and go, from a tenth to nine tenths within 1,000 requests."""
    pictures, random = Pictures(seed), np.random.default_rng(seed)
    while n > 0:
        item = pictures.ask()
        if kind == "topics":
            often = random.random() < 0.5 + 0.4 * np.sin(2 * np.pi * n / 1_000)
            while (topic_of(item) in ("one", "two")) != often:
                item = pictures.ask()
        for _ in range(int(random.geometric(0.25)) if kind == "sessions" else 1):
            if kind == "sessions":
                drawn = pictures.ask()
                record = replace(drawn.record, prompt=item.record.prompt, unit=item.record.unit)
                row = item.prompt_embedding
                item = replace(drawn, record=record, prompt_embedding=row)
            yield item
            n -= 1


def alarms(kind: str, seeds: Iterable[int], n: int) -> int:
    found = 0
    for seed in seeds:
        made = monitor(diversity=DIVERSITY)
        for item in null(kind, seed, n):
            if made.observe(item):
                found += 1
                made.rebaseline(None)
    return found


@pytest.mark.parametrize("kind", ["iid", "sessions", "topics"])
def test_no_alarm_on_little_healthy_traffic(kind: str) -> None:
    assert alarms(kind, range(2), 800) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iid", "sessions", "topics"])
def test_false_alarms_keep_their_budget(kind: str) -> None:
    """One in 5,000 requests is allowed, 9.6 in 12 worlds of 4,000. Fails if that many or more would
    come by chance in one of twenty runs of a detector that keeps it (Poisson: 16)."""
    assert alarms(kind, range(12), 4_000) < 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "median"),
    [
        ({"collapse": 1.0}, 20),
        ({"collapse": 1.0, "exact": False}, 20),
        ({"collapse": 0.3}, 150),
    ],
)
def test_how_soon_a_collapse_is_noticed(how: dict[str, Any], median: int) -> None:
    """With the thresholds of a service of eleven signals, a false alarm of all in 50,000."""
    config = Monitoring(
        requests_between_false_alarms=50_000 * 22,
        signals={"diversity": DIVERSITY.model_copy(update={"reference": 2_000})},
    )
    delays = []
    for seed in range(12):
        pictures, made = Pictures(seed), Monitor("digits", config)
        watch(made, pictures.many(3_000))
        delays.append(delay(made, pictures.many(1_500, **how), "diversity") or 10_000)
    assert np.median(delays) <= median
    assert max(delays) <= 5 * median


def test_a_topic_that_many_ask_for_is_no_collapse() -> None:
    pictures = Pictures(2)
    made = monitor(diversity=DIVERSITY)
    watch(made, pictures.many(600))
    ones = (i for i in pictures.many(8_000) if "one" in i.record.prompt.split())
    assert watch(made, ones) == []


def test_a_topic_whose_pictures_look_like_others_is_no_collapse() -> None:
    """They always did: it is asked for more often now. Judged over all topics it was told."""

    def alike(item: ScoredRecord) -> ScoredRecord:
        """Two in five pictures of ones are one and the same."""
        once = "one" in item.record.prompt.split() and item.record.seq % 5 < 2
        return replace(item, image_hash="0123456789abcdef") if once else item

    def told(given_topic: bool) -> bool:
        pictures = Pictures(2)
        signal = DIVERSITY.model_copy(update={"given_topic": given_topic})
        made = monitor(diversity=signal)
        watch(made, map(alike, pictures.many(800)))
        ones = (i for i in pictures.many(4_000) if "one" in i.record.prompt.split())
        return watch(made, map(alike, ones)) != []

    assert not told(given_topic=True)
    assert told(given_topic=False)


def test_the_same_request_gives_the_same_picture_rightly() -> None:
    """Ten users of one prompt and seed, and slightly other words with the same seed."""
    pictures = Pictures(3)
    made = monitor(diversity=DIVERSITY)
    watch(made, pictures.many(600))
    first = pictures.ask()
    again = [
        replace(first, record=replace(first.record, unit=f"v{n}", request_id=f"v{n}"))
        for n in range(200)
    ]
    near = []
    for n in range(200):
        row = unit(np.array(first.prompt_embedding) + 0.2 * pictures.topics["one"] * (n % 5))
        record = replace(first.record, unit=f"w{n}", prompt=f"{first.record.prompt} {n % 5}")
        near.append(replace(first, record=record, prompt_embedding=tuple(map(float, row))))
    assert watch(made, [*again, *near]) == []
    others = [
        replace(i, record=replace(i.record, seed=n, unit=f"x{n}")) for n, i in enumerate(again)
    ]
    assert delay(made, others, "diversity") is not None  # but not with other seeds


def test_edits_repeats_and_others_pictures_do_not_count() -> None:
    pictures = Pictures(4)
    made = monitor(diversity=DIVERSITY)
    watch(made, pictures.many(600))
    edits = [
        replace(i, record=replace(i.record, task="edit")) for i in pictures.many(150, collapse=1.0)
    ]
    theirs = list(pictures.many(150, collapse=1.0, arm="challenger:x"))
    one = pictures.ask(collapse=1.0)
    robot = [replace(one, record=replace(one.record, unit="robot", seed=n)) for n in range(150)]
    assert watch(made, [*edits, *theirs, *robot]) == []


def test_without_prompts_the_hashes_are_left() -> None:
    """Where records hold no prompts, a collapse still shows; the same seed says nothing then."""

    def blind(item: ScoredRecord, seed: int | None = None) -> ScoredRecord:
        record = replace(item.record, prompt="", prompt_form="none")
        if seed is not None:
            record = replace(record, seed=seed)
        return replace(item, record=record, prompt_embedding=(), image_embedding=())

    pictures = Pictures(5)
    made = monitor(diversity=DIVERSITY)
    assert watch(made, (blind(i) for i in pictures.many(600))) == []
    collapsed = list(pictures.many(100, collapse=1.0))
    assert watch(made, (blind(i, seed=1) for i in collapsed)) == []
    assert (delay(made, (blind(i) for i in collapsed), "diversity") or 999) <= 30


# ------------------------------------------------------------------------------ other pictures


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    [
        (
            "blank_images",
            {"image_facts": {"contrast": 0.0, "black": 1.0, "white": 0.0}},
            "one tone",
        ),
        ("broken_images", {"image_facts": {}, "image_broken": True}, "cannot be read"),
        ("safety", {"scores": {"nsfw": 0.9}}, "unsafe"),
    ],
)
def test_shares_of_bad_pictures(name: str, broken: dict[str, object], words: str) -> None:
    pictures = Pictures(1)
    more = {"score": "nsfw"} if name == "safety" else {}
    signal = of(name, direction="up", tolerance=0.01, **more)
    config = Monitoring.model_validate(
        {
            "signals": {"it": signal.model_dump()},
            "scoring": {"heads": {"nsfw": {"type": "some:head"}}},
        }
    )
    made = Monitor("digits", config)

    def ask(bad: float) -> ScoredRecord:
        item = replace(pictures.ask(), scores={"nsfw": 0.1})
        return replace(item, **broken) if pictures.random.random() < bad else item  # type: ignore[arg-type]

    assert watch(made, (ask(0.01) for _ in range(800))) == []
    finding = next(f for _ in range(400) for f in made.observe(ask(0.3)))
    assert finding.of == name
    assert words in finding.text
    nothing = replace(ask(0.0), image_broken=None, image_facts={}, scores={})
    before = made.status()[0].requests
    watch(made, [nothing] * 10)  # not looked at: no data
    assert made.status()[0].requests == before


def test_pictures_that_move_are_told_apart_from_prompts_that_move() -> None:
    pictures = Pictures(1)
    made = monitor(prompts=of("prompt_embedding"), images=of("image_embedding"))
    assert watch(made, pictures.many(800)) == []
    moved = unit(pictures.random.standard_normal(32))

    def shifted(item: ScoredRecord) -> ScoredRecord:
        row = unit(np.array(item.image_embedding) + 0.7 * moved)
        return replace(item, image_embedding=tuple(float(v) for v in row))

    findings = watch(made, (shifted(i) for i in pictures.many(400)))
    assert [f.signal for f in findings] == ["images"]
    assert findings[0].direction == "moved"
    assert "pictures are no longer like" in findings[0].text


def test_conditioning_pictures_are_watched_whatever_is_asked_of_them() -> None:
    """Users say "make it blue" to any picture: only the same picture again is no news."""
    pictures = Pictures(1)
    made = monitor(conditions=of("condition_embedding"))

    def edit(centre: str, who: str) -> ScoredRecord:
        item = pictures.ask()
        row = unit(pictures.topics[centre] + 0.5 * unit(pictures.random.standard_normal(32)))
        record = replace(item.record, task="edit", unit=who)
        return replace(item, record=record, condition_embedding=tuple(float(v) for v in row))

    names = ("zero", "one", "two")
    assert watch(made, (edit(names[n % 3], f"u{n % 50}") for n in range(700))) == []
    robot = edit("nine", "robot")
    assert watch(made, [robot] * 300) == []
    found = delay(made, (edit("nine", f"u{n % 50}") for n in range(200)), "conditions")
    assert found is not None
    assert found <= 60


# --------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("span", [None, (0.0, 1000.0)])
def test_any_heads_score_is_watched_in_its_own_units(span: tuple[float, float] | None) -> None:
    random = np.random.default_rng(5)
    config = Monitoring.model_validate(
        {
            "requests_between_false_alarms": 5000,
            "scoring": {"heads": {"sharpness": {"type": "sharpness"}}},
            "signals": {
                "sharp": {
                    "of": "score",
                    "score": "sharpness",
                    "range": span,
                    "direction": "down",
                    "reference": REFERENCE,
                    "given_topic": False,
                }
            },
        }
    )
    pictures, made = Pictures(1), Monitor("digits", config)

    def scored(mean: float) -> ScoredRecord:
        value = float(np.exp(random.normal(np.log(mean), 0.3)))
        return replace(pictures.ask(), scores={"sharpness": value})

    assert watch(made, (scored(300.0) for _ in range(1_200))) == []
    finding = next(f for _ in range(500) for f in made.observe(scored(150.0)))
    assert finding.value_before == pytest.approx(314, rel=0.1)
    assert 100 < finding.value_now < 260
    assert finding.direction == "down"
    assert finding.text.startswith("sharpness fell from 3")


def test_other_heads_start_their_scores_anew() -> None:
    config = Monitoring(signals={"s": of("score", score="clip"), "d": DIVERSITY})
    pictures, made = Pictures(1), Monitor("digits", config)
    watch(made, (replace(i, heads="a") for i in pictures.many(500)))
    assert all(s.armed for s in made.status())
    watch(made, [replace(pictures.ask(), heads="b")])
    assert {s.signal: s.armed for s in made.status()} == {"s": False, "d": True}


# --------------------------------------------------------------------------------- given the topic


def test_what_is_judged_given_its_topic_begins_when_topics_are_known() -> None:
    signals = {
        "prompts": of("prompt_embedding"),
        "clip": of("clip_score"),
        "pooled": of("clip_score", given_topic=False),
    }
    pictures, made = Pictures(1), monitor(**signals)
    seen: list[str | None] = []
    detector: Any = made._watches["clip"].detector
    real = detector.update

    def update(x: object, **how: Any) -> bool:
        seen.append(how["topic"])
        return bool(real(x, **how))

    detector.update = update
    watch(made, pictures.many(400))
    status = {s.signal: s.requests for s in made.status()}
    assert status["pooled"] == 400
    assert 325 <= status["clip"] <= 340  # a quarter of the reference went into topics
    assert None not in seen
    assert len(set(seen)) >= 4


# ------------------------------------------------------------------------------------ its state

EVERYTHING = {
    "prompts": of("prompt_embedding"),
    "clip": of("clip_score"),
    "images": of("image_embedding"),
    "conditions": of("condition_embedding"),
    "diversity": DIVERSITY,
    "blank": of("blank_images"),
    "broken": of("broken_images"),
    "score": of("score", score="clip"),
    "thumbs": of("thumbs"),
}


@pytest.mark.parametrize("cut", [10, 100, 300, 420])
def test_restored_goes_on_exactly(cut: int) -> None:
    pictures = Pictures(5)
    items = [
        replace(i, condition_embedding=i.prompt_embedding)
        for i in (*pictures.many(400), *pictures.many(120, collapse=0.5))
    ]
    one = monitor(**EVERYTHING)
    watch(one, items[:cut])
    two = monitor(**EVERYTHING)
    two.restore(json.loads(json.dumps(one.state())))
    assert json.dumps(two.state()) == json.dumps(one.state())
    findings = watch(one, items[cut:])
    assert watch(two, items[cut:]) == findings
    assert findings
    assert json.dumps(one.state()) == json.dumps(two.state())


def test_a_state_of_before_topics_is_taken_up() -> None:
    pictures = Pictures(1)
    one = monitor(prompts=of("prompt_embedding"), clip=of("clip_score"))
    watch(one, pictures.many(500))
    state = dict(one.state())
    for key in ("topics", "cohorts", "heads"):
        del state[key]
    two = monitor(prompts=of("prompt_embedding"), clip=of("clip_score"))
    two.restore(json.loads(json.dumps(state)))
    watch(two, pictures.many(10))
    assert all(s.armed for s in two.status())
    assert two.state()["topics"] is not None


# ------------------------------------------------------------------------------------ redaction


def test_prompts_stay_out_of_findings_and_state_where_they_shall() -> None:
    pictures = Pictures(1)
    signals = {"prompts": of("prompt_embedding")}
    config = Monitoring(requests_between_false_alarms=5000, signals=signals, show_prompts=False)
    hidden, shown = Monitor("digits", config), monitor(**signals)
    items = [*pictures.many(400), *pictures.many(300, new=0.3)]
    findings = watch(hidden, items)
    assert [f.signal for f in findings] == ["prompts"]
    said = json.dumps(hidden.state()) + repr([hidden.refresh(f) for f in findings])
    prompts = {i.record.prompt for i in items if len(i.record.prompt) > 6}
    assert not [p for p in prompts if p in said]
    assert "things rarely asked before" in findings[0].text
    told = watch(shown, items)
    assert any(p in repr(told) for p in prompts)  # so that the test can fail


MISTAKES = [
    (
        "monitoring: {signals: {c: {of: condition_embedding}}}",
        "set serving.gateway.keep_conditions",
    ),
    (
        "serving: {gateway: {keep_conditions: true, prompts: drop}}\n"
        "monitoring: {signals: {e: {of: errors}}}",
        "leave one of them out",
    ),
    (
        "monitoring: {scoring: {images: false}, signals: {c: {of: image_embedding}}}",
        "needs monitoring.scoring.images",
    ),
    (
        "serving: {gateway: {prompts: hash}}\nmonitoring: {signals: {c: {of: score, score: clip}}}",
        "needs prompts",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_signals_that_could_never_say_anything_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(f"service: s\n{text}")
