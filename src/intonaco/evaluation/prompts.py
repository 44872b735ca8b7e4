"""The golden prompts of an evaluation, and the seeds that go with them.

A file of JSON lines; ``docs/guides/evaluate.md`` shows one::

    {"prompt_id": "seven-1", "prompt": "a photo of seven", "slice": "seven"}
    {"prompt_id": "seven-x", "prompt": "seven, upside down", "slice": "seven", "kind": "edge"}

A share of them is **hidden** at any time: drawn with every arm and judged like the others, shown
nowhere. Which ones is a keyed hash of the period, so that nobody who writes or trains a candidate
can know, and the next period hides others.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from intonaco.codec import digest
from intonaco.errors import ConfigError

Kind = Literal["representative", "edge"]
KINDS: tuple[Kind, ...] = ("representative", "edge")
FIELDS = ("prompt_id", "prompt", "slice", "kind")
LEAST_PER_SLICE = 2  # of one prompt there is no interval
FEW_PER_SLICE = 8  # from here on intervals are of some use
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """``slice`` names the part of the demand that it stands for. ``kind``: "representative" of what
    users ask, or an "edge" case, told apart in reports."""

    prompt_id: str
    prompt: str
    slice: str
    kind: Kind = "representative"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One image to generate: a prompt and a seed. Every arm generates the same shots."""

    prompt: Prompt
    seed: int


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts of a file of JSON lines. Raises ConfigError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"evaluation.prompts: {path} cannot be read: {error}") from error
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{path}, line {number}")
        if prompt.prompt_id in found:
            raise ConfigError(f"{path}, line {number}: prompt_id {prompt.prompt_id!r} again")
        found[prompt.prompt_id] = prompt
    if not found:
        raise ConfigError(f"{path} holds no prompts")
    return tuple(found.values())


def _prompt(line: str, where: str) -> Prompt:
    try:
        raw = json.loads(line)
        prompt = Prompt(
            prompt_id=str(raw["prompt_id"]),
            prompt=str(raw["prompt"]),
            slice=str(raw["slice"]),
            kind=raw.get("kind", KINDS[0]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}: no prompt: {type(error).__name__}: {error}",
            hint='each line is {"prompt_id": ..., "prompt": ..., "slice": ...}',
        ) from error
    for field in ("prompt_id", "prompt", "slice"):
        if not isinstance(raw[field], str | int) or isinstance(raw[field], bool):
            raise ConfigError(f"{where}: {field} is {json.dumps(raw[field])[:40]}, it must be text")
    if unknown := sorted(set(raw) - set(FIELDS)):
        raise ConfigError(
            f"{where}: {unknown[0]!r} is unknown", hint=f"fields are {', '.join(FIELDS)}"
        )
    if prompt.kind not in KINDS:
        raise ConfigError(f"{where}: kind is {prompt.kind!r}", hint=f"it is {' or '.join(KINDS)}")
    for field in ("prompt_id", "prompt", "slice"):
        if not getattr(prompt, field).strip():
            raise ConfigError(f"{where}: {field} is empty")
    return prompt


def problems(prompts: Sequence[Prompt]) -> list[str]:
    """What makes a set unfit: the same words twice in a slice (one prompt counted as two), and
    slices with too few for an interval."""
    found = []
    seen: dict[tuple[str, str], str] = {}
    for prompt in prompts:
        words = (prompt.slice, normal(prompt.prompt))
        if words in seen:
            found.append(
                f"{prompt.prompt_id!r} has the words of {seen[words]!r}: one of them is enough"
            )
        seen.setdefault(words, prompt.prompt_id)
    for name, count in Counter(p.slice for p in prompts).items():
        if count < LEAST_PER_SLICE:
            found.append(
                f"slice {name!r} has {count} prompt, at least {LEAST_PER_SLICE} are needed for an "
                "interval"
            )
    return found


def remarks(prompts: Sequence[Prompt], share: float) -> list[str]:
    """What is worth knowing of a set that is fit. ``share``: of it that is to be hidden."""
    found = []
    per_slice = Counter(p.slice for p in prompts)
    few = [name for name, count in per_slice.items() if LEAST_PER_SLICE <= count < FEW_PER_SLICE]
    if few:
        found.append(
            f"fewer than {FEW_PER_SLICE} prompts in {', '.join(few)}: intervals will be wide; "
            "`intonaco eval plan` says how many a margin needs"
        )
    if share and not hidden(prompts, share=share, period="", key=b""):
        found.append(
            f"no slice is large enough to hide {share:.0%} of it: all prompts are shown in reports"
        )
    return found


def normal(text: str) -> str:
    """A prompt as it is compared: Unicode's compatible form, no case, single spaces."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


def version_of(prompts: Iterable[Prompt]) -> str:
    """The set's version: sha256 of its prompts, whatever their order."""
    return digest(sorted([p.prompt_id, p.prompt, p.slice, p.kind] for p in prompts))


def hidden(prompts: Sequence[Prompt], *, share: float, period: str, key: bytes) -> frozenset[str]:
    """Ids of the prompts that are hidden in a period: of each slice and kind the ``share`` (rounded
    down) whose keyed hashes are lowest. Without the key they cannot be told beforehand; another
    period hides others."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.slice, prompt.kind].append(prompt.prompt_id)

    def rank(prompt_id: str) -> str:
        said = f"{period}\0{prompt_id}".encode()
        return hmac.new(key, b"intonaco.hidden\0" + said, hashlib.sha256).hexdigest()

    return frozenset(
        prompt_id
        for ids in groups.values()
        for prompt_id in sorted(ids, key=rank)[: int(share * len(ids) + 1e-9)]
    )


def leaked(prompts: Sequence[Prompt], captions: Iterable[str]) -> tuple[str, ...]:
    """Ids of prompts whose words are captions of a training set."""
    known: Collection[str] = {normal(text) for text in captions}
    return tuple(p.prompt_id for p in prompts if normal(p.prompt) in known)


def shots(prompts: Sequence[Prompt], seeds_per_prompt: int, *, first: int = 0) -> tuple[Shot, ...]:
    """``seeds_per_prompt`` shots of each prompt. A seed depends on its prompt's id and its number
    alone, so that adding prompts leaves the others' images as they were. ``first``: number of the
    first, for other seeds than an evaluation's own."""
    numbers = range(first, first + seeds_per_prompt)
    return tuple(Shot(prompt=p, seed=_seed(p.prompt_id, n)) for p in prompts for n in numbers)


def shots_digest(all_shots: Sequence[Shot]) -> str:
    """sha256 of what is asked of every arm."""
    return digest([[s.prompt.prompt_id, s.prompt.prompt, s.seed] for s in all_shots])


def as_rows(all_shots: Sequence[Shot]) -> list[list[str | int]]:
    """Shots as JSON."""
    return [
        [s.prompt.prompt_id, s.prompt.prompt, s.prompt.slice, s.prompt.kind, s.seed]
        for s in all_shots
    ]


def of_rows(rows: Iterable[Sequence[str | int]]) -> list[Shot]:
    """The shots that ``as_rows`` wrote."""
    return [
        Shot(
            prompt=Prompt(
                prompt_id=str(i), prompt=str(p), slice=str(s), kind=cast(Kind, str(kind))
            ),
            seed=int(seed),
        )
        for i, p, s, kind, seed in rows
    ]


def _seed(prompt_id: str, number: int) -> int:
    return int(hashlib.sha256(f"{prompt_id}/{number}".encode()).hexdigest()[:8], 16)
