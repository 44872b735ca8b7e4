"""What an evaluation job is asked to do: its payload, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intonaco import config
from intonaco.errors import ConfigError
from intonaco.evaluation.prompts import Prompt, Shot, read_prompts, shots, shots_digest
from intonaco.types import Json

CHAMPION = "champion"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpec:
    """One arm to evaluate. ``upstream``: settings of the server that draws it, if that is not
    ours. ``training``: ids of the dataset versions that it learnt from."""

    name: str
    release_id: str | None
    folder: Path
    generation: Mapping[str, Json]
    dtype: str
    environment: str = ""  # id; empty: this interpreter's
    upstream: Mapping[str, Json] | None = None
    training: tuple[str, ...] = ()
    first_seed: int = 0  # number of its first seed: another than the others' only for an A/A run


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """How arms are timed in workers of their own. ``worker``: ``serving.worker``."""

    workspace: Path
    worker: Mapping[str, Json]
    concurrency: int
    waves: int
    hourly_price: float | None
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsafe:
    """A picture whose ``score`` is above ``above`` is a safety failure."""

    score: str
    above: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The payload. ``keep`` and ``improve`` name slices; ``training``: folder of each dataset
    version; ``settings``: ``evaluation`` of the configuration, what the gate judges by;
    ``context``: what the report says of where it comes from."""

    champion: ArmSpec | None
    candidates: tuple[ArmSpec, ...]
    prompts: tuple[Prompt, ...]
    shots: tuple[Shot, ...]
    seeds_per_prompt: int
    slices: tuple[str, ...]
    keep: tuple[str, ...]
    improve: tuple[str, ...]
    hidden: frozenset[str]
    hidden_period: str
    reference: Path
    training: Mapping[str, Path]
    extractor: config.Extractor
    heads: Mapping[str, config.Head]
    heads_root: Path
    unsafe: Unsafe | None
    settings: config.Evaluation
    alpha: float
    device: str
    threads: int
    batch_size: int
    latency_rounds: int
    cache: Path | None
    environments: Mapping[str, Json] | None
    benchmark: Benchmark | None
    context: Mapping[str, Json]

    @property
    def arms(self) -> tuple[ArmSpec, ...]:
        return (*([self.champion] if self.champion else ()), *self.candidates)

    def shots_of(self, arm: ArmSpec) -> tuple[Shot, ...]:
        """What an arm draws: the common shots, but for an arm with seeds of its own."""
        if arm.first_seed == 0:
            return self.shots
        return shots(self.prompts, self.seeds_per_prompt, first=arm.first_seed)

    @property
    def not_ours(self) -> bool:
        """Whether other people's servers draw every arm."""
        return all(arm.upstream is not None for arm in self.arms)

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Order:
        """Raises ConfigError."""
        prompts = read_prompts(Path(payload["prompts"]))
        slices = tuple(dict.fromkeys(p.slice for p in prompts))
        improve = _known_slices(payload, "improve", slices)
        keep = _known_slices(payload, "keep", slices) or tuple(
            s for s in slices if s not in improve
        )
        given = payload.get("champion")
        champion = None if given is None else _arm(payload, {**given, "name": CHAMPION})
        candidates = tuple(_arm(payload, entry) for entry in payload["candidates"])
        seeds = int(payload.get("seeds_per_prompt", 4))
        names = [CHAMPION, *(c.name for c in candidates)]
        if len(set(names)) < len(names):
            raise ConfigError(f"arms must have different names, got {', '.join(names)}")
        settings = config.Evaluation.model_validate(
            payload.get("settings") or {"margins": payload.get("margins", {})}
        )
        benchmark, unsafe = payload.get("benchmark"), payload.get("unsafe")
        wanted = shots(prompts, seeds)
        if payload.get("shots", made := shots_digest(wanted)) != made:
            raise ConfigError(
                "evaluation.prompts changed after this evaluation was asked for: evaluate again"
            )
        return cls(
            champion=champion,
            candidates=candidates,
            prompts=prompts,
            shots=wanted,
            seeds_per_prompt=seeds,
            slices=slices,
            keep=keep,
            improve=improve,
            hidden=frozenset(map(str, payload.get("hidden", ()))),
            hidden_period=str(payload.get("hidden_period", "")),
            reference=Path(payload["reference"]),
            training={str(k): Path(v) for k, v in payload.get("training", {}).items()},
            extractor=config.Extractor.model_validate(payload["extractor"]),
            heads={
                name: config.Head.model_validate(head)
                for name, head in payload.get("heads", {}).items()
            },
            heads_root=Path(payload.get("heads_root", "/")),
            unsafe=None if unsafe is None else Unsafe(**unsafe),
            settings=settings,
            alpha=float(payload.get("alpha", settings.alpha)),
            device=str(payload.get("device", "cpu")),
            threads=int(payload.get("threads", 1)),
            batch_size=int(payload.get("batch_size", 32)),
            latency_rounds=int(payload.get("latency_rounds", 10)),
            cache=Path(payload["cache"]) if payload.get("cache") else None,
            environments=payload.get("environments"),
            benchmark=None
            if benchmark is None
            else Benchmark(**{**benchmark, "workspace": Path(benchmark["workspace"])}),
            context=payload.get("context", {}),
        )


def _arm(payload: Mapping[str, Any], entry: Mapping[str, Any]) -> ArmSpec:
    return ArmSpec(
        name=str(entry["name"]),
        release_id=entry.get("release_id"),
        folder=Path(entry["path"]),
        generation={**payload.get("generation", {}), **(entry.get("generation") or {})},
        dtype=str(entry.get("dtype") or payload.get("dtype", "float32")),
        environment=str(entry.get("environment") or ""),
        upstream=entry.get("upstream"),
        training=tuple(map(str, entry.get("training") or ())),
        first_seed=int(entry.get("first_seed", 0)),
    )


def _known_slices(payload: Mapping[str, Any], field: str, slices: Sequence[str]) -> tuple[str, ...]:
    given = tuple(str(s) for s in payload.get(field) or ())
    unknown = [s for s in given if s not in slices]
    if unknown:
        raise ConfigError(
            f"evaluation: {field} names {', '.join(unknown)}, for which there are no prompts; "
            f"slices of the prompts: {', '.join(slices)}",
            hint="add prompts with that slice to evaluation.prompts",
        )
    return given
