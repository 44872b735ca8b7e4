"""Detectors of River by name: ``river:ADWIN``, ``river:PageHinkley``, ``river:KSWIN`` ...

River (https://riverml.xyz, BSD-3-Clause) is the optional extra ``river``.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.borrowed import (
    BorrowedDetector,
    number,
    refuse_what_it_cannot,
)
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.plugins import need_extra
from intonaco.types import Json

JOURNAL = 10_000


class RiverDetector(BorrowedDetector):
    """A drift detector of River. What it says during the first ``reference`` updates is ignored;
    afterwards it fires when River's flag is up. See BorrowedDetector for what it does not promise.

    River's detectors cannot tell their state (ADWIN's is inside compiled code), so what is kept is
    the *journal* of the last values, and a restored detector is a new one that was fed them again.
    To make that exact and bounded, every detector, restored or not, is made anew from the last half
    of its journal whenever that is ``journal`` values long: no window reaches farther back. One
    with random numbers gets the seed of the settings.

    ``make``: a new River detector, the same each time.
    """

    least = 1

    def __init__(
        self,
        *,
        name: str,
        make: Callable[[], Any],
        reference: int = 2000,
        journal: int = JOURNAL,
    ) -> None:
        super().__init__(reference=reference)
        if not isinstance(journal, int) or journal < 2:
            raise ConfigError(f"options.journal: 2 values or more (given: {journal!r})")
        self.name = name
        self._make = make
        self._limit = journal
        self._forget()

    @property
    def since(self) -> int:
        """The update at which ADWIN's window begins, once it has fired; for detectors without a
        window, the last update."""
        width = getattr(self._inner, "width", None)
        return max(0, self._n - (1 if width is None else int(width)))

    def _take(self, x: Any, *, session: str | None, topic: str | None, at: float | None) -> None:
        value = number(x)
        if value is None or self._fired:
            return
        self._journal.append(value)
        self._inner.update(value)
        self._fired = bool(self._inner.drift_detected) and self._n > self.reference
        if len(self._journal) >= self._limit and not self._fired:
            del self._journal[: -(self._limit // 2)]
            self._replay()

    def _replay(self) -> None:
        self._inner = self._make()
        for value in self._journal:
            self._inner.update(value)

    def _forget(self) -> None:
        self._journal = array("d")
        self._inner = self._make()

    def _live(self) -> Mapping[str, Json]:
        return {"journal": pack(np.array(self._journal))}

    def _revive(self, state: Mapping[str, Json]) -> None:
        self._journal.extend(unpack(state["journal"]).tolist())
        self._replay()


def factory(member: str) -> Callable[[DetectorSettings], RiverDetector]:
    """The factory of ``river:MEMBER``, a class of ``river.drift`` or ``river.drift.binary``. Its
    options are the class's keyword arguments, and ``journal``. Raises ConfigError if River is not
    installed or has no such detector."""
    name = f"river:{member}"
    need_extra(f"detector {name}", "river", "river")
    found = _detectors()
    if member not in found:
        raise ConfigError(f"River has no drift detector {member!r}; known: {', '.join(found)}")
    cls = found[member]

    def build(settings: DetectorSettings) -> RiverDetector:
        refuse_what_it_cannot(name, settings)
        given = dict(settings.options)
        own = {"journal": given.pop("journal")} if "journal" in given else {}
        known = inspect.signature(cls).parameters
        for option in given:
            if option not in known:
                names = ", ".join([*known, "journal"])
                raise ConfigError(f"options.{option}: {name} has no such option; known: {names}")
        if "seed" in known:
            given.setdefault("seed", settings.seed)
        try:
            cls(**given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options: {name} refuses them: {error}") from error
        return RiverDetector(
            name=name, make=lambda: cls(**given), reference=settings.reference, **own
        )

    return build


def _detectors() -> dict[str, Any]:
    """River's drift detectors of one stream, by class name."""
    base = import_module("river.base.drift_detector")._BaseDriftDetector
    found = {}
    for place in ("river.drift.binary", "river.drift"):
        for name, thing in vars(import_module(place)).items():
            if inspect.isclass(thing) and issubclass(thing, base):
                found[name] = thing
    return dict(sorted(found.items()))
