"""What a switch costs where two releases cannot be loaded together."""

from __future__ import annotations

import pytest

from intonaco.rollout.cost import (
    memory,
    not_together,
    out_of_memory,
    rate,
    start_seconds,
    switch_cost,
)

GB = 10**9
FACTS = {
    "peak_memory_bytes": 12 * GB,
    "weights_bytes": 8 * GB,
    "device_bytes": 24 * GB,
    "device": "cuda, NVIDIA L4",
}


def test_two_that_fit_are_together() -> None:
    room = memory(FACTS, champion_workers=1, challenger_workers=1)
    assert (room.champion, room.challenger, room.device) == (12 * GB, 12 * GB, 24 * GB)
    assert room.together
    larger = memory(FACTS, champion_workers=1, challenger_workers=1, weights_ratio=1.25)
    assert larger.challenger == 14 * GB
    assert not larger.together
    assert not memory(FACTS, champion_workers=2, challenger_workers=1).together


@pytest.mark.parametrize("missing", ["peak_memory_bytes", "device_bytes"])
def test_what_nobody_knows_forbids_nothing(missing: str) -> None:
    facts = {k: v for k, v in FACTS.items() if k != missing}
    assert memory(facts, champion_workers=3, challenger_workers=3).together


def test_what_is_declared_counts() -> None:
    room = memory({}, champion_workers=1, challenger_workers=1, declared=9e9, device_declared=16e9)
    assert not room.together
    said = not_together(room, "b" * 64, switch_cost(41.6, 2.0))
    assert "bbbbbbbbbb and the champion cannot be loaded together" in said
    assert "takes 9.0 GB, the challenger about 9.0 GB, and the device has 16.0 GB" in said
    assert "rollout.strategy: in_place and rollout.force: true" in said
    assert "about 42 s, as long as the champion's last start took" in said
    assert "2.0 requests a second about 83 would wait" in said


def test_a_start_that_was_never_measured_is_not_made_up() -> None:
    assert "never measured" in switch_cost(None, 3.0)
    assert start_seconds({}) is None
    assert start_seconds({"load_seconds": 0.5, "start_seconds": None}) == 0.5
    assert start_seconds({"load_seconds": 0.5, "start_seconds": 6.0}) == 6.0


def test_only_a_lack_of_memory_is_told_as_one() -> None:
    cuda = "worker-b ended: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    said = out_of_memory(cuda, "it costs")
    assert said.startswith("there was no memory to load it beside the champion, which serves on")
    assert said.endswith(cuda)
    assert out_of_memory("unet.bin is a pickle", "it costs") == "unet.bin is a pickle"


def test_rates_of_few_requests() -> None:
    assert rate([]) == rate([5.0]) == rate([5.0, 5.0]) == 0.0
    assert rate([1.0, 2.0, 3.0]) == 1.0
