"""The prompts of an evaluation and the seeds that go with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intonaco.codec import digest
from intonaco.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """``slice`` names the part of the demand that it stands for."""

    prompt_id: str
    prompt: str
    slice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One image to generate: a prompt and a seed. Every arm generates the same shots."""

    prompt: Prompt
    seed: int


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts of a jsonl file of ``{"prompt_id", "prompt", "slice"}``. Raises ConfigError that
    names the line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"evaluation.prompts: {path} cannot be read: {error}") from error
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            prompt = Prompt(
                prompt_id=str(raw["prompt_id"]), prompt=str(raw["prompt"]), slice=str(raw["slice"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: no prompt: {type(error).__name__}: {error}",
                hint='each line is {"prompt_id": ..., "prompt": ..., "slice": ...}',
            ) from error
        if prompt.prompt_id in found:
            raise ConfigError(f"{path}, line {number}: prompt_id {prompt.prompt_id!r} again")
        found[prompt.prompt_id] = prompt
    if not found:
        raise ConfigError(f"{path} holds no prompts")
    return tuple(found.values())


def shots(prompts: Sequence[Prompt], seeds_per_prompt: int) -> tuple[Shot, ...]:
    """``seeds_per_prompt`` shots of each prompt. A seed depends on its prompt's id and its number
    alone, so that adding prompts leaves the others' images as they were."""
    return tuple(
        Shot(prompt=p, seed=_seed(p.prompt_id, n)) for p in prompts for n in range(seeds_per_prompt)
    )


def shots_digest(all_shots: Sequence[Shot]) -> str:
    """sha256 of what is asked of every arm."""
    return digest([[s.prompt.prompt_id, s.prompt.prompt, s.seed] for s in all_shots])


def _seed(prompt_id: str, number: int) -> int:
    return int(hashlib.sha256(f"{prompt_id}/{number}".encode()).hexdigest()[:8], 16)
