"""The scorer process: embeds prompts and scores images of what the gateways recorded.

``python -m intonaco.monitoring.scorer --workspace DIR``. It follows the gateways' segment logs and
writes one ``ScoredRecord`` a record to its own, each exactly once: its offset is committed together
with how much of its own log had been written by then, and after a kill it reads back what it wrote
beyond that, so as not to write it again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from intonaco import config as configuration
from intonaco.clock import Clock, SystemClock
from intonaco.codec import decode, encode
from intonaco.config import Scoring
from intonaco.errors import ConfigError, Conflict, IntonacoError, StorageError
from intonaco.monitoring.embed_server import EmbedServer
from intonaco.monitoring.heads import Heads
from intonaco.monitoring.pictures import facts, grey, perceptual_hash
from intonaco.protocols import FeatureExtractor
from intonaco.segment_log import SegmentReader, SegmentWriter
from intonaco.types import Record, ScoredRecord
from intonaco.workspace import Workspace, write_json

logger = logging.getLogger(__name__)

NAME = "scorer"
SCORE = "clip"
BATCH = 64
POLL_SECONDS = 0.05
HEARTBEAT_SECONDS = 1.0
KNOWN_TEXTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was read of a record's pictures."""

    image: Image.Image | None = None
    condition: Image.Image | None = None
    hash: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    broken: bool | None = None


class Scorer:
    """Reads records, writes scored records. One per workspace; not thread safe but for ``embed``.

    ``scored`` counts records written, ``broken_images`` and ``broken_lines`` what could not be
    read: those are passed on without a score, or skipped, never a reason to stop."""

    def __init__(
        self,
        workspace: Workspace,
        extractor: FeatureExtractor,
        *,
        scoring: Scoring | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.scoring = scoring or Scoring()
        self.heads = Heads.load(self.scoring.heads, workspace.root, extractor)
        self.workspace = workspace
        self.extractor = extractor
        self.clock = clock or SystemClock()
        self.scored = 0
        self.broken_images = 0
        self.broken_lines = 0
        self.lag_bytes = 0
        self._lock = threading.Lock()  # the extractor serves the loop and the embedding requests
        self._texts: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self._heartbeat_at = -np.inf
        self._reader = SegmentReader(workspace.records)
        self._written = self._recover()
        self._writer = SegmentWriter(workspace.scores, NAME)

    # ----------------------------------------------------------------------------------- one batch

    def step(self) -> int:
        """Score up to one batch of records; returns how many were taken."""
        lines = list(self._reader.read(BATCH))
        if not lines:
            self.lag_bytes = 0  # what is left, if anything, is a line still being written
            self._heartbeat()
            return 0
        records = [r for r in map(self._decode, lines) if r is not None]
        for item in self._score([r for r in records if r.key not in self._written]):
            self._writer.append(encode(item))
            self.scored += 1
        self._written.difference_update(r.key for r in records)
        self._commit()
        self.lag_bytes = self._reader.lag_bytes()
        self._heartbeat()
        return len(lines)

    def _decode(self, line: bytes) -> Record | None:
        try:
            return decode(Record, line)
        except StorageError as error:
            self.broken_lines += 1
            logger.error("record skipped: %s", error, extra={"action": "scorer.broken_line"})
            return None

    def _score(self, records: Sequence[Record]) -> list[ScoredRecord]:
        # A prompt that was hashed or dropped has no vector and no CLIP score: no data, never a
        # guess. What a picture shows by itself is known all the same.
        known = [i for i, r in enumerate(records) if r.prompt_form == "text"]
        texts = dict(zip(known, self.embed([records[i].prompt for i in known]), strict=True))
        seen = {i: self._look(r) for i, r in enumerate(records)}
        images = {i: s.image for i, s in seen.items() if s.image is not None}
        conditions = {i: s.condition for i, s in seen.items() if s.condition is not None}
        rows = self._vectors([*images.values(), *conditions.values()])
        of_images = dict(zip(images, rows[: len(images)], strict=True))
        of_conditions = dict(zip(conditions, rows[len(images) :], strict=True))
        scores: dict[int, dict[str, float]] = {}
        if images:
            prompts = [records[i].prompt if i in texts else "" for i in images]
            with self._lock:
                found = self.heads.score(list(images.values()), prompts, rows[: len(images)])
            scores = dict(zip(images, found, strict=True))
        for i, row in of_images.items():
            if i in texts:
                cosine = np.dot(row.astype(np.float64), texts[i].astype(np.float64))
                scores[i][SCORE] = float(cosine)
        return [
            ScoredRecord(
                record=record,
                prompt_embedding=_rounded(texts.get(i)),
                scores=scores.get(i, {}),
                extractor=self.extractor.digest,
                image_embedding=_rounded(of_images.get(i)) if self.scoring.images else (),
                condition_embedding=_rounded(of_conditions.get(i)),
                image_hash=seen[i].hash,
                image_facts=seen[i].facts,
                image_broken=seen[i].broken,
                heads=self.heads.digest,
            )
            for i, record in enumerate(records)
        ]

    def _vectors(self, images: Sequence[Image.Image]) -> NDArray[Any]:
        """Unit rows [n, d] of pictures."""
        if not images:
            return np.zeros((0, 0), dtype=np.float32)
        with self._lock:
            return np.asarray(self.extractor.images(images))

    def _look(self, record: Record) -> Looked:
        """The pictures to score; probes are compared byte by byte elsewhere, not scored."""
        if record.probe or not self._sampled(record):
            return Looked()
        image, broken = self._open(record, record.image)
        condition, _ = self._open(record, record.condition)
        if image is None:
            return Looked(condition=condition, broken=broken)
        return Looked(
            image=image,
            condition=condition,
            hash=perceptual_hash(image),
            facts=facts(grey(image)),
            broken=False,
        )

    def _sampled(self, record: Record) -> bool:
        """By the request's id, so that the same images are looked at after a restart, and a
        shadow's copy with its original."""
        key = record.shadow_of or record.request_id
        place = hashlib.sha256(f"scoring/{key}".encode()).digest()[:8]
        return int.from_bytes(place) < self.scoring.sample * 2**64

    def _open(self, record: Record, path: str | None) -> tuple[Image.Image | None, bool | None]:
        """The stored picture in RGB and whether it is broken; of one that was deleted since (or
        never kept) nothing is known."""
        if path is None:
            return None, None
        try:
            with Image.open(self.workspace.resolve(path)) as image:
                return image.convert("RGB"), False
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            self.broken_images += 1
            logger.warning(
                "image of %s cannot be read: %s",
                record.request_id,
                error,
                extra={"action": "scorer.broken_image"},
            )
            return None, None if isinstance(error, FileNotFoundError) else True

    def embed_images(self, pngs: Sequence[bytes]) -> NDArray[np.float32]:
        """Unit rows [n, d] of pictures. Thread safe."""
        pictures = []
        for png in pngs:
            with Image.open(io.BytesIO(png)) as picture:
                pictures.append(picture.convert("RGB"))
        with self._lock:
            return np.asarray(self.extractor.images(pictures), dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows [n, d] of texts, those seen lately from memory. Thread safe."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        with self._lock:
            new = [t for t in dict.fromkeys(texts) if t not in self._texts]
            if new:
                for text, row in zip(new, self.extractor.texts(new), strict=True):
                    self._texts[text] = np.asarray(row, dtype=np.float32)
            rows = np.stack([self._texts[t] for t in texts])
            for text in dict.fromkeys(texts):
                self._texts.move_to_end(text)
            while len(self._texts) > KNOWN_TEXTS:
                self._texts.popitem(last=False)
        return rows

    # ------------------------------------------------------------------------------ its bookkeeping

    @property
    def _offset_file(self) -> Path:
        return self.workspace.run / "scorer-offset.json"

    def _commit(self) -> None:
        write_json(
            self._offset_file,
            {
                "records": dict(self._reader.offset),
                "scores": _sizes(self.workspace.scores),
                # with several gateways a restart may read them in another order than before it
                "ahead": sorted(self._written),
            },
        )

    def _recover(self) -> set[str]:
        """Go on from the committed offset; returns the keys of records that were scored after it,
        by a process that was killed before it could commit."""
        committed: Mapping[str, Any] = {"records": {}, "scores": {}, "ahead": []}
        try:
            committed = json.loads(self._offset_file.read_text())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise StorageError(f"{self._offset_file} cannot be read: {error}") from error
        self._reader.seek(committed["records"])
        own = SegmentReader(self.workspace.scores)
        own.seek(committed["scores"])
        written = {decode(ScoredRecord, line).record.key for line in own.read(sys.maxsize)}
        return written | set(committed["ahead"])

    def _heartbeat(self) -> None:
        now = self.clock.now()
        if now - self._heartbeat_at < HEARTBEAT_SECONDS:
            return
        self._heartbeat_at = now
        write_json(
            self.workspace.run / "scorer-heartbeat.json",
            {
                "at": now,
                "lag_bytes": self.lag_bytes,
                "scored": self.scored,
                "broken_images": self.broken_images,
                "broken_lines": self.broken_lines,
            },
        )

    def run(self, stop: threading.Event) -> None:
        """Follow the records until told to stop."""
        while not stop.is_set():
            if self.step() == 0:
                stop.wait(POLL_SECONDS)

    def close(self) -> None:
        self._writer.close()


def _rounded(row: NDArray[Any] | None) -> tuple[float, ...]:
    return () if row is None else tuple(round(float(v), 6) for v in row)


def _sizes(root: Path) -> dict[str, int]:
    """Bytes of whole lines per log file. All that this process appended is whole lines; a line cut
    short by an earlier kill ends its file for good, and counting it does no harm: readers never
    get past it."""
    return {p.relative_to(root).as_posix(): p.stat().st_size for p in root.glob("*/*.jsonl")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The process; ends in good order on SIGTERM and SIGINT."""
    parser = argparse.ArgumentParser(description="Scores what the gateways recorded.")
    parser.add_argument("--workspace", type=Path, required=True)
    workspace = Workspace(parser.parse_args(arguments).workspace)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = configuration.load(workspace.config_file)
        if config.extractor is None:
            raise ConfigError("extractor: required to score, and not given")
        running = workspace.process(NAME)
        if running is not None and running.pid != os.getpid():
            raise Conflict(f"a scorer of this workspace runs already (pid {running.pid})")
        # the only import of torch in this process, and only when it really scores
        from intonaco.evaluation.features import load_extractor

        extractor = load_extractor(config.extractor, workspace.root)
        scorer = Scorer(workspace, extractor, scoring=config.monitoring.scoring)
        with EmbedServer(scorer.embed, workspace.admin_token(), scorer.embed_images) as server:
            workspace.announce(NAME, url=server.url, digest=scorer.extractor.digest)
            logger.info("scorer is ready at %s", server.url, extra={"action": "scorer.ready"})
            try:
                scorer.run(stop)
            finally:
                scorer.close()
    except IntonacoError as error:
        logger.error("%s", error, extra={"action": "scorer.failed"})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
