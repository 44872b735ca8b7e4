"""What company does to an image: a real pipeline under the real batcher."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests import fixtures_tiny

from intonaco.messages import GenerateRequest
from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.core import Aborted, Images, OutOfMemory, Preview, StepWatch
from intonaco.serving.worker.engine import Engine, load
from intonaco.serving.worker.job import Done
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)

WORDS = ("zero", "one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("bits")
    workspace = Workspace(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(root / "p"))
        loaded = load(release, workspace.resolve(release.path), device="cpu", threads=1)
        loaded.generate([ask(0)], 1)
    return loaded


def ask(seed: int, negative: str = "") -> GenerateRequest:
    return GenerateRequest(
        request_id=f"r{seed}",
        prompt=f"a handwritten {WORDS[seed % 6]}",
        negative_prompt=negative,
        seed=seed,
        steps=3,
        guidance_scale=1.5,
        width=32,
        height=32,
    )


def negative(seed: int) -> GenerateRequest:
    return ask(seed, f"a handwritten {WORDS[(seed + 3) % 6]}")


def together(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    *,
    sizes: Sequence[int] = (1, 2, 4, 8),
    strict: bool = False,
    memory: int = 64,
    listener: Listener | None = None,
) -> list[Done]:
    """Queue them all, then let the batcher begin. ``memory``: the largest size that fits."""

    def run(items: Sequence[GenerateRequest], size: int, watch: StepWatch) -> Images:
        if size > memory:
            raise OutOfMemory
        return engine.generate(items, size, watch)

    batcher = MicroBatcher[GenerateRequest](run, sizes=sizes, wait_s=0, limit=64, strict=strict)
    jobs = [
        batcher.submit(r, engine.batch_key(r), unit=r.request_id, listener=listener)
        for r in requests
    ]
    thread = threading.Thread(target=batcher.serve)
    thread.start()
    try:
        return [job.future.result(60) for job in jobs]
    finally:
        batcher.stop()
        thread.join(60)
        assert not thread.is_alive()


def bits(image: Any) -> bytes:
    return np.asarray(image).tobytes()


def alone(engine: Engine, request: GenerateRequest, size: int) -> bytes:
    return bits(engine.generate([request], size).images[0])


def test_strict_gives_the_same_bits_alone_and_in_any_company(engine: Engine) -> None:
    wanted = ask(7)
    (first,) = together(engine, [wanted], sizes=(1, 2, 4), strict=True)
    for company in (1, 2, 3, 5):
        others = [ask(20 + i) for i in range(company)]
        for place in {0, company}:
            requests = [*others[:place], wanted, *others[place:]]
            done = together(engine, requests, sizes=(1, 2, 4), strict=True)
            assert {d.padded_size for d in done} == {4}
            assert bits(done[place].image) == bits(first.image)
    (other,) = together(engine, [ask(8)], sizes=(4,), strict=True)
    assert bits(other.image) != bits(first.image)


def test_at_one_padded_size_neighbours_change_nothing(engine: Engine) -> None:
    wanted = ask(3)
    seen = set()
    for company in ([11, 12], [13, 14], [15, 16, 17]):
        done = together(engine, [wanted, *map(ask, company)])
        assert done[0].padded_size == 4
        seen.add(bits(done[0].image))
    assert len(seen) == 1


def test_mixed_prompts_seeds_and_negative_prompts_are_each_what_they_are_alone(
    engine: Engine,
) -> None:
    requests = [ask(s) if s % 2 else negative(s) for s in range(11)]
    done = together(engine, requests)
    assert max(d.batch_size for d in done) > 1
    for request, d in zip(requests, done, strict=True):
        assert bits(d.image) == alone(engine, request, d.padded_size)
    assert len({bits(d.image) for d in done}) == len(done)
    assert alone(engine, ask(4), 8) != alone(engine, negative(4), 8)


def test_halves_of_a_batch_that_was_too_large_are_what_they_are_alone(engine: Engine) -> None:
    requests = [ask(s) for s in range(7)]
    done = together(engine, requests, memory=2)
    assert [d.padded_size for d in done] == [2, 2, 2, 2, 2, 2, 1]
    for request, d in zip(requests, done, strict=True):
        assert bits(d.image) == alone(engine, request, d.padded_size)


def test_an_aborted_batch_leaves_the_pipeline_as_it_was(engine: Engine) -> None:
    before = alone(engine, ask(5), 2)
    steps: list[int] = []

    def watch(done: int, steps_: int, preview: Preview) -> None:
        steps.append(done)
        if done == 2:
            raise Aborted

    with pytest.raises(Aborted):
        engine.generate([ask(1), ask(2)], 2, watch)
    assert steps == [1, 2]
    assert alone(engine, ask(5), 2) == before


class Listener:
    def __init__(self) -> None:
        self.pictures: list[Any] = []

    def step(self, done: int, steps: int) -> bool:
        return done < steps

    def partial(self, image: Any) -> None:
        self.pictures.append(image)


def test_being_watched_changes_no_bit(engine: Engine) -> None:
    listener = Listener()
    (done,) = together(engine, [ask(9)], listener=listener)
    assert bits(done.image) == alone(engine, ask(9), 1)
    assert [p.size for p in listener.pictures] == [(32, 32)] * 2
    assert len({*map(bits, listener.pictures), bits(done.image)}) == 3, "it is being denoised"
