"""Live traffic as it can be learnt from: who agreed, what was served, what was said of it.

Everything here is read from files; nothing is decided. Votes are what anybody sends who got an
image, so whoever uses this bounds what one unit can bring about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from intonaco.codec import decode, parse_once
from intonaco.errors import ConfigError, StorageError
from intonaco.monitoring.signals import is_user_request
from intonaco.types import ClusterMove, Feedback, ScoredRecord
from intonaco.workspace import Workspace

MOST = 100_000  # images followed, the newest
FEW_STARS, MANY_STARS = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One image that a user got. ``unit``: an opaque digest of who, ``named``: whether that is
    somebody, or only this request. ``moved``: its prompt lies in a cluster that moved. ``votes``:
    up less down. ``hash``: perceptual, "" if not known."""

    request: str
    image: str  # relative to the workspace
    prompt: str
    at: float
    release: str
    unit: str
    named: bool
    score: float | None
    moved: bool
    hash: str = ""
    votes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A reviewer's word on a pair. ``image``: path relative to the workspace. ``request``: of the
    record that it was made for, if it was. ``consent``: None where nobody wrote it down."""

    image: str
    prompt: str
    label: Literal["good", "bad"]
    reviewer: str
    request: str = ""
    generated: bool = True
    consent: bool | None = None


class Labels(Protocol):
    """Where reviewers' words come from."""

    def labelled(self) -> Iterable[Label]:
        """All of them, in the order in which they were given. Raises ConfigError."""
        ...


@dataclass(frozen=True, slots=True)
class LabelFile:
    """Reviewers' words in a jsonl file of ``{"image", "prompt", "label", "reviewer"}`` and, if
    known, ``"request"``, ``"generated"``, ``"consent"``."""

    file: Path

    def labelled(self) -> Iterator[Label]:
        for number, line in _lines(self.file, "data.curation.labels"):
            try:
                yield Label(
                    image=_text(line, "image"),
                    prompt=_text(line, "prompt"),
                    label=_one_of(line),
                    reviewer=_text(line, "reviewer"),
                    request=str(line.get("request", "")),
                    generated=_truth(line, "generated", True),
                    consent=_truth(line, "consent", None),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{self.file}, line {number}: {error}",
                    hint='each line is {"image", "prompt", "label": "good" or "bad", "reviewer"}',
                ) from error


@dataclass(frozen=True, slots=True)
class Consents:
    """Who agreed to be learnt from, by digest of the unit. ``required``: only who said so has;
    else all have but those who said no."""

    said: Mapping[str, bool]
    required: bool

    def of(self, unit: str) -> bool:
        return self.said.get(unit, not self.required)


def read_consents(file: Path | None, digest: Callable[[str], str], *, required: bool) -> Consents:
    """What a jsonl file of ``{"unit", "consent"}`` says; the last line of a unit counts. ``unit``
    is what the client sends as its user. Raises ConfigError: a line that cannot be read may be
    somebody's no."""
    said: dict[str, bool] = {}
    for number, line in _lines(file, "data.curation.consents") if file is not None else ():
        unit, consent = line.get("unit"), line.get("consent")
        if not isinstance(unit, str) or not isinstance(consent, bool):
            raise ConfigError(
                f"{file}, line {number}: not a unit with its consent",
                hint='each line is {"unit": "…", "consent": true or false}',
            )
        said[digest(unit)] = consent
    return Consents(said, required)


def read_served(
    workspace: Workspace,
    since: float,
    digest: Callable[[str], str],
    *,
    score: str = "clip",
    clusters: Sequence[ClusterMove] = (),
) -> list[Served]:
    """Images that users asked for by a prompt from ``since`` on and that were kept, with their
    prompts; the newest ``MOST``. ``score``: the head that judges. Lines that cannot be read are
    passed over: a log may end in the middle of one."""
    centroids = np.array([c.centroid for c in clusters], dtype=np.float64)
    found: deque[Served] = deque(maxlen=MOST)
    for line in _segments(workspace.scores, since):
        try:
            item = decode(ScoredRecord, line)
        except StorageError:
            continue
        record = item.record
        if not is_user_request(record) or record.status != 200 or record.at < since:
            continue
        if record.image is None or record.served_by is None or record.task != "generate":
            continue
        if record.prompt_form != "text" or not record.prompt.strip() or item.image_broken:
            continue
        found.append(
            Served(
                request=record.request_id,
                image=record.image,
                prompt=record.prompt,
                at=record.at,
                release=record.served_by,
                unit=digest(record.unit),
                # One that names nobody is the request itself, of which image -0, -1 … were made.
                named=record.request_id.rpartition("-")[0] != record.unit != record.request_id,
                score=item.scores.get(score),
                moved=_moved(item.prompt_embedding, centroids, clusters),
                hash=item.image_hash,
            )
        )
    return list(found)


def read_votes(workspace: Workspace, since: float) -> Mapping[str, int]:
    """Votes up less votes down by request, of those who were shown the image. Four and five stars
    are up, one and two down."""
    votes: dict[str, int] = {}
    for line in _segments(workspace.feedback, since):
        try:
            said = decode(Feedback, line)
        except StorageError:
            continue
        if said.kind == "explicit" and (worth := _worth(said.vote)):
            votes[said.request_id] = votes.get(said.request_id, 0) + worth
    return votes


def _worth(vote: str | None) -> int:
    if vote in ("up", "down"):
        return 1 if vote == "up" else -1
    stars = int(vote) if vote in ("1", "2", "3", "4", "5") else 0
    return int(stars >= MANY_STARS) - int(0 < stars <= FEW_STARS)


def _moved(vector: Sequence[float], centroids: Any, clusters: Sequence[ClusterMove]) -> bool:
    if not len(vector) or not len(centroids) or centroids.shape[1] != len(vector):
        return False
    distances = ((centroids - np.asarray(vector)) ** 2).sum(axis=1)
    return clusters[int(distances.argmin())].moved


def _segments(root: Path, since: float) -> Iterator[bytes]:
    """Lines of a log, of the segments that were written to since then."""
    for path in sorted(root.glob("*/*.jsonl")):
        try:
            if path.stat().st_mtime < since:
                continue
            with path.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:  # expired this moment
            continue


def _lines(file: Path, field: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field}: {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = parse_once(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}, line {number}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{file}, line {number}: no JSON object")
        yield number, value


def _text(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is no text")
    return value


def _one_of(line: Mapping[str, Any]) -> Literal["good", "bad"]:
    value = line.get("label")
    if value == "good":
        return "good"
    if value == "bad":
        return "bad"
    raise ValueError('label is neither "good" nor "bad"')


def _truth(line: Mapping[str, Any], name: str, default: Any) -> Any:
    value = line.get(name, default)
    if value is not default and not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value
