"""Probes: fixed prompts with fixed seeds. Users change; a probe's image must not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    key: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """``ok``: True if all images are the same, False if one changed, None if nothing changed but
    not all were measured. ``changed``: keys of changed probes. ``total``: probes compared."""

    ok: bool | None
    changed: tuple[str, ...]
    total: int
    missing: tuple[str, ...] = ()


class ProbeSet:
    """The probes of a service, the same in every process and after every restart."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.probes = tuple(_probe(prompt) for prompt in dict.fromkeys(prompts))

    def __len__(self) -> int:
        return len(self.probes)


def _probe(prompt: str) -> Probe:
    code = hashlib.sha256(prompt.encode()).hexdigest()
    return Probe(key=code[:12], prompt=prompt, seed=int(code[12:19], 16))


def compare(distances: Mapping[str, float | None], tolerance: float) -> ProbeResult:
    """Judge probes drawn again by their distance from what the release drew when it was new (None:
    one of the two is not there). Images of one release and seed are the same bits at one batch
    size; between sizes they differ by rounding, which is what the tolerance is for."""
    measured = {key: d for key, d in distances.items() if d is not None}
    changed = tuple(sorted(key for key, d in measured.items() if d > tolerance))
    missing = tuple(sorted(key for key in distances if key not in measured))
    ok = False if changed else None if missing or not measured else True
    return ProbeResult(ok=ok, changed=changed, total=len(measured), missing=missing)
