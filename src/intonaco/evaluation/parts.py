"""Adherence of parts of the prompts: by kind, hidden and shown, and prompt by prompt. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from intonaco.evaluation.arms import ArmImages
from intonaco.evaluation.intervals import Index, mean_interval
from intonaco.evaluation.metrics.arrays import Float
from intonaco.evaluation.prompts import KINDS, Shot
from intonaco.types import Json


def by_kind(
    champion: ArmImages, candidate: ArmImages, shots: Sequence[Shot], alpha: float
) -> dict[str, Json]:
    """Adherence of each kind of prompts that there is; empty if all are of one kind."""
    kinds = np.array([shot.prompt.kind for shot in shots])
    found: dict[str, Index] = {kind: np.flatnonzero(kinds == kind) for kind in KINDS}
    there = {kind: rows for kind, rows in found.items() if len(rows)}
    return _moved(champion, candidate, there, alpha) if len(there) > 1 else {}


def by_secrecy(
    champion: ArmImages, candidate: ArmImages, hidden: Collection[str], alpha: float
) -> dict[str, Json]:
    """Adherence on the prompts that are shown and on those that are hidden, empty if none is. Who
    learnt the shown ones by heart gains there alone: ``apart`` says whether the two gains differ
    by more than their intervals allow."""
    if not hidden:
        return {}
    secret = np.isin(champion.prompt_ids, sorted(hidden))
    rows = {"shown": np.flatnonzero(~secret), "hidden": np.flatnonzero(secret)}
    found = _moved(champion, candidate, rows, alpha)
    ends = [found[part]["interval"] for part in ("shown", "hidden")]
    apart = None not in ends and ends[0][0] > ends[1][1]
    return {**found, "apart": apart}


def prompt_rows(
    arms: Mapping[str, ArmImages], shots: Sequence[Shot], hidden: Collection[str]
) -> list[dict[str, Json]]:
    """One row for each prompt that may be shown: its words, seeds, the rows of its images, and
    each arm's adherence, one number a seed."""
    rows: dict[str, list[int]] = {}
    for i, shot in enumerate(shots):
        if shot.prompt.prompt_id not in hidden:
            rows.setdefault(shot.prompt.prompt_id, []).append(i)
    out = []
    for prompt_id, of_prompt in rows.items():
        prompt = shots[of_prompt[0]].prompt
        out.append(
            {
                "prompt_id": prompt_id,
                "prompt": prompt.prompt,
                "slice": prompt.slice,
                "kind": prompt.kind,
                "seeds": [shots[i].seed for i in of_prompt],
                "rows": of_prompt,
                "adherence": {
                    name: [float(arm.adherence[i]) for i in of_prompt] for name, arm in arms.items()
                },
            }
        )
    return out


def _moved(
    champion: ArmImages, candidate: ArmImages, parts: Mapping[str, Index], alpha: float
) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for name, rows in parts.items():
        ids = [champion.prompt_ids[i] for i in rows]
        a, b = (_per_prompt(arm.adherence[rows], ids) for arm in (champion, candidate))
        if len(a) == 0:
            out[name] = {"prompts": 0, "difference": None, "interval": None}
            continue
        strata = list(dict(zip(ids, (champion.slices[i] for i in rows), strict=True)).values())
        difference, interval = mean_interval(b - a, strata, alpha)
        out[name] = {
            "prompts": len(a),
            "champion": float(a.mean()),
            "candidate": float(b.mean()),
            "difference": difference,
            "interval": None if interval is None else list(interval),
        }
    return out


def _per_prompt(values: Float, prompt_ids: Sequence[str]) -> Float:
    """Means within each prompt, prompts in order of first appearance."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(p, len(numbers)) for p in prompt_ids], dtype=np.intp)
    out: Float = np.bincount(index, weights=values) / np.bincount(index)
    return out
