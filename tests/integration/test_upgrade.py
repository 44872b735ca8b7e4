"""What an older version left in the middle of something is finished by this one.

The recordings under ``tests/fixtures/upgrade/VERSION`` are what that version had on disk; each must
come to the end to which it came when nothing was changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.upgrade import story

from intonaco import __version__

FILES = sorted(story.FOLDER.glob("*/*.json.gz"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name.split('.')[0]}")
def test_what_was_begun_is_finished(file: Path, tmp_path: Path) -> None:
    recording = story.read(file)
    assert story.finished(recording, tmp_path) == recording["ended"]


def test_every_moment_is_there() -> None:
    found = {f.name.split(".")[0] for f in FILES if f.parent.name == __version__}
    update = {"dataset", "train", "evaluate", "review", "gate", "register", "stage", "approve"}
    kinds = ("stage", "shadow", "canary", "pause", "approve", "analysis", "promote")
    rollout = {f"rollout-{kind}" for kind in kinds}
    ended = {"bake-bake", "promoted-retiring", "rolled_back-retiring", "back-bake-bake"}
    assert found >= update | rollout | ended
    assert all(f.stat().st_size < 100_000 for f in FILES)


@pytest.mark.slow
def test_recording_is_the_same_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"service-{number}").mkdir()
        for name, recording in story.record(tmp_path / f"service-{number}").items():
            story.write(recording, tmp_path / str(number) / f"{name}.json.gz")
    first, second = (sorted((tmp_path / n).iterdir()) for n in "12")
    assert [f.name for f in first] == [f.name for f in second]
    pairs = zip(first, second, strict=True)
    assert [a.name for a, b in pairs if a.read_bytes() != b.read_bytes()] == []
