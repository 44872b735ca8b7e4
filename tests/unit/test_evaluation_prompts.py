"""Golden prompts: what a file may hold, versions, the hidden part, leaks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intonaco.errors import ConfigError
from intonaco.evaluation.prompts import (
    Prompt,
    as_rows,
    hidden,
    leaked,
    of_rows,
    problems,
    read_prompts,
    remarks,
    shots,
    version_of,
)

KEY = b"secret"


def prompt(name: str, *, of: str = "s", **changes: Any) -> Prompt:
    return replace(Prompt(prompt_id=name, prompt=f"words of {name}", slice=of), **changes)


def some(count: int, *, of: str = "s") -> list[Prompt]:
    return [prompt(f"{of}-{i}", of=of) for i in range(count)]


def write(file: Path, *lines: object) -> Path:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


LINE = {"prompt_id": "a", "prompt": "x", "slice": "s"}


def test_kinds(tmp_path: Path) -> None:
    file = write(tmp_path / "p", LINE, LINE | {"prompt_id": "b", "kind": "edge"})
    assert [p.kind for p in read_prompts(file)] == ["representative", "edge"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE | {"kind": "odd"}, "kind is 'odd'"),
        (LINE | {"weight": 3}, "'weight' is unknown"),
        (LINE | {"prompt": "  "}, "prompt is empty"),
        (LINE | {"slice": ""}, "slice is empty"),
        (LINE | {"prompt": None}, "prompt is null, it must be text"),
        (LINE | {"slice": ["a", "b"]}, r'slice is \["a", "b"\], it must be text'),
        (["a"], "line 1: no prompt"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts(write(tmp_path / "p", line))


def test_a_version_is_of_the_content(tmp_path: Path) -> None:
    prompts = some(4)
    assert version_of(prompts) == version_of(prompts[::-1])
    changes: tuple[dict[str, Any], ...] = ({"prompt": "y"}, {"slice": "t"}, {"kind": "edge"})
    others = [[*prompts[:3], replace(prompts[3], **c)] for c in changes]
    assert len({version_of(p) for p in (prompts, *others)}) == 4


def test_the_same_words_twice_are_no_two_prompts() -> None:
    twice = [prompt("a", prompt="A  red cat"), prompt("b", prompt="a red cat ")]
    assert problems(twice) == ["'b' has the words of 'a': one of them is enough"]
    # in another slice they stand for another part of the demand
    assert (
        problems([*some(2), prompt("a", of="t", prompt=some(1)[0].prompt), *some(1, of="t")]) == []
    )


def test_slices_need_enough() -> None:
    assert problems([*some(9), prompt("x", of="lone")]) == [
        "slice 'lone' has 1 prompt, at least 2 are needed for an interval"
    ]
    assert "fewer than 8 prompts in s" in remarks(some(7), 0.2)[0]
    assert remarks(some(8), 0.2) == []
    assert "no slice is large enough to hide 20%" in remarks(some(4), 0.2)[-1]


def test_a_share_of_each_slice_and_kind_is_hidden() -> None:
    edge = [prompt(f"e{i}", kind="edge") for i in range(5)]
    prompts = [*some(20), *some(10, of="t"), *some(4, of="u"), *edge]
    secret = hidden(prompts, share=0.2, period="1", key=KEY)
    counts = Counter((p.slice, p.kind) for p in prompts if p.prompt_id in secret)
    assert counts == {("s", "representative"): 4, ("t", "representative"): 2, ("s", "edge"): 1}
    assert secret == hidden(prompts[::-1], share=0.2, period="1", key=KEY)
    assert hidden(prompts, share=0.0, period="1", key=KEY) == frozenset()


def test_periods_hide_others_evenly_and_nobody_knows_without_the_key() -> None:
    prompts = some(50)
    counts: Counter[str] = Counter()
    periods = 400
    for period in range(periods):
        counts.update(hidden(prompts, share=0.2, period=str(period), key=KEY))
    # each is hidden in a fifth of the periods: binomial, six standard errors
    error = (0.2 * 0.8 / periods) ** 0.5
    assert all(abs(counts[p.prompt_id] / periods - 0.2) < 6 * error for p in prompts)
    here = hidden(prompts, share=0.2, period="1", key=KEY)
    assert here != hidden(prompts, share=0.2, period="1", key=b"another")
    assert here != hidden(prompts, share=0.2, period="2", key=KEY)


def test_leaks_are_found_whatever_their_case() -> None:
    prompts = [prompt("a", prompt="A photo of Seven"), prompt("b", prompt="eight")]
    assert leaked(prompts, ["a photo  of seven", "nine"]) == ("a",)


def test_shots_travel_whole() -> None:
    drawn = shots([prompt("a", kind="edge"), prompt("b")], 3)
    assert of_rows(json.loads(json.dumps(as_rows(drawn)))) == list(drawn)


def test_other_seeds() -> None:
    prompts = some(3)
    own, others = shots(prompts, 2), shots(prompts, 2, first=2)
    assert {s.seed for s in own}.isdisjoint(s.seed for s in others)
    assert set(shots(prompts, 4)) == {*own, *others}
