"""Which served images are proposed as training data. Pure.

Three sources, in this order: pairs that reviewers called good, images that users voted up, images
of a topic that a finding says has moved. The last two must score high too. Votes come from anybody
who got an image, so they are bounded: whatever a unit does, at most ``per_unit_cap`` items stem
from it, and all who have no name are one unit together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from intonaco.codec import digest
from intonaco.config import Curation
from intonaco.datasets.alike import earlier_alike
from intonaco.datasets.served import Consents, Label, Served

UPPER = 0.75  # without `min_score`: of what was served, the upper quarter
NOBODY = ""  # the unit of all who have no name
SERVED = "images"  # the workspace's folder of them
SOURCES = ("review", "feedback", "finding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """One pair that a person may keep. ``item_id``: by what it is known in the proposal.
    ``request`` and ``release`` are empty where a reviewer brought it from elsewhere."""

    item_id: str
    image: str
    prompt: str
    source: str  # of SOURCES
    generated: bool = True
    consent: bool = True
    request: str = ""
    release: str = ""
    finding: str = ""
    at: float = 0.0
    unit: str = NOBODY
    score: float | None = None
    votes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``items``: what is proposed, best first. ``left_out``: how many that were good enough, by
    reason: "consent", "dropped" (by a person, before), "cap" (of their unit),
    "alike" (to a better one), "room"."""

    items: tuple[Proposed, ...] = ()
    considered: int = 0
    min_score: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def choose(
    served: Sequence[Served],
    votes: Mapping[str, int],
    labels: Iterable[Label],
    consents: Consents,
    settings: Curation,
    *,
    finding: str = "",
    bits: int = 4,
    dropped: Collection[str] = (),
) -> Choice:
    """What to propose. ``votes``: up less down, by request. ``finding``: the one whose clusters
    ``Served.moved`` tells of. ``bits``: near which two pictures are alike. ``dropped``: items that
    a person took out of an earlier proposal, for good."""
    floor = _floor(served, settings)
    labels = list(labels)
    reviewed = _reviewed(labels, served, settings, consents)
    good = {item.image for item in reviewed}
    bad = {one.image for one in _judged(labels, settings, worst=True)}
    ours = [
        item
        for one in served
        if one.image not in good
        and one.image not in bad
        and (
            item := _of_traffic(
                one, votes.get(one.request, 0), floor, settings, consents.of(one.unit), finding
            )
        )
    ]
    candidates = sorted(
        [*reviewed, *ours],
        key=lambda i: (SOURCES.index(i.source), -i.votes, -(i.score or 0.0), i.item_id),
    )
    hashes = {one.image: one.hash for one in served}
    left_out: Counter[str] = Counter()
    agreed = []
    for item in candidates:
        if not item.consent:
            left_out["consent"] += 1
        elif item.item_id in dropped:
            left_out["dropped"] += 1
        else:
            agreed.append(item)
    alike = earlier_alike([hashes.get(i.image, "") for i in agreed], bits)
    left_out["alike"] = len(alike)
    of_unit: Counter[str] = Counter()
    taken: list[Proposed] = []
    for place, item in enumerate(agreed):
        if place in alike:
            continue
        traffic = bool(item.request)
        if traffic and of_unit[item.unit] >= settings.per_unit_cap:
            left_out["cap"] += 1
        elif len(taken) >= settings.max_items:
            left_out["room"] += 1
        else:
            of_unit[item.unit] += traffic
            taken.append(item)
    return Choice(
        items=tuple(taken),
        considered=len(served),
        min_score=floor,
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
    )


def _floor(served: Sequence[Served], settings: Curation) -> float | None:
    """The least score; None if nothing was scored, so that nothing is high."""
    if settings.min_score is not None:
        return settings.min_score
    scores = [one.score for one in served if one.score is not None]
    return float(np.quantile(scores, UPPER)) if scores else None


def _of_traffic(
    one: Served,
    votes: int,
    floor: float | None,
    settings: Curation,
    consent: bool,
    finding: str,
) -> Proposed | None:
    if floor is None or one.score is None or one.score < floor or votes < 0:
        return None
    if votes >= settings.min_votes:
        source = "feedback"
    elif one.moved:
        source = "finding"
    else:
        return None
    return Proposed(
        item_id=_id(one.image),
        image=one.image,
        prompt=one.prompt,
        source=source,
        consent=consent,
        request=one.request,
        release=one.release,
        finding=finding if one.moved else "",
        at=one.at,
        unit=one.unit if one.named else NOBODY,
        score=one.score,
        votes=votes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    label: Label  # the last
    image: str
    votes: int


def _judged(labels: Iterable[Label], settings: Curation, *, worst: bool = False) -> list[_Judged]:
    """Images that reviewers, each counted once, called good (or bad) often enough."""
    last: dict[tuple[str, str], Label] = {}
    for label in labels:
        last[label.image, label.reviewer] = label
    of: dict[str, list[Label]] = {}
    for (image, _), label in last.items():
        of.setdefault(image, []).append(label)
    found = []
    for image, said in of.items():
        votes = sum(1 if s.label == "good" else -1 for s in said)
        if (-votes if worst else votes) >= settings.min_votes:
            found.append(_Judged(label=said[-1], image=image, votes=votes))
    return found


def _reviewed(
    labels: Iterable[Label],
    served: Sequence[Served],
    settings: Curation,
    consents: Consents,
) -> list[Proposed]:
    by_request = {one.request: one for one in served}
    by_image = {one.image: one for one in served}
    found = []
    for judged in _judged(labels, settings):
        label = judged.label
        one = by_image.get(judged.image) or by_request.get(label.request)
        unit = one.unit if one is not None and one.named else NOBODY
        # Of a served image its user decides, and where nobody knows any more who that was, it is
        # no; of others, whoever brought them.
        if one is not None:
            consent = consents.of(one.unit) and label.consent is not False
        elif label.request or PurePosixPath(judged.image).parts[:1] == (SERVED,):
            consent = False
        else:
            consent = not consents.required if label.consent is None else label.consent
        found.append(
            Proposed(
                item_id=_id(judged.image),
                image=judged.image,
                prompt=label.prompt,
                source="review",
                generated=label.generated,
                consent=consent,
                request=one.request if one is not None else label.request,
                release=one.release if one is not None else "",
                at=one.at if one is not None else 0.0,
                unit=unit,
                score=one.score if one is not None else None,
                votes=judged.votes,
            )
        )
    return found


def _id(image: str) -> str:
    return digest(["proposed", image])[:12]
