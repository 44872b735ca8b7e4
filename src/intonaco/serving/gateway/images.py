"""A user's request for images, from checked to answered: generations and edits, streamed or not."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import pybase64
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from intonaco.clock import Clock
from intonaco.config import Generation
from intonaco.messages import (
    ARM,
    ASSIGNED_ARM,
    PROBE,
    RELEASE,
    USER_ID,
    ApiError,
    StreamEvent,
)
from intonaco.serving.gateway import api, routing
from intonaco.serving.gateway.access import HUNG_UP, facts
from intonaco.serving.gateway.admin import Admin
from intonaco.serving.gateway.asking import ask
from intonaco.serving.gateway.body import images_body
from intonaco.serving.gateway.callers import Buckets, Keys, bearer, caller, may_pin
from intonaco.serving.gateway.copies import Copies
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.dispatch import REFUSALS, Answer, Dispatcher
from intonaco.serving.gateway.encoding import convert
from intonaco.serving.gateway.feedback import Tokens, Voteable
from intonaco.serving.gateway.intake import Receiving, Take, in_time, read_form, read_json
from intonaco.serving.gateway.picture_headers import png_size
from intonaco.serving.gateway.problems import BROKEN, BUSY, NO_PROBES, Refused, in_seconds
from intonaco.serving.gateway.recorder import Context, Recorder
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.stream import (
    HEARTBEAT,
    NO_USAGE,
    EventStream,
    Live,
    error_event,
    event,
    to_an_end,
)
from intonaco.serving.gateway.uploads import Upload, prepare
from intonaco.serving.gateway.upstream import OnEvent
from intonaco.serving.http import unless_gone
from intonaco.types import Arm, ArmRole, Attempt, RoutingTable

NO_RELEASE = ApiError(
    message="The service has no release yet.", type="server_error", code="no_release"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of request: how its body is read and what its events are called."""

    name: str  # as in records
    events: str
    receiving: Receiving
    read: Callable[[Request, Take], Awaitable[tuple[api.Wanted, bytes | None, bytes | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A request that is checked and has its arm."""

    wanted: api.Wanted
    arm: Arm
    contexts: tuple[Context, ...]
    probe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One image of a request: what it was, what came of it, where it lies."""

    context: Context
    answer: Answer
    image: str | None


@dataclass(slots=True)
class Images:
    generation: Generation
    limits: api.Limits
    state: GatewayState
    dispatcher: Dispatcher
    recorder: Recorder
    copies: Copies
    clock: Clock
    admin: Admin
    keys: Keys
    buckets: Buckets
    digests: Digests
    tokens: Tokens
    request_timeout_s: float
    heartbeat_s: float
    pinning: bool | Collection[str]
    _decoding: asyncio.Semaphore = field(init=False)
    _generations: Task = field(init=False)
    _edits: Task = field(init=False)

    def __post_init__(self) -> None:
        self._decoding = asyncio.Semaphore(self.limits.bounds.decodes)
        most = self.limits.bounds.receiving_bytes
        self._generations = Task(
            name="generate",
            events="image_generation",
            receiving=Receiving(most),
            read=self._read_json,
        )
        self._edits = Task(
            name="edit", events="image_edit", receiving=Receiving(most), read=self._read_form
        )

    @property
    def receiving_bytes(self) -> int:
        """Held of bodies that are arriving or being prepared."""
        return self._generations.receiving.held + self._edits.receiving.held

    # ------------------------------------------------------------------ endpoints

    async def generations(self, request: Request) -> Response:
        """Raises Refused."""
        return await self._answer(request, self._generations)

    async def edits(self, request: Request) -> Response:
        """Raises Refused."""
        return await self._answer(request, self._edits)

    async def _answer(self, request: Request, task: Task) -> Response:
        probe = request.headers.get(PROBE) == "1"
        if probe and not self.admin.allows(request):
            raise Refused(ApiError(message="Probes need the admin token."), 401)
        try:
            with task.receiving.room() as take:
                ready = await self._ready(request, task, probe, take)
            if ready.wanted.partial_images is not None:
                return await self._stream(request, task, ready)
            made = await unless_gone(request, self._all(ready))
            worst = max((m.answer for m in made), key=lambda a: a.status)
            response = await self._response(request, ready, made, worst)
        except Refused as refused:
            self._count(probe, refused.status)
            raise
        except ClientDisconnect:
            self._count(probe, HUNG_UP)
            return Response(status_code=HUNG_UP)
        except Exception:  # a defect of ours, answered as such further out
            self._count(probe, 500)
            raise
        self._count(probe, worst.status)
        return response

    def _count(self, probe: bool, status: int) -> None:
        if not probe:
            self.state.requests += 1
            self.state.failed += status >= 500

    # ------------------------------------------------------------------ checking

    async def _ready(self, request: Request, task: Task, probe: bool, take: Take) -> Ready:
        key = None if probe else self.keys.name(bearer(request))
        if not probe:
            self.buckets.take(caller(key, request))
        seconds = self.limits.bounds.body_seconds
        wanted, image, mask = await in_time(seconds, task.read(request, take))
        table = self.state.table
        if table is None:
            raise Refused(NO_RELEASE, 503, retry_after=5)
        self._admit(wanted, probe)
        request_id = facts(request).request_id
        unit = self._unit(request, wanted, request_id)
        arm, probability = self._arm(request, table, unit, key, probe)
        upload = None
        if image is not None:
            upload = await self._prepare(wanted, table, image, mask)
            self._admit(wanted, probe)  # others may have begun meanwhile
        facts(request).said.update(
            task=task.name,
            images=wanted.n,
            stream=wanted.partial_images is not None,
            unit=self.digests.unit(unit),
            assigned_arm=arm.name,
            **({"key": key} if key else {}),
        )
        return Ready(
            wanted=wanted,
            arm=arm,
            probe=probe,
            contexts=tuple(
                Context(
                    asked=asked,
                    assigned_arm="pinned" if probability is None else arm.name,
                    probability=1.0 if probability is None else probability,
                    routing_epoch=table.epoch,
                    salt=table.salt,
                    at=self.clock.now(),
                )
                for asked in ask(
                    wanted,
                    self._defaults(table),
                    upload,
                    request_id=request_id,
                    unit=unit,
                    digest=self.digests.unit(unit),
                    seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
                )
            ),
        )

    def _admit(self, wanted: api.Wanted, probe: bool) -> None:
        """Raises Refused where too many images are being made."""
        flying = self.copies.users_in_flight + wanted.n
        if not probe and flying > self.limits.bounds.in_flight:
            raise Refused(BUSY, 429, retry_after=1)
        if probe and self.copies.busy:
            raise Refused(NO_PROBES, 503, retry_after=1)

    async def _read_json(self, request: Request, take: Take) -> tuple[api.Wanted, None, None]:
        text = await read_json(request, self.limits.bounds.json_bytes, take)
        return api.parse(text, self.limits), None, None

    async def _read_form(
        self, request: Request, take: Take
    ) -> tuple[api.Wanted, bytes, bytes | None]:
        bounds = self.limits.bounds
        form = await read_form(
            request, limit=bounds.upload_bytes, text_limit=bounds.json_bytes, take=take
        )
        return api.parse_edit(form, self.limits)

    async def _prepare(
        self, wanted: api.Wanted, table: RoutingTable, image: bytes, mask: bytes | None
    ) -> Upload:
        defaults = self._defaults(table)
        async with self._decoding:
            return await asyncio.to_thread(
                prepare,
                image,
                mask,
                size=wanted.size,
                area=int(defaults["width"]) * int(defaults["height"]),
                pixels=self.limits.bounds.upload_pixels,
            )

    def _unit(self, request: Request, wanted: api.Wanted, request_id: str) -> str:
        return routing.unit_of(
            user_header=request.headers.get(USER_ID),
            user=wanted.user,
            api_key=bearer(request),
            request_id=request_id,
        )

    def _arm(
        self, request: Request, table: RoutingTable, unit: str, key: str | None, probe: bool
    ) -> tuple[Arm, float | None]:
        """The arm and its probability; None where it was chosen, not drawn."""
        pinned = request.headers.get(RELEASE)
        if probe or (pinned and self.pinning):
            if not probe and not may_pin(self.pinning, key, unit):
                raise Refused(
                    ApiError(
                        message=f"You may not choose a release; leave '{RELEASE}' out.",
                        code="pinning_not_allowed",
                    ),
                    403,
                )
            arm = next((a for a in table.arms if a.release == pinned), None)
            if arm is None or (not probe and arm.role is ArmRole.SHADOW):
                raise Refused(
                    ApiError(message="No arm serves that release.", code="release_not_found"), 404
                )
            return arm, None
        assignment = routing.assign(table, unit, self.state.tripped())
        return assignment.arm, assignment.probability

    def _defaults(self, table: RoutingTable) -> dict[str, Any]:
        return self.generation.model_dump() | dict(self.state.generation(table.champion().release))

    # ------------------------------------------------------------------ making

    async def _all(self, ready: Ready) -> list[Made]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(ready, c)) for c in ready.contexts]
        return [t.result() for t in tasks]

    async def _one(self, ready: Ready, context: Context, on_event: OnEvent | None = None) -> Made:
        if ready.probe:
            answer, image = await self.copies.probe(ready.arm, context.asked)
            return Made(context=replace(context, probe=True), answer=answer, image=image)
        return await self._user(context, ready.arm, ready.wanted.as_url, on_event)

    async def _user(self, context: Context, arm: Arm, keep: bool, on_event: OnEvent | None) -> Made:
        asked, attempts = context.asked, list[Attempt]()
        request_id = asked.request.request_id
        keep = keep or self.recorder.keeps(request_id)
        self.copies.users_in_flight += 1
        answer: Answer | None = None
        shadows: list[Arm] = []
        try:
            deadline = context.at + self.request_timeout_s
            answer = await self.dispatcher.serve(asked, arm, deadline, attempts, on_event)
            shadows = self._shadows(answer, request_id)
        finally:
            self.copies.users_in_flight -= 1
            if answer is None:  # cancelled, or a defect: either way it happened
                answer = Answer(status=HUNG_UP, attempts=tuple(attempts))
            seconds = self.clock.now() - context.at
            image = self.recorder.write(context, answer, seconds, keep=keep or bool(shadows))
        for shadow in shadows:
            self.copies.shadow(shadow, context)
        return Made(context=context, answer=answer, image=image)

    def _shadows(self, answer: Answer, request_id: str) -> list[Arm]:
        """Shadow arms that get a copy: only of what the champion answered, so that each copy makes
        a pair."""
        table = self.state.table
        if table is None or answer.served_by != table.champion().release:
            return []
        arms = routing.shadow_arms(table, request_id, self.state.tripped())
        return [a for a in arms if self.copies.room(a)]

    # ------------------------------------------------------------------ answering

    async def _response(
        self, request: Request, ready: Ready, made: list[Made], worst: Answer
    ) -> Response:
        headers = _headers(ready, worst)
        said = facts(request).said
        said.update(arm=worst.served_arm or "", release=worst.served_by or "")
        if worst.error is not None:
            if worst.status in REFUSALS:  # all images are asked for again, so the longest wait
                headers["retry-after"] = in_seconds(max(m.answer.retry_after_s or 0 for m in made))
            return JSONResponse(worst.error.body(), worst.status, headers)
        first = made[0].answer
        assert first.png is not None
        width, height = png_size(first.png)
        content = {
            "created": int(self.clock.now()),
            "background": "opaque",
            "output_format": ready.wanted.format,
            "size": f"{width}x{height}",
            "model": self.limits.models[0],
            "release": first.served_by,
        }
        data = [await self._item(request, ready.wanted, m) for m in made]
        return Response(images_body(content, data), headers=headers, media_type="application/json")

    async def _item(
        self, request: Request, wanted: api.Wanted, made: Made
    ) -> tuple[dict[str, Any], bytes | None]:
        """What is said of an image, and the image unless it is an address."""
        item = self._about(made)
        if wanted.as_url:
            if made.image is None:
                raise HTTPException(500, "The image could not be stored; ask for it as b64_json.")
            name = made.image.removeprefix("images/").removesuffix(".png")
            url = request.url_for("file", name=f"{name}.{wanted.format}")
            return {"url": str(url), **item}, None
        assert made.answer.png is not None
        return item, await convert(made.answer.png, wanted.format, wanted.compression)

    def _about(self, made: Made) -> dict[str, Any]:
        """What an answer says of an image beside the image."""
        request = made.context.asked.request
        item: dict[str, Any] = {"seed": request.seed}
        if made.context.probe:
            attempts = made.answer.attempts
            item["padded_size"] = attempts[-1].padded_size if attempts else 0
        else:
            item["feedback_token"] = self.tokens.sign(
                Voteable(
                    request_id=request.request_id,
                    assigned_arm=made.context.assigned_arm,
                    release=made.answer.served_by or "",
                    unit=request.unit,
                    made_at=int(made.context.at),
                )
            )
        return item

    # ------------------------------------------------------------------ streaming

    async def _stream(self, request: Request, task: Task, ready: Ready) -> Response:
        context = ready.contexts[0]
        live = Live[Made](
            lambda on_event: self._one(ready, context, on_event),
            most=ready.wanted.partial_images or 0,
        )
        try:
            try:
                first = await unless_gone(request, live.next(self.heartbeat_s))
                shown = [first]
            except TimeoutError:
                shown = []
            if shown == [None] and (answer := live.result().answer).error is not None:
                self._count(ready.probe, answer.status)
                return await self._response(request, ready, [live.result()], answer)
        except BaseException:
            await live.stop()
            raise
        said = facts(request).said

        async def ended() -> None:
            await live.stop()
            self._count(ready.probe, said.setdefault("streamed_status", HUNG_UP))

        chunks = to_an_end(
            self._events(task, ready, live, shown, said),
            lambda: said.update(streamed_status=500),
        )
        # The release that will answer is not known yet: the completed event names it.
        return EventStream(request, chunks, ended, {ASSIGNED_ARM: ready.arm.name})

    async def _events(
        self,
        task: Task,
        ready: Ready,
        live: Live[Made],
        shown: list[StreamEvent | None],
        said: dict[str, Any],
    ) -> AsyncGenerator[bytes, None]:
        """``shown``: what came before the first byte; nothing if that took too long."""
        if not shown:
            yield HEARTBEAT
        while True:
            try:
                seen = shown.pop() if shown else await live.next(self.heartbeat_s)
            except TimeoutError:
                yield HEARTBEAT
                continue
            if seen is None:
                break
            index = {"partial_image_index": seen.index}
            png = pybase64.b64decode(seen.png or "")
            yield await self._event(task, ready, "partial_image", png, index)
        made = live.result()
        said["streamed_status"] = made.answer.status
        said.update(arm=made.answer.served_arm or "", release=made.answer.served_by or "")
        yield await self._last(task, ready, made)

    async def _last(self, task: Task, ready: Ready, made: Made) -> bytes:
        if made.answer.png is None:
            return error_event(made.answer.error or BROKEN)
        more = {"usage": NO_USAGE, "arm": made.answer.served_arm, "release": made.answer.served_by}
        said = more | self._about(made)
        return await self._event(task, ready, "completed", made.answer.png, said)

    async def _event(
        self, task: Task, ready: Ready, kind: str, png: bytes, more: dict[str, Any]
    ) -> bytes:
        width, height = png_size(png)
        fields = {
            "type": f"{task.events}.{kind}",
            "background": "opaque",
            "created_at": int(self.clock.now()),
            "output_format": ready.wanted.format,
            "quality": "auto",
            "size": f"{width}x{height}",
        }
        wanted = ready.wanted
        return event(fields | more, await convert(png, wanted.format, wanted.compression))


def _headers(ready: Ready, answer: Answer) -> dict[str, str]:
    return {
        ASSIGNED_ARM: ready.arm.name,
        ARM: answer.served_arm or "",
        RELEASE: answer.served_by or "",
    }
