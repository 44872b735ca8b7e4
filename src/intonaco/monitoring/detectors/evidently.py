"""Window tests of Evidently by name: ``evidently:wasserstein``, ``evidently:mmd`` ...

Evidently (https://www.evidentlyai.com, Apache-2.0) is the optional extra ``evidently``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

WINDOW = 500
EMBEDDINGS = ("distance", "mmd", "model", "ratio")  # methods for vectors; others are for scalars
FEATURES = ("num", "cat")

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTest:
    """``drifted(reference, current)``: arrays [n] of scalars or [n, d] of ``vectors``."""

    name: str
    vectors: bool
    drifted: Callable[[Rows, Rows], bool]


class EvidentlyDetector(BorrowedDetector):
    """A drift test of Evidently on windows. The first ``reference`` values are the reference;
    afterwards each full ``window`` is compared with it, and it fires when the test says drift. Its
    delay is therefore a window or more, and each window is a new chance of a false alarm. See
    BorrowedDetector for what it does not promise.
    """

    _reference: list[Any]
    _current: list[Any]

    def __init__(self, *, test: WindowTest, reference: int = 2000, window: int = WINDOW) -> None:
        super().__init__(reference=reference)
        if not isinstance(window, int) or window < 2:
            raise ConfigError(f"options.window: 2 values or more (given: {window!r})")
        self.name = f"evidently:{test.name}"
        self.window = window
        self._test = test
        self._forget()

    @property
    def since(self) -> int:
        """The first update of the last full window."""
        return self._began

    @property
    def armed(self) -> bool:
        return len(self._reference) >= self.reference

    def _take(self, x: Any, *, session: str | None, topic: str | None, at: float | None) -> None:
        value = self._row(x)
        if value is None or self._fired:
            return
        if not self.armed:
            self._reference.append(value)
            self._began = self._n
            return
        self._current.append(value)
        if len(self._current) < self.window:
            return
        self._fired = self._test.drifted(np.array(self._reference), np.array(self._current))
        if not self._fired:
            self._current = []
            self._began = self._n

    def _row(self, x: Any) -> Any:
        if not self._test.vectors:
            return number(x)
        row = np.asarray(x, dtype=np.float64)
        if row.ndim != 1:
            raise ConfigError(f"{self.name} takes vectors, and the signal is one of scalars")
        return row if np.isfinite(row).all() else None

    def _forget(self) -> None:
        self._reference = []
        self._current = []
        self._began = 0

    def _live(self) -> Mapping[str, Json]:
        return {
            "reference": pack(np.array(self._reference, dtype=np.float64)),
            "current": pack(np.array(self._current, dtype=np.float64)),
            "began": self._began,
        }

    def _revive(self, state: Mapping[str, Json]) -> None:
        self._reference = _rows(unpack(state["reference"]))
        self._current = _rows(unpack(state["current"]))
        self._began = int(state["began"])


def _rows(array: Rows) -> list[Any]:
    return list(array) if array.ndim > 1 else array.tolist()


def factory(member: str) -> Callable[[DetectorSettings], EvidentlyDetector]:
    """The factory of ``evidently:MEMBER``: one of Evidently's methods for embeddings
    (``EMBEDDINGS``), else one of its statistical tests ("ks", "wasserstein", "psi" ...).

    Options: ``window``; for tests ``threshold`` and ``feature`` ("num" or "cat"); for embeddings
    the method's own keyword arguments. Raises ConfigError if Evidently is not installed or has no
    such test."""
    need_extra(f"detector evidently:{member}", "evidently", "evidently")

    def build(settings: DetectorSettings) -> EvidentlyDetector:
        refuse_what_it_cannot(f"evidently:{member}", settings)
        options = dict(settings.options)
        window = options.pop("window", WINDOW)
        made = _embeddings(member, options) if member in EMBEDDINGS else _scalars(member, options)
        return EvidentlyDetector(test=made, reference=settings.reference, window=window)

    if member not in EMBEDDINGS:
        _known(member, "num")
    return build


def _load(module: str) -> Any:
    """A module of Evidently. It fails to import with some versions of what it needs (0.7 with
    pandas 3): then ConfigError says so."""
    try:
        return import_module(module)
    except Exception as error:
        raise ConfigError(
            f"evidently is installed but cannot be imported: {error}",
            hint="evidently 0.7 needs pandas<3: pip install 'intonaco[evidently]'",
        ) from error


def _known(member: str, feature: str) -> Any:
    """Evidently's test of that name for such values."""
    _load("evidently.legacy.calculations.stattests")  # registers them
    registry = _load("evidently.legacy.calculations.stattests.registry")
    kinds = registry._registered_stat_tests.get(member, {})
    found = {kind.value: test for kind, test in kinds.items()}
    if feature not in found:
        names = sorted(
            name
            for name, kinds in registry._registered_stat_tests.items()
            if {kind.value for kind in kinds} & set(FEATURES)
        )
        known = ", ".join([*EMBEDDINGS, *names])
        raise ConfigError(f"Evidently has no test {member!r} of {feature!r} values; known: {known}")
    return found[feature]


def _scalars(member: str, options: dict[str, Json]) -> WindowTest:
    feature = options.pop("feature", "num")
    threshold = options.pop("threshold", None)
    if options:
        raise ConfigError(
            f"options.{min(options)}: evidently:{member} has no such option; known: feature, "
            "threshold, window"
        )
    test = _known(member, feature)
    pandas = _load("pandas")
    column = _load("evidently.legacy.core").ColumnType(feature)

    def drifted(reference: Rows, current: Rows) -> bool:
        result = test(pandas.Series(reference), pandas.Series(current), column, threshold)
        return bool(result.drifted)

    return WindowTest(name=member, vectors=False, drifted=drifted)


def _embeddings(member: str, options: Mapping[str, Json]) -> WindowTest:
    methods = _load("evidently.legacy.metrics.data_drift.embedding_drift_methods")
    pandas = _load("pandas")
    try:
        method = getattr(methods, member)(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options: evidently:{member} refuses them: {error}") from error

    def drifted(reference: Rows, current: Rows) -> bool:
        def frame(rows: Rows) -> Any:  # anew each time: the method "model" writes into it
            return pandas.DataFrame(rows, columns=[f"c{i}" for i in range(rows.shape[1])])

        return bool(method(frame(current), frame(reference))[1])

    return WindowTest(name=member, vectors=True, drifted=drifted)
