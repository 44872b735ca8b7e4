"""Data that changed are checked before anything is made of them: the versions that triggers name,
the pool and the reference. What fails becomes a finding.

A check reads every image, so it is an effect and not part of the tick. What was there at the first
look is not checked, only what changes: a version was checked when it was added, and a broken pool
is told by the update that would learn from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from intonaco.codec import as_json, decode, digest
from intonaco.datasets.curation import METADATA
from intonaco.decision import triggers
from intonaco.decision.triggers import Sign, State
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus
from intonaco.types import Finding

SEEN = "data_seen"  # setting: the pool and the reference as they were looked at last
CHECK = "check_data"  # the kind of effect


class DataChecks:
    """Of one service."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def look(self, fence: int, now: float) -> None:
        """Have folders that changed checked, and tell what failed, once."""
        ledger = self.parts.ledger
        before = _seen(self.parts)
        state, news = triggers.look(
            before,
            list(_folders(self.parts)),
            (),
            debounce=self.parts.config.decision.triggers.debounce_s,
            time_zone=self.parts.config.decision.time_zone,
            busy=None,
            now=now,
        )
        fires = next((n for n in news if n.fires), None)
        if fires is not None:
            state = triggers.accept(state, fires, now)
        if state != before:
            with ledger.begin(fence=fence) as tx:
                tx.set(SEEN, as_json(state))
                if fires is not None:
                    tx.want(self._effect(fires.key, fires.fingerprint), now)
        for key, fingerprint in state.known.items():
            self._tell(key, _status(self.parts, key, fingerprint), fence, now)

    def version(self, key: str, version: str, fence: int, now: float) -> str | None:
        """What is wrong with a dataset version that the trigger ``key`` names: empty if nothing
        is, None while it is being checked."""
        status = _status(self.parts, key, version)
        if status is None:
            with self.parts.ledger.begin(fence=fence) as tx:
                tx.want(self._effect(key, version, version=version), now)
            return None
        self._tell(key, status, fence, now)
        return None if status.status == "wanted" else _problem(status)

    def _effect(self, key: str, fingerprint: str, *, version: str = "") -> Effect:
        return Effect(
            key=_effect_key(self.parts, key, fingerprint),
            kind=CHECK,
            subject=key,
            payload={"version": version} if version else {"folder": _folder(self.parts, key)},
        )

    def _tell(self, key: str, status: EffectStatus | None, fence: int, now: float) -> None:
        ledger = self.parts.ledger
        if status is None or status.status == "wanted" or not (problem := _problem(status)):
            return
        finding_id = digest([status.effect.key, "finding"])[:16]
        if ledger.find(Finding, finding_id) is not None:
            return
        amount = float(status.result.get("problems", 1.0))
        finding = Finding(
            finding_id=finding_id,
            service_id=self.parts.config.service,
            signal=_named(key),
            of="dataset",
            detector="checks of the data",
            at=now,
            request=0,
            armed_at=0,
            since=0,
            since_at=status.updated_at,
            evidence=amount,
            threshold=0.0,
            value_before=0.0,
            value_now=amount,
            unit="problems",
            direction="up",
            release=ledger.champion(),
            text=f"{_named(key)} changed and fails its checks: {problem}.",
            facts={"counts": status.result.get("counts", {})},
        )
        with ledger.begin(fence=fence) as tx:
            tx.put(finding, id=finding_id, at=now, status="new")
            tx.event(now, "finding", finding_id, finding.text, data={"signal": finding.signal})


def problems(parts: Parts, found: Sequence[Finding]) -> str | None:
    """What is wrong with the pool, where requests moved and would be learnt from it, and no finding
    says it anyway."""
    moved = any(c.moved for f in found for c in f.clusters)
    key = "data:pool"
    fingerprint = _seen(parts).known.get(key)
    if fingerprint is None or not moved or any(f.signal == _named(key) for f in found):
        return None
    status = _status(parts, key, fingerprint)
    problem = _problem(status) if status is not None else ""
    return f"{_named(key)}: {problem}" if problem else None


def _effect_key(parts: Parts, key: str, fingerprint: str) -> str:
    return f"{parts.config.service}:check:{key}:{fingerprint}"


def _status(parts: Parts, key: str, fingerprint: str) -> EffectStatus | None:
    return parts.ledger.effects(key).get(_effect_key(parts, key, fingerprint))


def _problem(status: EffectStatus) -> str:
    """Empty where the check found nothing, or is not done."""
    if status.status == "failed":
        return status.error.rstrip(".")
    return str(status.result.get("problem", "")) if status.status == "done" else ""


def _seen(parts: Parts) -> State:
    stored = parts.ledger.setting(SEEN)
    return decode(State, json.dumps(stored)) if stored else State()


def _named(key: str) -> str:
    """What people call it: "data.pool", "dataset cats"."""
    kind, _, name = key.partition(":")
    return f"data.{name}" if kind == "data" else f"{kind} {name}"


def _folder(parts: Parts, key: str) -> str:
    return str(getattr(parts.config.data, key.partition(":")[2]))


def _folders(parts: Parts) -> Iterator[Sign]:
    for name in ("pool", "reference"):
        path = getattr(parts.config.data, name)
        if path is not None:
            yield _sign(f"data:{name}", parts.workspace.resolve(path))


def _sign(key: str, folder: Path) -> Sign:
    """By the list of items and the entries of the folder. A picture that is overwritten in place is
    not noticed before something else changes: to read all of them is what the check does."""
    try:
        listed, itself = (folder / METADATA).stat(), folder.stat()
    except OSError:
        return Sign(key=key, fingerprint="none")  # also told, once it is there and goes away
    facts = [listed.st_size, listed.st_mtime_ns, itself.st_mtime_ns]
    return Sign(key=key, fingerprint=digest(facts))
