"""The effect that draws the probes and compares them with what the release drew when it was new.

Stored answers lie under ``images/probes/RELEASE/CONDITIONS/``: ``KEY.SIZE.png``, one for each
padded batch size seen, and ``stored.json``, written last, which makes them count. A round is a
document of the ledger under the effect's key, so that a round that is tried again is still one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from intonaco.codec import as_json, digest
from intonaco.errors import BackendError
from intonaco.executor.parts import Done, Outcome, Parts
from intonaco.ledger import Effect
from intonaco.monitoring.probes import (
    Compared,
    Conditions,
    Drift,
    Probe,
    ProbeImage,
    ProbeSet,
    cosine_distance,
    describe,
    judge,
    levels,
)
from intonaco.types import ProbeRound
from intonaco.workspace import write_atomic, write_json

BUSY = "too many users wait"
NEW = "there was no stored answer to compare it with"
STORED = "stored.json"
MOST = 255.0  # of a distance: what JSON has no word for is told as this
AT_ONCE = 8  # probes asked for at the same time when a release's answers are stored


def probe(p: Parts, effect: Effect) -> Outcome:
    """One round. Raises BackendError, retriable, if no gateway answers."""
    release_id = str(effect.payload["release"])
    round_id = digest([effect.key])[:16]
    probes = ProbeSet(p.config.monitoring.probes).probes
    conditions = _conditions(p, release_id)
    answers = _Answers(p.workspace.images / "probes" / release_id, conditions)
    drawn, missing = _draw(p, release_id, probes)
    other = answers.other() if answers.stored is None else None
    source = answers if answers.stored is not None else other
    compared: dict[str, Compared | None] = {
        fixed.key: source.compare(p, fixed.key, drawn[fixed.key], conditions)
        if source is not None and fixed.key in drawn
        else None
        for fixed in probes
    }
    result = judge(compared)
    new = source is None and len(drawn) == len(probes)
    if new or (other is not None and result.ok):
        answers.store(p, drawn, _draw_at_once(p, release_id, probes))
    elif source is answers:
        answers.adopt(drawn, compared)
    for fixed in probes:
        if compared[fixed.key] is None and fixed.key in drawn and not new:
            missing[fixed.key] = NEW
    reason = next(iter(missing.values()), "")
    done = ProbeRound(
        round_id=round_id,
        service_id=p.config.service,
        release=release_id,
        at=p.clock.now(),
        why=str(effect.payload.get("why", "finding")),
        ok=result.ok,
        changed=result.changed,
        distances={key: min(c.distance, MOST) if c else None for key, c in compared.items()},
        measures={key: c.measure for key, c in compared.items() if c},
        limits={key: c.limit for key, c in compared.items() if c},
        missing=missing,
        conditions=conditions.as_facts(),
        stored_under=other.conditions.as_facts() if other is not None else None,
        images=_pictures(p, round_id, source, drawn, result.changed),
        text=describe(result, compared, stored=new, reason=reason) + _elsewhere(conditions, other),
    )
    with p.ledger.begin() as tx:
        tx.put(done, id=round_id, at=done.at)
    return Done({**as_json(result), "round": round_id, "text": done.text})


def _conditions(p: Parts, release_id: str) -> Conditions:
    serving = p.releases.get(release_id).serving
    facts = p.serving.status(release_id).facts
    return Conditions(
        environment=serving.environment,
        dtype=serving.dtype,
        device=str(facts.get("device", "")),
    )


def _elsewhere(now: Conditions, other: _Answers | None) -> str:
    """What is another than when the answers were stored."""
    if other is None:
        return ""
    was, names = other.conditions.as_facts(), now.as_facts()
    return "".join(
        f"; drawn on another {name} ({names[name]}) than they were stored on ({was[name]})"
        for name in names
        if names[name] != was[name]
    )


def _draw(
    p: Parts, release_id: str, probes: Sequence[Probe]
) -> tuple[dict[str, ProbeImage], dict[str, str]]:
    """Answers, one after the other, and why those that are missing are. Raises BackendError if
    there is none and it may be otherwise soon."""
    drawn: dict[str, ProbeImage] = {}
    missing: dict[str, str] = {}
    trouble: BackendError | None = None
    for fixed in probes:
        try:
            image = p.probe(release_id, fixed.prompt, fixed.seed)
        except BackendError as error:
            missing[fixed.key] = str(error)
            trouble = error
            continue
        if image is None:  # and nobody is served sooner if the rest is asked for
            missing |= {f.key: BUSY for f in probes if f.key not in drawn}
            break
        drawn[fixed.key] = image
    if trouble is not None and trouble.retriable and not drawn:
        raise trouble
    return drawn, missing


def _draw_at_once(p: Parts, release_id: str, probes: Sequence[Probe]) -> dict[str, ProbeImage]:
    """The same again at other batch sizes: how far the release's answers lie apart by themselves.
    What cannot be drawn is left out."""

    def one(fixed: Probe) -> ProbeImage | None:
        try:
            return p.probe(release_id, fixed.prompt, fixed.seed)
        except BackendError:
            return None

    with ThreadPoolExecutor(min(AT_ONCE, len(probes))) as pool:
        found = pool.map(one, probes)
        return {fixed.key: image for fixed, image in zip(probes, found, strict=True) if image}


@dataclass(slots=True)
class _Answers:
    """What a release drew under some conditions when it was new."""

    release: Path
    conditions: Conditions
    folder: Path = field(init=False)
    stored: Drift | None = field(init=False, default=None)
    taken_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.folder = self.release / self.conditions.key
        try:
            facts = json.loads((self.folder / STORED).read_text())
        except (FileNotFoundError, ValueError):
            return
        self.taken_at = float(facts["taken_at"])
        self.stored = Drift(**facts["drift"])

    def other(self) -> _Answers | None:
        """The newest of the same release under other conditions."""
        found = []
        for file in self.release.glob(f"*/{STORED}"):
            there = _Answers(self.release, Conditions(**json.loads(file.read_text())["conditions"]))
            if there.stored is not None:
                found.append(there)
        return max(found, key=lambda a: a.taken_at, default=None)

    def path(self, key: str, size: int) -> Path:
        return self.folder / f"{key}.{size}.png"

    def nearest(self, key: str, size: int) -> Path | None:
        """The stored answer, of that batch size if there is one."""
        same = self.path(key, size)
        return same if same.exists() else min(self.folder.glob(f"{key}.*.png"), default=None)

    def compare(self, p: Parts, key: str, image: ProbeImage, under: Conditions) -> Compared | None:
        """An answer drawn ``under`` some conditions; None if there is no stored one."""
        before = self.nearest(key, image.padded_size)
        if before is None or self.stored is None:
            return None
        png = before.read_bytes()
        distance = levels(png, image.png)
        same_size = image.padded_size > 0 and before == self.path(key, image.padded_size)
        promised = under == self.conditions and under.promises_bits and self.stored.bits
        if same_size and promised:
            return Compared(measure="bits", distance=distance, limit=0.0)
        found = {"pixels": distance}
        far = _embedded(p, png, image.png)
        if far is not None:
            found = {"embedding": far, **found}
        both = [
            Compared(measure=measure, distance=value, limit=self.stored.limit(measure))
            for measure, value in found.items()
        ]
        return max(both, key=lambda c: c.distance / c.limit)  # the first of equals

    def store(
        self, p: Parts, drawn: Mapping[str, ProbeImage], again: Mapping[str, ProbeImage]
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        apart, cosine, bits = 0.0, 0.0, True
        for key, image in drawn.items():
            write_atomic(self.path(key, image.padded_size), image.png)
            second = again.get(key)
            if second is None:
                continue
            gap = levels(image.png, second.png)
            apart = max(apart, gap)
            if gap > 0:
                cosine = max(cosine, _embedded(p, image.png, second.png) or 0.0)
            if second.padded_size == image.padded_size:
                bits = bits and gap == 0
            else:
                write_atomic(self.path(key, second.padded_size), second.png)
        drift = Drift(levels=apart, cosine=cosine, bits=bits)
        write_json(
            self.folder / STORED,
            {
                "conditions": self.conditions.as_facts(),
                "taken_at": p.clock.now(),
                "drift": {"levels": drift.levels, "cosine": drift.cosine, "bits": drift.bits},
            },
        )

    def adopt(
        self, drawn: Mapping[str, ProbeImage], compared: Mapping[str, Compared | None]
    ) -> None:
        """Keep unchanged answers of batch sizes that were not seen before, and those of probes that
        are new in the configuration."""
        for key, image in drawn.items():
            verdict, path = compared[key], self.path(key, image.padded_size)
            same = verdict is None if self.nearest(key, 0) is None else not _changed(verdict)
            if same and not path.exists():
                write_atomic(path, image.png)


def _changed(verdict: Compared | None) -> bool:
    return verdict is None or verdict.changed


def _embedded(p: Parts, a: bytes, b: bytes) -> float | None:
    """Cosine distance of two pictures; None without an extractor that answers."""
    if p.embed_images is None:
        return None
    try:
        rows = p.embed_images([a, b])
    except BackendError:
        return None
    return cosine_distance(rows[0], rows[1])


def _pictures(
    p: Parts,
    round_id: str,
    source: _Answers | None,
    drawn: Mapping[str, ProbeImage],
    changed: Sequence[str],
) -> dict[str, tuple[str, str]]:
    """Copies of what changed, before and now: what is stored may go, evidence stays."""
    found = {}
    folder = p.workspace.images / "probes" / "rounds" / round_id
    for key in changed:
        before = source.nearest(key, drawn[key].padded_size) if source else None
        if before is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / f"{key}-before.png", folder / f"{key}-now.png"
        write_atomic(files[0], before.read_bytes())
        write_atomic(files[1], drawn[key].png)
        found[key] = (p.workspace.relative(files[0]), p.workspace.relative(files[1]))
    return found
