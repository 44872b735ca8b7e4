"""A request's way: its arm, the champion if that fails, and what the breaker learns of it.

The canary shield: whatever happens on an arm that is not the champion's, the champion answers
instead, with the same seed. The user sees an error only if the champion fails too.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from intonaco.clock import Clock
from intonaco.messages import ApiError, GenerateRequest
from intonaco.serving.gateway.problems import BUSY
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.upstream import OnEvent, Reply, Upstream
from intonaco.types import Arm, ArmRole, Attempt, Json, Outcome

REFUSED_S = 30.0  # how long nobody of the champion's may be there before the user hears of it
MOST_FAILED = 2  # tries that one request may fail at workers of an arm: it may be what ends them
FIRST_WAIT_S = 0.05
BROKEN_WAIT_S = 0.25  # a process that dies may still accept a connection or two
LONGEST_WAIT_S = 1.0
NO_WORKER_S = 5.0  # when to come again if nobody was there, which the gateway has waited for
GENERATION = ("steps", "guidance_scale", "width", "height")
REFUSALS = (429, 503)  # answers that say when to come again
PROBES = 2
PROBE_EVERY_S = 1.0
REMEMBERED = 16
REMEMBERED_CHARS = 2**20  # of a picture in base64; longer ones are not remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one image. ``png`` is there exactly when ``status`` is 200. ``retry_after_s``:
    the least that a worker which refused it asked for."""

    status: int
    attempts: tuple[Attempt, ...]
    png: bytes | None = None
    served_by: str | None = None
    served_arm: str | None = None
    error: ApiError | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An image asked for, and by whom. ``request`` holds the champion's defaults where the client
    chose nothing; ``chosen`` names the fields that the client chose. A release fills the others
    with its own defaults, which are part of what it is."""

    request: GenerateRequest
    unit: str
    chosen: frozenset[str] = frozenset()

    def for_release(self, defaults: Mapping[str, Json]) -> GenerateRequest:
        """The request as a release with these generation defaults takes it."""
        own = {k: defaults[k] for k in GENERATION if k in defaults and k not in self.chosen}
        return replace(self.request, **own)


ProbeSender = Callable[[Arm, Asked], None]


@dataclass(slots=True)
class _Failed:
    """Tries that failed after they had begun. ``broken``: those whose connection broke, as it does
    when a worker dies."""

    tries: int = 0
    broken: int = 0

    def add(self, reply: Reply) -> None:
        self.tries += reply.outcome is Outcome.ERROR and not reply.refused
        self.broken += reply.broken


@dataclass(slots=True)
class Dispatcher:
    """``attempts`` lists are filled as tries end, so that a cancelled request is known up to its
    last try."""

    state: GatewayState
    upstream: Upstream
    clock: Clock
    challenger_timeout_s: float
    send_probe: ProbeSender | None = None
    _good: deque[Asked] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _probed_at: dict[str, float] = field(default_factory=dict)

    async def serve(
        self,
        asked: Asked,
        arm: Arm,
        deadline: float,
        attempts: list[Attempt],
        on_event: OnEvent | None = None,
    ) -> Answer:
        """Answer a user: by ``arm``, else by the stable arm. ``on_event`` hears of the image while
        it is made, from each worker that tries."""
        failed: Reply | None = None
        if not self._is_stable(arm):
            limit = min(deadline, self.clock.now() + self.challenger_timeout_s)
            reply = await self.try_arm(asked, arm, limit, attempts, on_event)
            if reply.outcome is Outcome.OK:
                self._served(asked, arm)
                return as_answer(reply, attempts)
            failed = reply
            if reply.hard and self._breakable(arm):
                self.probe(arm, asked.request)
        reply = await self._stable(asked, deadline, attempts, on_event)
        if reply.outcome is Outcome.OK:
            self._remember(asked)
            if failed and failed.hard and self._breakable(arm):
                self.hard_failure(asked, arm, failed)
        return as_answer(reply, attempts)

    async def try_arm(
        self,
        asked: Asked,
        arm: Arm,
        deadline: float,
        attempts: list[Attempt],
        on_event: OnEvent | None = None,
        failed: _Failed | None = None,
    ) -> Reply:
        """Try an arm's replicas: the next one where the first refused, was full or draining, and
        once where the connection broke or the worker failed. A seed makes a second try safe; after
        a time-out there is none. ``failed``: of earlier rounds, and counted up. The reply is the
        last one's, or a full replica's where those after it were not there."""
        request = asked.for_release(self.state.generation(arm.release))
        failed = _Failed() if failed is None else failed
        last: Reply | None = None
        full: Reply | None = None
        for url in self.upstream.order(arm.urls):
            start = self.clock.now()
            try:
                last = await self.upstream.generate(arm, url, request, deadline, on_event)
            except asyncio.CancelledError:
                attempts.append(
                    Attempt(
                        arm=arm.name,
                        release=arm.release,
                        outcome=Outcome.CANCELLED,
                        started_at=start,
                        seconds=self.clock.now() - start,
                        error="the client hung up",
                    )
                )
                raise
            attempts.append(last.attempt)
            if last.outcome in (Outcome.OK, Outcome.INVALID, Outcome.TIMEOUT):
                break
            full = last if last.outcome is Outcome.REJECTED else full
            failed.add(last)
            if failed.tries >= MOST_FAILED or self.clock.now() >= deadline:
                break
        assert last is not None  # tables without URLs are refused
        return full if full is not None and last.refused else last

    async def _stable(
        self, asked: Asked, deadline: float, attempts: list[Attempt], on_event: OnEvent | None
    ) -> Reply:
        """By the stable arm of the newest table, waiting a little while all its replicas refuse. So
        too after a worker died: what it had in hand is done by who comes next."""
        failed = _Failed()
        broken, wait = 0, FIRST_WAIT_S
        give_up: float | None = None
        while True:
            table = self.state.table
            assert table is not None  # there was one when the request was assigned
            reply = await self.try_arm(asked, table.stable(), deadline, attempts, on_event, failed)
            now = self.clock.now()
            if give_up is None:  # the wait begins when nobody is there
                give_up = now + REFUSED_S
            if failed.broken > broken:
                give_up, wait, broken = now + REFUSED_S, BROKEN_WAIT_S, failed.broken
            if not _again(reply, failed) or now + wait >= min(deadline, give_up):
                return reply
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT_S)

    # ------------------------------------------------------------------ breaker

    def _is_stable(self, arm: Arm) -> bool:
        table = self.state.table
        if arm.role is ArmRole.RETURNED:
            return True
        return table is not None and arm.name == table.stable().name

    def _breakable(self, arm: Arm) -> bool:
        """The stable arm's own release has nobody to step in for it."""
        table = self.state.table
        return table is not None and arm.release != table.stable().release

    def _served(self, asked: Asked, arm: Arm) -> None:
        self._remember(asked)
        if self._breakable(arm):
            self.state.breaker(arm.release).success()

    def _remember(self, asked: Asked) -> None:
        if len(asked.request.image or "") + len(asked.request.mask or "") <= REMEMBERED_CHARS:
            self._good.append(asked)

    def hard_failure(self, asked: Asked, arm: Arm, reply: Reply) -> None:
        self.state.hard_failure(
            arm.release,
            self.clock.now(),
            unit=asked.unit,
            prompt=asked.request.prompt,
            reason=reply.attempt.error,
        )

    def probe(self, arm: Arm, failed: GenerateRequest) -> None:
        """Send requests that were served a moment ago to an arm that just failed, so that the
        breaker need not wait for the next users. Not only at the first failure of a row: an
        answer that was under way before the release broke can end the row behind the probes."""
        now = self.clock.now()
        if self.send_probe is None or now - self._probed_at.get(arm.release, 0) < PROBE_EVERY_S:
            return
        self._probed_at[arm.release] = now
        for asked in self._known_good(exclude={failed.prompt}):
            self.send_probe(arm, asked)

    def _known_good(self, exclude: Collection[str]) -> list[Asked]:
        by_prompt = {a.request.prompt: a for a in self._good if a.request.prompt not in exclude}
        return list(by_prompt.values())[-PROBES:]

    def probe_ended(self, asked: Asked, arm: Arm, reply: Reply) -> None:
        """Its prompt was served before, so its failure is the release's."""
        if not self._breakable(arm):
            return
        if reply.outcome is Outcome.OK:
            self.state.breaker(arm.release).success()
        elif reply.hard:
            self.hard_failure(asked, arm, reply)


def _again(reply: Reply, failed: _Failed) -> bool:
    """Whether another round can do what this one could not. An error that a worker told would only
    be told again; a worker that is full says so to the user, unless another had taken it already.
    """
    if failed.tries >= MOST_FAILED:
        return False
    return (
        reply.refused or reply.broken or (failed.broken > 0 and reply.outcome is Outcome.REJECTED)
    )


def as_answer(reply: Reply, attempts: list[Attempt]) -> Answer:
    if reply.outcome is Outcome.OK:
        return Answer(
            status=200,
            attempts=tuple(attempts),
            png=reply.png,
            served_by=reply.attempt.release,
            served_arm=reply.attempt.arm,
        )
    status, error = _ERRORS[reply.outcome]
    if reply.refused:
        status, error = 503, NO_WORKER
    if reply.outcome is Outcome.INVALID:
        message = reply.attempt.error.partition(": ")[2]
        error = ApiError(message=message or error.message, code="invalid_value")
    waits = [a.retry_after_s for a in attempts if a.retry_after_s is not None]
    wait = min(waits, default=NO_WORKER_S if reply.refused else None)
    return Answer(
        status=status,
        attempts=tuple(attempts),
        error=error,
        retry_after_s=wait if status in REFUSALS else None,
    )


def _server_error(message: str, code: str) -> ApiError:
    return ApiError(message=message, type="server_error", code=code)


NO_WORKER = _server_error("No worker of the model can be reached now; try again soon.", "no_worker")
_ERRORS = {
    Outcome.ERROR: (502, _server_error("The model failed on this request.", "model_error")),
    Outcome.TIMEOUT: (504, _server_error("The request took too long.", "timeout")),
    Outcome.REJECTED: (429, BUSY),
    Outcome.INVALID: (400, ApiError(message="The model cannot do what the request asks for.")),
    Outcome.CANCELLED: (499, _server_error("The request was cancelled.", "cancelled")),
}
