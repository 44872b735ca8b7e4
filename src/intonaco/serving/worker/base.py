"""A loaded base and the releases that are drawn over it (torch by way of the engine)."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intonaco.codec import as_json
from intonaco.errors import ConfigError
from intonaco.folders import ADAPTERS, Adapter, check_folder, parse_adapter
from intonaco.messages import GenerateRequest
from intonaco.releases import ReleaseStore, base_id, base_spec, release_id
from intonaco.serving.worker.core import Images, StepWatch
from intonaco.serving.worker.engine import Engine, png, read_spec
from intonaco.serving.worker.gpu import Gpu
from intonaco.serving.worker.held import Loaded
from intonaco.types import ServingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """One release over a shared base: its engine as the worker sees it. ``adapters``: their name
    in the base's engine, None for the release of the base alone."""

    base: Engine
    spec: ServingSpec
    release_id: str
    load_seconds: float
    adapters: str | None

    @property
    def device(self) -> str:
        return self.base.device

    def check(self, request: GenerateRequest) -> None:
        self.base.check(request)

    def batch_key(self, request: GenerateRequest) -> Hashable:
        return self.base.batch_key(request)

    def warm_up_request(self) -> GenerateRequest:
        return self.base.warm_up_request(self.spec.generation)

    def generate(
        self, requests: Sequence[GenerateRequest], size: int, watch: StepWatch | None = None
    ) -> Images:
        """Raises NotFound once it was taken off; never another release's picture."""
        return self.base.generate(requests, size, watch, adapter=self.adapters)

    def peak_memory_bytes(self) -> int:
        """Of the whole process."""
        return self.base.peak_memory_bytes()


@dataclass(frozen=True, slots=True)
class SharedBase:
    """An engine that ``load`` made with ``base_only``. ``sharing.Base`` for the worker."""

    engine: Engine
    store: ReleaseStore
    gpu: Gpu | None = None

    def prepare(self, release_id: str) -> Callable[[], Loaded]:
        """Read the release's files, all of them, and compare its base with the one that is loaded.
        Raises NotFound, ConfigError, StorageError; what is returned raises ConfigError."""
        start = time.monotonic()
        release = self.store.get(release_id)
        folder = self.store.folder(release)
        check_folder(folder)
        spec = read_spec(release, folder)
        _check_same_base(self.engine.spec, spec, asked=release_id)
        self.engine.check_defaults(spec.generation)
        adapters = _named(release_id, spec, folder)
        read_seconds = time.monotonic() - start

        def put_on() -> Loaded:
            begun = time.monotonic()
            if adapters:
                self.engine.add_adapters(_name(release_id), adapters)
            over = Over(
                base=self.engine,
                spec=spec,
                release_id=release_id,
                load_seconds=read_seconds + time.monotonic() - begun,
                adapters=_name(release_id) if adapters else None,
            )
            return Loaded(engine=over, png=png, gpu=self.gpu)

        return put_on

    def remove(self, release_id: str) -> None:
        """The base stays, also if no release is left."""
        if _name(release_id) in self.engine.adapters:
            self.engine.remove_adapter(_name(release_id))


def _name(release_id: str) -> str:
    return f"r{release_id[:16]}"


def _named(release_id: str, spec: ServingSpec, folder: Path) -> Sequence[tuple[Adapter, Path]]:
    """A release's adapters under names that no other release's have."""
    named = [parse_adapter(a) for a in spec.adapters]
    return [
        (
            Adapter(name=f"{_name(release_id)}-{a.name}", scale=a.scale),
            folder / ADAPTERS / a.name,
        )
        for a in named
    ]


def _check_same_base(loaded: ServingSpec, spec: ServingSpec, *, asked: str) -> None:
    """Raises ConfigError."""
    got = release_id(spec)
    if got != asked:
        raise ConfigError(
            f"release {asked[:10]}: its files here make {got[:10]}: the folder or the environment"
            " is another"
        )
    if base_id(spec) is None:
        raise ConfigError(f"release {asked[:10]} is fused on loading or compiled, and shares none")
    if base_id(spec) != base_id(loaded):
        raise ConfigError(
            f"release {asked[:10]} stands on another base: {_first_difference(loaded, spec)}",
            hint="deploy it to a worker of its own",
        )


def _first_difference(loaded: ServingSpec, spec: ServingSpec) -> str:
    ours: dict[str, Any] = as_json(base_spec(loaded))
    theirs: dict[str, Any] = as_json(base_spec(spec))
    for key in sorted(set(ours) - {"weights", "generation"}):
        if ours[key] != theirs[key]:
            return f"{key} is {theirs[key]!r}, here {ours[key]!r}"
    files = set(ours["weights"].items()) ^ set(theirs["weights"].items())
    return f"{min(files)[0]} differs" if files else "it is the same"
