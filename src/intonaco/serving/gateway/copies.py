"""Requests that no user waits for: shadow copies and probes. They never delay or fail a user."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from intonaco.clock import Clock
from intonaco.messages import BACKGROUND_UNIT
from intonaco.serving.gateway.dispatch import Answer, Asked, Dispatcher, as_answer
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.recorder import Context, Recorder
from intonaco.types import Arm, Attempt

if TYPE_CHECKING:
    from intonaco.serving.gateway.spans import GatewayTracing

log = logging.getLogger(__name__)

MOST_SHADOWS = 8  # in flight at once; more are shed
BUSY = 32  # user requests in flight at which shadows are shed

NewId = Callable[[], str]


@dataclass(slots=True)
class Copies:
    dispatcher: Dispatcher
    recorder: Recorder
    metrics: Metrics
    clock: Clock
    new_id: NewId
    timeout_s: float
    tracing: GatewayTracing | None = None
    users_in_flight: int = 0
    _shadows: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # ------------------------------------------------------------------ shadow

    def room(self, arm: Arm) -> bool:
        """Whether a copy can be made now; one that cannot is counted as shed."""
        if self._shadows < MOST_SHADOWS and not self.busy:
            return True
        self.metrics.shed[(("arm", arm.name),)] += 1
        return False

    @property
    def busy(self) -> bool:
        """Whether users keep this gateway so busy that what nobody waits for is left out."""
        return self.users_in_flight >= BUSY

    def shadow(self, arm: Arm, context: Context) -> None:
        """Copy a request that the champion has answered to a shadow arm; same prompt, same seed."""
        original = context.asked.request.request_id
        copy = replace(
            context,
            asked=_again(context.asked, f"{original}-{arm.name.partition(':')[2]}"),
            assigned_arm=arm.name,
            probability=arm.weight,
            at=self.clock.now(),
            shadow_of=original,
        )
        self._shadows += 1
        self._start(self._shadow(arm, copy))

    async def _shadow(self, arm: Arm, context: Context) -> None:
        try:
            with self._traced("shadow", arm):
                await self._run(arm, context, keep=True)
        finally:
            self._shadows -= 1

    # ------------------------------------------------------------------ probes

    def breaker_probe(self, arm: Arm, asked: Asked) -> None:
        """Repeat a request that was served before on an arm that just failed."""
        context = self._probe_context(arm, _again(asked, self.new_id()))
        self._start(self._breaker_probe(arm, context))

    async def _breaker_probe(self, arm: Arm, context: Context) -> None:
        attempts: list[Attempt] = []
        limit = self.clock.now() + self.timeout_s
        with self._traced("probe", arm):
            reply = await self.dispatcher.try_arm(context.asked, arm, limit, attempts)
        self.dispatcher.probe_ended(context.asked, arm, reply)
        self._record(context, as_answer(reply, attempts), keep=False)

    async def probe(self, arm: Arm, asked: Asked) -> tuple[Answer, str | None]:
        """A probe that somebody asked for, on this arm and no other; its answer and the stored
        image's path. It comes last in a worker's queue."""
        context = self._probe_context(arm, asked)
        request = replace(context.asked.request, unit=BACKGROUND_UNIT)
        context = replace(context, asked=replace(context.asked, request=request))
        return await self._run(arm, context, keep=True)

    def _probe_context(self, arm: Arm, asked: Asked) -> Context:
        table = self.dispatcher.state.table
        return Context(
            # In a worker's queue too it is nobody's.
            asked=replace(asked, unit="probe", request=replace(asked.request, unit="")),
            assigned_arm=arm.name,
            probability=1.0,
            routing_epoch=table.epoch if table else 0,
            salt=table.salt if table else "",
            at=self.clock.now(),
            probe=True,
        )

    # ------------------------------------------------------------------ both

    async def _run(self, arm: Arm, context: Context, *, keep: bool) -> tuple[Answer, str | None]:
        attempts: list[Attempt] = []
        limit = self.clock.now() + self.timeout_s
        reply = await self.dispatcher.try_arm(context.asked, arm, limit, attempts)
        answer = as_answer(reply, attempts)
        return answer, self._record(context, answer, keep=keep)

    def _record(self, context: Context, answer: Answer, *, keep: bool) -> str | None:
        seconds = self.clock.now() - context.at
        return self.recorder.write(context, answer, seconds, keep=keep)

    def _traced(self, kind: str, arm: Arm) -> AbstractContextManager[None]:
        return nullcontext() if self.tracing is None else self.tracing.copy(kind, arm)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a copy failed", exc_info=error, extra={"action": "gateway.copy"})

    async def stop(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait for what is under way (tests)."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _again(asked: Asked, request_id: str) -> Asked:
    """Nobody watches a copy being made."""
    again = replace(asked.request, request_id=request_id, partial_images=0)
    return replace(asked, request=again)
