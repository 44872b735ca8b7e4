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


def compare(before: Mapping[str, str], now: Mapping[str, str]) -> ProbeResult:
    """Compare images by their sha256, keyed by probe. A release's images for a fixed seed are the
    same bytes every time on the same machine, so any difference is a change of model or
    environment."""
    changed = tuple(sorted(k for k in before if k in now and now[k] != before[k]))
    missing = tuple(sorted(k for k in before if k not in now))
    total = len(before) - len(missing)
    ok = False if changed else None if missing or not total else True
    return ProbeResult(ok=ok, changed=changed, total=total, missing=missing)
