"""Recorded streams from files: what ``intonaco drift evaluate`` scores detectors on.

``.npz``: arrays ``x`` [n] or [n, d] and, if known, ``at`` [n] (seconds), ``session`` [n], ``topic``
[n], ``change_at`` (index of the first request after the change).

``.jsonl``: an object a line, ``{"x": number or list, "at": …, "session": …, "topic": …, "changed":
bool}``. ``.csv``: the same as columns with a header, a vector as ``x0``, ``x1``, … ; ``changed`` is
0 or 1. All but ``x`` may be left out. The change is where ``changed`` is first true.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.monitoring.evaluation import CpuClock, Evaluation, Recorded, Score
from intonaco.monitoring.signals import is_user_request
from intonaco.monitoring.sources import Reading, Seen, Source
from intonaco.protocols import Detector
from intonaco.types import Json, ScoredRecord

FORMATS = (".npz", ".jsonl", ".csv")
TRUE = ("1", "true", "yes")
OWN = "options"  # of a detector itself
OWN = "options"  # those of one detector
OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "reference": int,
    "tolerance": float,
    "direction": str,
    "seed": int,
    "requests_between_false_alarms": float,
}
DIRECTIONS = ("up", "down", "both")
LONGER = (4, 5, 6, 8)  # quarters of the reference that are tried until the detector is armed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """``x`` [n] or [n, d]; the others [n] or None; ``change_at``: index of the first request after
    the change, None for a stream without one."""

    x: NDArray[np.float64]
    at: NDArray[np.float64] | None = None
    session: Sequence[str] | None = None
    topic: Sequence[str] | None = None
    change_at: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def vectors(self) -> bool:
        return self.x.ndim == 2

    def scaled(self, low: float, high: float) -> Stream:
        """Numbers from ``low`` to ``high`` as 0 to 1, others cut off. Raises ConfigError."""
        if not low < high:
            raise ConfigError("--range: the first number must be below the second")
        x = np.clip((self.x - low) / (high - low), 0.0, 1.0)
        return Stream(
            x=x, at=self.at, session=self.session, topic=self.topic, change_at=self.change_at
        )

    def part(self, start: int, end: int) -> Recorded:
        """Requests as the harness takes them; with topics each is a pair (value, topic)."""
        x: NDArray[Any] = self.x[start:end]
        if self.topic is not None:
            pairs = np.empty(end - start, dtype=object)
            pairs[:] = list(zip(x, self.topic[start:end], strict=True))
            x = pairs
        change = self.change_at
        return Recorded(
            x=x,
            at=None if self.at is None else self.at[start:end],
            session=None if self.session is None else self.session[start:end],
            change_at=change - start if change is not None and start <= change < end else None,
        )


# ------------------------------------------------------------------------------------ reading


def read(path: Path) -> Stream:
    """The stream of a file. Raises ConfigError that names the row or the array."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: not one of {', '.join(FORMATS)}")
    try:
        if path.suffix == ".npz":
            return _read_npz(path)
        with path.open(newline="") as file:
            rows = csv.DictReader(file) if path.suffix == ".csv" else _json_lines(file, path)
            return _of_rows(rows, path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _read_npz(path: Path) -> Stream:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ConfigError(f"{path}: one array without a name; numpy.savez gives names")
            with arrays:
                found = {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: is no .npz file of plain arrays, or is damaged") from error
    if "x" not in found:
        raise ConfigError(f"{path}: there is no array x; it has {', '.join(found) or 'none'}")
    change, at = found.get("change_at"), found.get("at")
    if change is not None and (change.size != 1 or change.dtype.kind not in "iuf"):
        raise ConfigError(f"{path}: change_at is one number")
    return _checked(
        path,
        found["x"],
        None if at is None else at,
        _strings(found.get("session")),
        _strings(found.get("topic")),
        None if change is None or float(change.item()) < 0 else int(change.item()),
    )


def _strings(values: NDArray[Any] | None) -> list[str] | None:
    return None if values is None else [str(v) for v in values.tolist()]


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[Mapping[str, Json]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not JSON") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number} is not an object")
        yield row


def _of_rows(rows: Iterable[Mapping[str, Json]], path: Path) -> Stream:
    xs: list[Any] = []
    columns: dict[str, list[Any]] = {"at": [], "session": [], "topic": []}
    change: int | None = None
    for number, row in enumerate(rows):
        if None in row:  # where csv puts what no column is for
            raise ConfigError(f"{path}: row {number + 1} has more values than there are columns")
        xs.append(_value(row, number, path))
        for name, values in columns.items():
            if row.get(name) not in (None, ""):
                values.append(row[name])
        if change is None and str(row.get("changed", "")).lower() in TRUE:
            change = number
    for name, values in columns.items():
        if values and len(values) != len(xs):
            raise ConfigError(f"{path}: {name} is missing in some rows: give it in all or in none")
    try:
        x = np.array(xs, dtype=np.float64)
        at = np.array(columns["at"], dtype=np.float64) if columns["at"] else None
    except ValueError as error:
        raise ConfigError(f"{path}: x and at have to be numbers, x of one length") from error
    session, topic = ([str(v) for v in columns[n]] or None for n in ("session", "topic"))
    return _checked(path, x, at, session, topic, change)


def _value(row: Mapping[str, Json], number: int, path: Path) -> Any:
    if row.get("x") not in (None, ""):
        return row["x"]
    vector: list[Json] = []
    while f"x{len(vector)}" in row:
        vector.append(row[f"x{len(vector)}"])
    if not vector:
        raise ConfigError(f"{path}: row {number + 1} has no x (nor x0, x1, …)")
    return vector


def _checked(
    path: Path,
    x: NDArray[Any],
    at: NDArray[Any] | None,
    session: list[str] | None,
    topic: list[str] | None,
    change_at: int | None,
) -> Stream:
    try:
        x = np.asarray(x, dtype=np.float64)
        at = None if at is None else np.asarray(at, dtype=np.float64)
    except ValueError as error:
        raise ConfigError(f"{path}: x and at have to be numbers") from error
    if not len(x):
        raise ConfigError(f"{path}: holds no requests")
    if x.ndim not in (1, 2) or not x.size:
        raise ConfigError(f"{path}: x has the shape {x.shape}, and [n] or [n, d] is needed")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise ConfigError(f"{path}: x of row {row + 1} is not finite")
    if at is not None and at.ndim != 1:
        raise ConfigError(f"{path}: at has the shape {at.shape}, and [n] is needed")
    if at is not None and not np.isfinite(at).all():
        row = int(np.flatnonzero(~np.isfinite(at))[0])
        raise ConfigError(f"{path}: at of row {row + 1} is not finite")
    for name, values in (("at", at), ("session", session), ("topic", topic)):
        if values is not None and len(values) != len(x):
            raise ConfigError(f"{path}: {name} has {len(values)} values, x has {len(x)}")
    if change_at is not None and not 0 <= change_at < len(x):
        raise ConfigError(f"{path}: change_at is {change_at}, and there are {len(x)} requests")
    return Stream(x=x, at=at, session=session, topic=topic, change_at=change_at)


def of_records(items: Iterable[ScoredRecord], source: Source) -> Stream:
    """What a signal reads off recorded requests of users, whoever was champion. Raises ConfigError
    if that is nothing."""
    readings: list[Reading] = []
    for item in items:
        if not is_user_request(item.record):
            continue
        row = unit(np.array(item.prompt_embedding)) if item.prompt_embedding else None
        readings += source.of_record(Seen(item=item, release=None, row=row))
    if not readings:
        raise ConfigError(
            f"signal {source.name}: the workspace's scored records hold nothing of it"
        )
    topics = [r.topic for r in readings]
    return Stream(
        x=np.array([r.value for r in readings], dtype=np.float64),
        at=np.array([r.at for r in readings], dtype=np.float64),
        session=[r.session or f"#{i}" for i, r in enumerate(readings)],
        topic=[str(t) for t in topics] if all(t is not None for t in topics) else None,
    )


# ------------------------------------------------------------------------------------ judging


def parse_detector(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME:OPTION=VALUE,…``; a name may itself be ``module:attribute``. Options are
    those of all detectors, or the detector's own, as under ``options`` in the configuration.
    Raises ConfigError."""
    name, colon, rest = text.rpartition(":")
    if not colon or "=" not in rest:
        return text, {}
    options: dict[str, Any] = {}
    for pair in rest.split(","):
        option, _, value = pair.partition("=")
        if option not in OPTIONS:  # the detector's own; it lists them where it has no such one
            options.setdefault(OWN, {})[option] = _scalar(value)
            continue
        try:
            options[option] = OPTIONS[option](value)
        except ValueError as error:
            raise ConfigError(f"detector {name}: {option}={value!r} is no number") from error
    if options.get("direction", "both") not in DIRECTIONS:
        raise ConfigError(f"detector {name}: direction is one of {', '.join(DIRECTIONS)}")
    return name, options


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    return value if isinstance(value, bool | int | float | str) else text


def settings(reference: int, budget: float, options: Mapping[str, Any]) -> DetectorSettings:
    """What a detector is built from: the common settings and its own options."""
    given = {"reference": reference, "requests_between_false_alarms": budget, **options}
    return DetectorSettings(sessions=True, **given)


@dataclass(slots=True)
class _Fed:
    """A detector as the harness feeds it: pairs (value, topic) are taken apart, and every so often
    somebody hears how far it is."""

    detector: Detector
    topics: bool
    heard: Callable[[], None] | None
    every: int = 500
    fed: int = 0
    threshold: float = field(init=False)

    def __post_init__(self) -> None:
        self.threshold = self.detector.threshold

    @property
    def evidence(self) -> float:
        return self.detector.evidence

    @property
    def armed(self) -> bool:
        return bool(getattr(self.detector, "armed", True))

    @property
    def drift_detected(self) -> bool:
        return self.detector.drift_detected

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        if self.heard is not None:
            self.fed += 1
            if self.fed % self.every == 0:
                self.heard()
        if self.topics:
            x, topic = x
        return self.detector.update(x, session=session, topic=topic, at=at)

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def reset(self) -> None:
        self.detector.reset()

    def state(self) -> Mapping[str, Json]:
        return self.detector.state()

    def restore(self, state: Mapping[str, Json]) -> None:
        self.detector.restore(state)


def judge(
    make: Callable[[], Detector],
    stream: Stream,
    reference: int,
    cpu: CpuClock,
    *,
    heard: Callable[[], None] | None = None,
) -> tuple[Score, int]:
    """Arm a fresh detector with the first ``reference`` requests, or with up to twice as many if
    it leaves out repeats and needs them, and judge it on the others: the score, and how many it
    took. ``heard`` is called every 500 requests. Raises ConfigError if none are left, if the change
    lies in the reference, or if that did not arm the detector."""
    for used in (reference * grow // 4 for grow in LONGER):
        if not 0 < used < len(stream):
            raise ConfigError(f"reference: {used} of {len(stream)} requests leave none to judge")
        if stream.change_at is not None and stream.change_at < used:
            raise ConfigError(
                f"the change is at request {stream.change_at}, inside the reference of {used}",
                hint="give a shorter reference",
            )
        detector = make()
        plain = heard is None and stream.topic is None
        fed: Detector = detector if plain else _Fed(detector, stream.topic is not None, heard)
        try:
            evaluation = Evaluation(fed, stream.part(0, used), cpu)
        except ConfigError:
            if used >= 2 * reference or getattr(detector, "armed", True):
                raise
            continue
        return evaluation.score(stream.part(used, len(stream))), used
    raise AssertionError("unreachable")


def as_facts(name: str, score: Score, budget: float) -> dict[str, Json]:
    """A score as JSON: what is infinite or unknown is None."""

    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    low, high = score.bounds_per_10k
    return {
        "detector": name,
        "null_events": score.null_events,
        "false_alarms": score.false_alarms,
        "alarms_per_10k": known(score.alarms_per_10k),
        "bounds_per_10k": [known(low), known(high)],
        "keeps_budget": score.keeps(budget),
        "delay": known(score.median_delay),
        "misses": score.misses,
        "changes": score.misses + len(score.delays),
        "us_per_event": known(score.us_per_event),
        "state_bytes": score.state_bytes,
    }
