"""Writes what the gateway saw: a record per image, and the image.

Written before the user is answered, so that a record exists for every answer; a disk that fails is
counted and said in the log, and never fails a user.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pybase64

from intonaco.codec import encode
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.dispatch import Answer, Asked
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.routing import position
from intonaco.types import Record
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a record says of a request before anybody answered it."""

    asked: Asked
    assigned_arm: str
    probability: float
    routing_epoch: int
    salt: str
    at: float
    shadow_of: str | None = None
    probe: bool = False


@dataclass(slots=True)
class Recorder:
    workspace: Workspace
    service_id: str
    keep_images: float
    metrics: Metrics
    writer: SegmentWriter
    digests: Digests
    prompts: Literal["keep", "hash", "drop"] = "keep"
    keep_conditions: bool = False

    def keeps(self, request_id: str) -> bool:
        """Whether this image is in the share that is kept."""
        return position("keep", request_id) < self.keep_images

    def write(self, context: Context, answer: Answer, seconds: float, *, keep: bool) -> str | None:
        """Record one image. Returns the stored image's path, relative to the workspace."""
        request = context.asked.request
        prompt, prompt_form = self._prompt(request.prompt)
        image: str | None = None
        condition: str | None = None
        try:
            if keep and answer.png is not None:
                image = self._store(self.workspace.images, context, answer.png)
                condition = self._condition(context)
        except OSError as error:
            self._failed(error)
        record = Record(
            gateway=self.writer.name,
            gateway_epoch=self.writer.epoch,
            seq=self.writer.seq,
            service_id=self.service_id,
            request_id=request.request_id,
            at=context.at,
            unit=context.asked.unit,
            assigned_arm=context.assigned_arm,
            probability=context.probability,
            routing_epoch=context.routing_epoch,
            salt=context.salt,
            attempts=answer.attempts,
            served_by=answer.served_by,
            served_arm=answer.served_arm,
            status=answer.status,
            seconds=seconds,
            prompt=prompt,
            prompt_form=prompt_form,
            seed=request.seed,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            task="generate" if request.image is None else "edit",
            image=image,
            condition=condition,
            shadow_of=context.shadow_of,
            probe=context.probe,
        )
        self.metrics.count(record)
        try:
            self.writer.append(encode(record))
        except OSError as error:
            self._failed(error)
        return image

    def _prompt(self, prompt: str) -> tuple[str, str]:
        """What a record holds of a prompt, and in which form."""
        if self.prompts == "hash":
            return self.digests.prompt(prompt), "hash"
        if self.prompts == "drop":
            return "", "none"
        return prompt, "text"

    def _condition(self, context: Context) -> str | None:
        """Store what an edit starts from, once: with the image that the user got."""
        sent = context.asked.request.image
        if not self.keep_conditions or sent is None or context.shadow_of or context.probe:
            return None
        return self._store(self.workspace.conditions, context, pybase64.b64decode(sent))

    def _store(self, root: Path, context: Context, png: bytes) -> str:
        # A folder a minute: no folder grows without end, and old ones can be deleted whole.
        folder = root / time.strftime("%Y%m%d/%H%M", time.gmtime(context.at))
        path = folder / f"{context.asked.request.request_id}.png"
        try:
            path.write_bytes(png)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        return path.relative_to(self.workspace.root).as_posix()

    def _failed(self, error: OSError) -> None:
        self.metrics.storage_errors += 1
        log.error("a record or image is not kept: %s", error, extra={"action": "gateway.storage"})
