"""Recorded streams: formats, refusals that name the row, and figures that can be foretold."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.traffic import Traffic

from intonaco.config import Signal
from intonaco.errors import ConfigError
from intonaco.monitoring import streams
from intonaco.monitoring.detectors import MeanDetector, resolve
from intonaco.monitoring.sources import source

ROWS = [
    {"x": 0.1, "at": 1.0, "session": "u", "topic": "cats"},
    {"x": 0.9, "at": 2.0, "session": "v", "topic": "dogs", "changed": True},
    {"x": 0.8, "at": 3.5, "session": "u", "topic": "cats", "changed": True},
]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_same_stream_from_every_format(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(r) for r in ROWS)
    table = "x,at,session,topic,changed\n0.1,1,u,cats,0\n0.9,2,v,dogs,1\n0.8,3.5,u,cats,1\n"
    np.savez(
        tmp_path / "s.npz",
        x=[0.1, 0.9, 0.8],
        at=[1, 2, 3.5],
        session=["u", "v", "u"],
        topic=["cats", "dogs", "cats"],
        change_at=1,
    )
    written(tmp_path, "s.jsonl", lines)
    written(tmp_path, "s.csv", table)
    for name in ("s.npz", "s.jsonl", "s.csv"):
        found = streams.read(tmp_path / name)
        assert found.x.tolist() == [0.1, 0.9, 0.8], name
        assert found.at is not None
        assert found.at.tolist() == [1.0, 2.0, 3.5]
        assert found.session == ["u", "v", "u"]
        assert found.topic == ["cats", "dogs", "cats"]
        assert found.change_at == 1
        assert not found.vectors


def test_vectors_and_what_is_not_there(tmp_path: Path) -> None:
    found = streams.read(written(tmp_path, "v.csv", "x0,x1\n1,0\n0,1\n"))
    assert found.x.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert (found.at, found.session, found.topic, found.change_at) == (None, None, None, None)
    assert streams.read(written(tmp_path, "v.jsonl", '{"x": [1, 0]}\n')).vectors


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("s.txt", "", "not one of .npz, .jsonl, .csv"),
        ("s.jsonl", "{}", r"row 1 has no x \(nor x0"),
        ("s.jsonl", '{"x": 1}\nno', "line 2 is not JSON"),
        ("s.jsonl", "[1]", "line 1 is not an object"),
        ("s.jsonl", '{"x": 1}\n{"x": [1, 2]}', "x of one length"),
        ("s.jsonl", '{"x": 1}\n{"x": NaN}', "x of row 2 is not finite"),
        ("s.jsonl", '{"x": 1, "at": 1}\n{"x": 2}', "at is missing in some rows"),
        ("s.csv", "x\nmany\n", "have to be numbers"),
        ("s.csv", "x\n", "holds no requests"),
        ("s.jsonl", "", "holds no requests"),
        ("s.csv", "x\n0.5\n0.6,0.7\n", "row 2 has more values than there are columns"),
        ("s.csv", "x,at\n0.5,1\n0.6,inf\n", "at of row 2 is not finite"),
        ("s.npz", "no zip", "is no .npz file of plain arrays"),
        ("s.npz", "PK\x03\x04 no zip either", "is no .npz file of plain arrays"),
        ("s.npz", "", "is no .npz file of plain arrays"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        streams.read(written(tmp_path, name, text))


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    arrays: list[tuple[dict[str, Any], str]] = [
        ({"y": [1.0]}, "no array x; it has y"),
        ({"x": [1.0, 2.0], "at": [1.0]}, "at has 1 values, x has 2"),
        ({"x": [1.0], "change_at": 7}, "change_at is 7"),
        ({"x": np.zeros((2, 2, 2))}, "shape"),
        ({"x": np.zeros((2, 0))}, "shape"),
        ({"x": [1.0, 2.0], "at": [np.nan, 1.0]}, "at of row 1 is not finite"),
        ({"x": [1.0, 2.0], "at": [[1.0], [2.0]]}, "at has the shape"),
        ({"x": [1.0], "change_at": [0, 0]}, "change_at is one number"),
        ({"x": [1.0], "change_at": "soon"}, "change_at is one number"),
        ({"x": np.array([{}], dtype=object)}, "plain arrays"),
    ]
    for given, said in arrays:
        np.savez(tmp_path / "s.npz", **given)
        with pytest.raises(ConfigError, match=said):
            streams.read(tmp_path / "s.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ConfigError, match="one array without a name"):
        streams.read(tmp_path / "one.npz")
    with pytest.raises(ConfigError, match="does not exist"):
        streams.read(tmp_path / "no.csv")


def test_names_and_options_of_detectors() -> None:
    assert streams.parse_detector("e-mean") == ("e-mean", {})
    assert streams.parse_detector("some.module:Attribute") == ("some.module:Attribute", {})
    name, options = streams.parse_detector("some.module:A:direction=down,tolerance=0.1")
    assert (name, options) == ("some.module:A", {"direction": "down", "tolerance": 0.1})
    name, options = streams.parse_detector("stratified:of=e-rate,topics=3,reference=50")
    known = streams.settings(100, 1e4, options)
    assert (known.options, known.reference) == ({"of": "e-rate", "topics": 3}, 50)
    _, own = streams.parse_detector("e-mean:size=3")
    with pytest.raises(ConfigError, match="size"):
        resolve("e-mean")[1](streams.settings(100, 1e4, own))
    with pytest.raises(ConfigError, match="direction is one of up, down, both"):
        streams.parse_detector("e-mean:direction=left")
    with pytest.raises(ConfigError, match="seed='x' is no number"):
        streams.parse_detector("e-mean:seed=x")


def numbers(n: int, change_at: int | None) -> streams.Stream:
    rng = np.random.default_rng(5)
    x = (rng.random(n) < 0.2).astype(float)
    if change_at is not None:
        x[change_at:] = rng.random(n - change_at) < 0.6
    return streams.Stream(x=x, change_at=change_at)


def test_a_plain_change_is_found_and_a_plain_stream_is_quiet() -> None:
    _, factory = resolve("e-mean")
    make = partial(factory, streams.settings(500, 10_000, {"direction": "up"}))
    told: list[None] = []
    clock = iter(range(10**6)).__next__
    score, used = streams.judge(
        make, numbers(2500, 2000), 500, lambda: float(clock()), heard=lambda: told.append(None)
    )
    assert used == 500
    assert (score.false_alarms, score.misses, score.null_events) == (0, 0, 1500)
    assert 0 < score.median_delay < 60
    assert len(told) >= 4
    quiet, _ = streams.judge(make, numbers(2500, None), 500, lambda: float(clock()))
    assert (quiet.false_alarms, quiet.null_events) == (0, 2000)
    facts = streams.as_facts("e-mean", quiet, 10_000)
    assert facts["delay"] is None
    assert facts["keeps_budget"] is True
    assert facts["state_bytes"] > 0
    json.dumps(facts)


def test_topics_reach_the_detector_and_do_not_change_what_ignores_them() -> None:
    plain = numbers(2500, 2000)
    with_topics = streams.Stream(x=plain.x, change_at=2000, topic=["t"] * len(plain))
    scores = [
        streams.judge(
            lambda: MeanDetector(threshold=math.log(10_000), reference=500), s, 500, lambda: 0.0
        )[0]
        for s in (plain, with_topics)
    ]
    assert scores[0].delays == scores[1].delays


def test_a_reference_that_cannot_be() -> None:
    _, factory = resolve("e-mean")
    make = partial(factory, streams.settings(500, 10_000, {}))
    for stream, reference, said in (
        (numbers(400, None), 500, "500 of 400 requests leave none"),
        (numbers(900, 300), 500, "change is at request 300, inside the reference of 500"),
        (numbers(2000, None), 100, "did not arm"),
    ):
        with pytest.raises(ConfigError, match=said):
            streams.judge(make, stream, reference, lambda: 0.0)


def test_a_signal_is_read_off_recorded_requests() -> None:
    traffic = Traffic(seed=2)
    items = [*traffic.many(40), traffic.ask(probe=True)]
    prompts = streams.of_records(items, source("p", Signal(of="prompt_embedding")))
    assert prompts.x.shape == (40, 32)
    assert prompts.session is not None
    scores = streams.of_records(items, source("c", Signal(of="clip_score")))
    assert scores.x.shape == (40,)
    assert (scores.x >= 0).all()
    with pytest.raises(ConfigError, match="hold nothing of it"):
        streams.of_records([], source("c", Signal(of="clip_score")))


def test_numbers_are_scaled_to_what_detectors_take() -> None:
    stream = streams.Stream(x=np.array([-1.0, 0.0, 5.0, 11.0]))
    assert stream.scaled(0, 10).x.tolist() == [0.0, 0.0, 0.5, 1.0]
    with pytest.raises(ConfigError, match="below the second"):
        stream.scaled(1, 1)
