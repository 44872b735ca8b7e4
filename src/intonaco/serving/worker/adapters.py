"""Adapters over one base, chosen batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intonaco import lora
from intonaco.errors import ConfigError, NotFound
from intonaco.folders import Adapter, parse_adapter


@dataclass(slots=True)
class Adapters:
    """The adapters of one loaded pipeline. One thread only."""

    pipeline: Any
    own: Sequence[Adapter] = ()  # of the release, on in every picture
    shared: dict[str, Sequence[Adapter]] = field(default_factory=dict)  # on by `use` only
    _active: str | None = None

    def add(self, name: str, folder: Path, scale: float) -> None:
        """Load one more, off until it is used. Raises ConfigError, with nothing changed."""
        self.add_all(name, [(parse_adapter(f"{name}:{scale}"), folder)])

    def add_all(self, name: str, adapters: Sequence[tuple[Adapter, Path]]) -> None:
        """Load several that are on together, under one name. Theirs must be no other's. Raises
        ConfigError, with nothing changed."""
        if self.own:
            raise ConfigError(
                f"adapter {name!r}: the release has unfused adapters of its own",
                hint="share the release of the base alone",
            )
        if name in self.shared:
            raise ConfigError(f"adapter {name!r} is loaded already")
        loaded: list[Adapter] = []
        try:
            for adapter, folder in adapters:
                lora.load(self.pipeline, adapter.name, folder)
                loaded.append(adapter)
            self.shared[name] = loaded
        except BaseException:
            for adapter in loaded:
                lora.forget(self.pipeline, adapter.name)
            raise
        finally:
            self._off()  # PEFT turns a new adapter on, and sometimes the next one of a removed one

    def remove(self, name: str) -> None:
        """Raises NotFound."""
        self._known(name)
        for adapter in self.shared.pop(name):
            lora.forget(self.pipeline, adapter.name)
        self._off()

    def use(self, name: str | None) -> None:
        """Have the next pictures drawn with this adapter, or with the base's own bits. Raises
        NotFound."""
        if name == self._active:
            return
        if name is None:
            self._off()
        else:
            self._known(name)
            self.pipeline.enable_lora()
            lora.activate(self.pipeline, self.shared[name])
            self._active = name

    def _off(self) -> None:
        if self.shared:
            self.pipeline.disable_lora()
        self._active = None

    def _known(self, name: str) -> None:
        if name not in self.shared:
            raise NotFound(f"adapter {name!r} is not loaded")
