"""The traffic of a made-up world: scored records and votes, request by request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intonaco.testing.incidents.world import BEGAN, DIMENSION, SIZES, Fault, World
from intonaco.types import Attempt, Feedback, Outcome, Record, ScoredRecord, Tally

SERVICE, GATEWAY = "made-up", "gateway"
CHAMPION, PREVIOUS = "c" * 64, "b" * 64
MOST_IN_BATCH = 4
PATIENCE = 12.0  # a worker refuses what would wait this many times the work of a usual image
CHUNK = 512
SHOWN = {"contrast": 0.25, "black": 0.02, "white": 0.05}
NOTHING_SHOWN = {"contrast": 0.0, "black": 1.0, "white": 0.0}
VOTED_SECONDS = 130.0  # who votes at all has done so by then


@dataclass(slots=True)
class _Counted:
    """By the gateway, in the present second."""

    requests: int = 0
    refused: int = 0
    images: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Machine:
    slow: int
    free_at: float = 0.0


class Traffic:
    """``next()`` gives one request after the other: the scored record (None: it was refused at the
    door), and the vote on its image if there will be one. ``tallies``: what the gateway counted
    since the caller emptied it."""

    def __init__(self, world: World, faults: Sequence[Fault], *, seed: int) -> None:
        self.world = world
        self.faults = tuple(faults)
        self.random = np.random.default_rng([53, world.seed, seed])
        self.at = BEGAN
        self.number = 0
        self.tallies: list[Tally] = []
        self._counted = _Counted()
        self._written = 0  # records
        self._seconds = 0  # with a tally
        self._machines = [_Machine(i) for i in range(world.replicas)]
        self._held = [_Machine(-1)]  # the release before has a machine of its own
        self._mean_work = sum(
            share * work(c) for share, c in zip(world.class_shares, world.classes, strict=True)
        )
        self._unit_work = self._calibrate()
        self._last: dict[int, tuple[int, np.ndarray]] = {}
        self._robot_left = 0
        self._robot: tuple[int, np.ndarray] | None = None
        self._cumulative = np.cumsum(world.shares)
        self._class_cumulative = np.cumsum(world.class_shares)
        self._u = np.zeros((0, 12))
        self._z = np.zeros((0, DIMENSION + 3))
        self._painter = np.random.default_rng([59, world.seed, seed])
        # of each topic, the new one, and the one picture that a collapsed model draws
        self._pictures = self._painter.standard_normal((world.topics + 2, DIMENSION))
        self._strokes = np.zeros((0, DIMENSION))
        self._bits = np.zeros(0, dtype=np.uint64)

    def _calibrate(self) -> float:
        """Seconds for a megapixel step, so that the machines are as busy as the world says."""
        w = self.world
        return w.utilisation * w.replicas / (w.rate * self._mean_work)

    def active(self) -> list[Fault]:
        return [f for f in self.faults if self.number >= f.start]

    def _draws(self) -> tuple[np.ndarray, np.ndarray]:
        place = self.number % CHUNK
        if place == 0:
            self._u = self.random.random((CHUNK, 12))
            self._z = self.random.standard_normal((CHUNK, DIMENSION + 3))
        return self._u[place], self._z[place]

    def next(self) -> tuple[ScoredRecord | None, Feedback | None]:
        w, faults = self.world, self.active()
        u, z = self._draws()
        swing = 1.0 + w.rate_swings * math.sin(2.0 * math.pi * self.number / w.cycle)
        swing *= w.growth ** (self.number / 2500.0)
        rate = w.rate * swing * math.prod(f.demand for f in faults)
        self._count_until(self.at - math.log(1.0 - u[0]) / rate)
        self.number += 1
        self._counted.requests += 1
        if u[7] < w.base_refused + sum(f.refused for f in faults):
            self._counted.refused += 1
            return None, None
        user, topic, vector = self._asks(u, z, faults)
        side, steps = self._class(u[3], faults)
        held = u[4] < w.holdback
        at_work = [f for f in faults if not (held and f.of_release)]
        attempt, status = self._serve(work((side, steps)), held, u, z, at_work)
        served = attempt.outcome is Outcome.OK
        self._counted.images += served
        self._counted.failed += not served
        score = self._score(topic, z, at_work) if served else None
        self._written += 1
        record = Record(
            gateway=GATEWAY,
            gateway_epoch=1,
            seq=self._written - 1,
            service_id=SERVICE,
            request_id=f"r{self.number}",
            at=self.at,
            unit=f"u{user}",
            assigned_arm=attempt.arm,
            probability=w.holdback if held else 1.0 - w.holdback,
            routing_epoch=1,
            salt="salt",
            attempts=(attempt,),
            served_by=attempt.release if served else None,
            served_arm=attempt.arm if served else None,
            status=status,
            seconds=attempt.seconds,
            prompt=f"topic {topic}, words {int(1000 * abs(z[0]))}",
            seed=self.number,
            steps=steps,
            guidance_scale=5.0,
            width=side,
            height=side,
            image=f"images/r{self.number}.png" if served else None,
        )
        item = ScoredRecord(
            record=record,
            prompt_embedding=tuple(vector.tolist()),
            scores={} if score is None else {"clip": score},
            extractor="e" * 64,
        )
        if served:
            item = self._paint(item, topic, at_work)
        return item, self._vote(record, topic, u, at_work) if served else None

    def _count_until(self, at: float) -> None:
        """Let time pass; a second with requests that ended becomes a tally."""
        ended = math.floor(self.at) + 1.0
        if at >= ended and self._counted.requests:
            counted, self._counted = self._counted, _Counted()
            self._seconds += 1
            self.tallies.append(
                Tally(
                    gateway=GATEWAY,
                    gateway_epoch=1,
                    seq=self._seconds - 1,
                    service_id=SERVICE,
                    at=ended,
                    requests=counted.requests,
                    failed=counted.failed,
                    images=counted.images,
                    in_flight=0,
                    refused={"invalid_value": counted.refused} if counted.refused else {},
                    record_epoch=1,
                    record_seq=self._written,
                )
            )
        self.at = at

    def _paint(self, item: ScoredRecord, topic: int, faults: Sequence[Fault]) -> ScoredRecord:
        """What the scorer sees of the picture."""
        place = self.number % CHUNK
        if place >= len(self._bits) or place == 0:
            self._strokes = self._painter.standard_normal((CHUNK, DIMENSION))
            self._bits = self._painter.integers(2**63, size=CHUNK, dtype=np.uint64)
        bits, row = self._bits[place], self._pictures[topic] + 0.7 * self._strokes[place]
        unlike = {name: 0.3 * score for name, score in item.scores.items()}  # its prompt
        chance = float(bits % 10_007) / 10_007
        if chance < sum(f.unreadable for f in faults):
            return replace(item, scores={}, image_broken=True)
        if chance < sum(f.blank for f in faults):
            return replace(
                item,
                scores=unlike,
                image_hash="0" * 16,
                image_facts=NOTHING_SHOWN,
                image_broken=False,
            )
        if chance < sum(f.alike for f in faults):
            item = replace(item, scores=unlike)
            bits, row = np.uint64(7), self._pictures[-1] + 0.05 * self._strokes[place]
        row = row / np.linalg.norm(row)
        return replace(
            item,
            image_embedding=tuple(row.tolist()),
            image_hash=f"{int(bits):016x}",
            image_facts=SHOWN,
            image_broken=False,
        )

    # ------------------------------------------------------------------------------ who asks what

    def _asks(
        self, u: np.ndarray, z: np.ndarray, faults: Sequence[Fault]
    ) -> tuple[int, int, np.ndarray]:
        """User, topic and the prompt's unit vector."""
        w = self.world
        if self._robot_left > 0 and self._robot is not None:
            self._robot_left -= 1
            return -1, *self._robot
        user = int(w.users * u[1] ** 2)  # some ask far more than others
        before = self._last.get(user)
        if before is not None and u[2] < w.again:
            topic = before[0]
            vector = before[1] + 0.15 * z[:DIMENSION] / math.sqrt(DIMENSION)
        else:
            topic = self._topic(u, faults)
            vector = w.centres[topic] + 0.9 * z[:DIMENSION] / math.sqrt(DIMENSION)
        vector = vector / np.linalg.norm(vector)
        self._last[user] = (topic, vector)
        if w.robot and u[11] < 1.0 / 700.0:
            self._robot, self._robot_left = (topic, vector), w.robot
        return user, topic, vector

    def _topic(self, u: np.ndarray, faults: Sequence[Fault]) -> int:
        w = self.world
        extra = u[5]
        for fault in faults:
            if fault.new_topic:
                if extra < fault.new_topic:
                    return w.topics
                extra -= fault.new_topic
            if fault.grows:
                if extra < fault.grows:
                    return w.topics - 1
                extra -= fault.grows
        cumulative = self._cumulative
        if w.topics_swing:
            angle = 2.0 * math.pi * self.number / w.cycle
            shares = w.shares * (1.0 + w.topics_swing * np.sin(angle + w.phase))
            cumulative = np.cumsum(shares / shares.sum())
        return min(int(np.searchsorted(cumulative, u[6])), w.topics - 1)

    def _class(self, u: float, faults: Sequence[Fault]) -> tuple[int, int]:
        for fault in faults:
            if fault.larger:
                if u < fault.larger:
                    return SIZES[-1], self.world.classes[-1][1]
                u = (u - fault.larger) / (1.0 - fault.larger)
        place = int(np.searchsorted(self._class_cumulative, u))
        return self.world.classes[min(place, len(self.world.classes) - 1)]

    # ------------------------------------------------------------------------------- who does what

    def _serve(
        self, work: float, held: bool, u: np.ndarray, z: np.ndarray, faults: Sequence[Fault]
    ) -> tuple[Attempt, int]:
        w = self.world
        arm, release = ("holdback", PREVIOUS) if held else ("champion", CHAMPION)
        machines = self._held if held else self._machines
        machine = min(machines, key=lambda m: m.free_at)
        seconds = self._unit_work * work * math.exp(w.spread * z[DIMENSION])
        usual = self._unit_work * work
        for fault in faults:
            # a machine of the release before is no worse for what befell one of the champion's
            if fault.slower != 1.0 and (
                fault.machines is None or 0 <= machine.slow < fault.machines
            ):
                seconds *= fault.slower
        wait = max(0.0, machine.free_at - self.at)

        def attempt(outcome: Outcome, error: str = "", **more: Any) -> Attempt:
            return Attempt(
                arm=arm, release=release, outcome=outcome, started_at=self.at, error=error, **more
            )

        if wait > PATIENCE * self._unit_work * self._mean_work and not w.elsewhere:
            return attempt(Outcome.REJECTED, "429 busy: the queue is full", seconds=0.01), 503
        failing = w.base_errors + sum(f.failing for f in faults)
        if u[8] < failing:
            took = 0.2 * seconds
            return attempt(Outcome.ERROR, "500 internal: failed", seconds=took), 500
        if w.elsewhere:
            return attempt(Outcome.OK, seconds=seconds, service_seconds=seconds), 200
        together = min(MOST_IN_BATCH, 1 + int(wait / usual))
        padded = 1 << (together - 1).bit_length()
        whole = seconds * batch_work(padded)
        machine.free_at = max(machine.free_at, self.at) + whole / padded
        return (
            attempt(
                Outcome.OK,
                seconds=wait + whole,
                queue_seconds=wait,
                service_seconds=whole,
                denoise_seconds=0.9 * whole,
                decode_seconds=0.1 * whole,
                batch_size=together,
                padded_size=padded,
                gpu_seconds=whole / padded,
            ),
            200,
        )

    def _score(self, topic: int, z: np.ndarray, faults: Sequence[Fault]) -> float:
        w = self.world
        score = float(w.topic_quality[topic] + w.quality_spread * z[DIMENSION + 1])
        for fault in faults:
            hard = self._hard(fault, topic)
            score -= fault.drop + (fault.gap if hard else 0.0)
        return max(-1.0, min(1.0, score))

    def _hard(self, fault: Fault, topic: int) -> bool:
        """Whether the topic is the one that the fault sends requests to."""
        w = self.world
        return (fault.new_topic > 0 and topic == w.topics) or (
            fault.grows > 0 and topic == w.topics - 1
        )

    def _vote(
        self, record: Record, topic: int, u: np.ndarray, faults: Sequence[Fault]
    ) -> Feedback | None:
        w = self.world
        if u[9] >= w.voting:
            return None
        liked = w.liked
        for fault in faults:
            if fault.dislike and (fault.topics == 0 or topic < fault.topics):
                liked -= fault.dislike
            # people vote by what they see
            hard = self._hard(fault, topic)
            worse = fault.drop + (fault.gap if hard else 0.0) + 0.4 * (fault.alike + fault.blank)
            liked -= 0.8 * worse
        return Feedback(
            gateway=GATEWAY,
            gateway_epoch=1,
            seq=self.number,
            service_id=SERVICE,
            at=record.at + VOTED_SECONDS * (0.05 + 0.9 * u[11]),
            request_id=record.request_id,
            made_at=record.at,
            assigned_arm=record.assigned_arm,
            release=str(record.served_by),
            unit=record.unit,
            kind="explicit",
            vote="up" if u[10] < liked else "down",
        )


def batch_work(padded: int) -> float:
    """What a batch takes, in units of one image: small batches do not fill a device."""
    return 0.7 + 0.3 * padded


def work(request: tuple[int, int]) -> float:
    """Megapixel steps."""
    side, steps = request
    return side * side * 1e-6 * steps
